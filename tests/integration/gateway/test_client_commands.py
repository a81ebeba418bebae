"""The client's commands as real processes, on the embedded chain, with an index between them and a
worker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import openai
import pytest

from piecework.chain.contracts.calls import approve, register, submit_funding
from piecework.chain.dev.embedded import EmbeddedChain
from piecework_protocol import wire
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.objects import Registration
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Timestamp, Uint64, parse_address
from tests.support.chain import chains
from tests.support.chain.chains import MIN_STAKE, USD, TestMarket, deployed
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.fake_worker import STORY, FakeWorker

WHOLE = " ".join(STORY)
PASSWORD = "correct horse"
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"

pytestmark = [pytest.mark.process, pytest.mark.slow]


@dataclass
class CommandStage:
    """A market on the embedded chain, with one bonded worker and room for a client."""

    market: TestMarket
    worker: FakeWorker
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "client"

    async def command(self, *arguments: str, expect: int = 0, home: bool = True) -> str:
        """Run `piecework` to its end; its standard output."""
        extra = ("--home", str(self.home)) if home else ()
        process = await self.start(*arguments, *extra)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == expect, err.decode()
        assert b"Traceback" not in err, err.decode()
        return (err if expect else out).decode()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        """Run `piecework` in the background."""
        environment = {**os.environ, "PIECEWORK_PASSWORD": PASSWORD, "COVERAGE_PROCESS_START": ""}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "piecework"),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.command(*arguments, "--json"))

    async def serve(self, *arguments: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
        """Start a server command and wait for its ready line."""
        process = await self.start(*arguments)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, (await process.communicate())[1].decode()
        ready: dict[str, Any] = json.loads(line)
        return process, ready

    async def publish(self, url: str) -> None:
        """Post the worker's offer to an index."""
        data = wire.encode_offer(self.worker.offer())
        async with (
            aiohttp.ClientSession() as http,
            http.post(url + "/v1/offers", data=data) as response,
        ):
            assert response.status == 201, await response.text()

    async def mine_funding(self) -> None:
        """What a worker does when it has time: submit the payer's authorization."""
        funding = self.worker.submissions[0].funding
        assert funding is not None
        assert isinstance(funding, FundingAuthorization)
        call = submit_funding(self.market.deployment, funding.authorization.channel, funding)
        await self.market.run(self.worker.operator, call)


async def join(market: TestMarket, worker: FakeWorker) -> None:
    """Bond the worker on the real chain."""
    key: LocalSigner = worker.operator
    await market.give(key.address, wei=chains.ETHER, tokens=MIN_STAKE)
    deployment = market.deployment
    registration = Registration(
        operator=key.address,
        owner=key.address,
        payout=worker.receiver,
        stake=MIN_STAKE,
        endpoint=worker.endpoint,
        nonce=Uint64(0),
        deadline=Timestamp(2**40 - 1),
    )
    await market.run(key, approve(market.token, deployment.registry, MIN_STAKE))
    await market.run(key, register(deployment, registration))


@pytest.fixture
async def harness(embedded_chain: EmbeddedChain, tmp_path: Path) -> AsyncIterator[CommandStage]:
    import time

    async with deployed(embedded_chain) as market:
        domain_only = FakeChain(market.reader.domain)
        async with FakeWorker(domain_only, time.time, mines=False) as worker:
            worker.token = market.token
            await join(market, worker)
            market.deployment.save(tmp_path / "deployment.json")
            yield CommandStage(market, worker, tmp_path)


async def make_client(harness: CommandStage, tokens: int, *, wei: int = chains.ETHER) -> str:
    """A client with a home, tokens and gas; its payer."""
    made = await harness.json(
        "client", "init", "--deployment", str(harness.folder / "deployment.json")
    )
    payer = parse_address(made["payer"])
    await harness.market.give(payer, wei=wei, tokens=tokens)
    return str(made["payer"])


async def test_the_whole_life_of_a_client(harness: CommandStage) -> None:
    await make_client(harness, 5 * USD)
    again = await harness.json(
        "client", "init", "--deployment", str(harness.folder / "deployment.json")
    )
    assert again["created"] == []
    assert (harness.home / "wallet.json").stat().st_mode & 0o777 == 0o600

    assert (await harness.json("client", "deposit", "5"))["amount"] == 5 * USD
    offers = await harness.json("client", "offers")
    (offered,) = offers["offers"]
    assert [e["address"] for e in offered["endpoints"]] == [harness.worker.endpoint]
    assert harness.worker.endpoint in await harness.command("client", "offers")
    quote = await harness.json("client", "quote", "Tell me a story.")
    result = await harness.json("client", "run", "Tell me a story.")
    assert result["text"] == WHOLE
    assert result["cost"] == harness.worker.paid() <= quote["ceiling"]
    assert (await harness.command("client", "run", "Another one.")).strip() == WHOLE

    receipts = await harness.json("client", "receipts", "--verify")
    assert receipts["failed"] == 0
    assert len(receipts["receipts"]) == 8
    await harness.mine_funding()
    balance = await harness.json("client", "balance")
    assert (balance["in_channels"], balance["pooled"]) == (USD, 4 * USD)
    (channel,) = (await harness.json("client", "channels"))["channels"]
    assert (channel["on_chain"], channel["funded"], channel["count"]) == ("open", USD, 8)

    (closing,) = (await harness.json("client", "close"))["channels"]
    assert closing["closed"], closing
    paid = harness.worker.paid()
    assert (
        await harness.market.reader.token_balance(harness.market.token, harness.worker.receiver)
        == paid
    )
    home = await harness.json("client", "withdraw")
    assert home["amount"] == 5 * USD - paid
    bill = await harness.json("client", "invoice")
    assert (bill["troubles"], bill["totals"]["paid"]) == ([], paid)
    table = await harness.command("client", "invoice", "--csv")
    assert table.count("\n") == 1 + len(bill["lines"]) and f"{paid / USD:f}" in table
    (found,) = (await harness.json("client", "recover"))["channels"]
    assert (found["found"], found["note"]) == (False, "closed")


async def test_a_job_is_exported_held_against_the_chain_and_made_a_credential(
    harness: CommandStage,
) -> None:
    await make_client(harness, 5 * USD)
    await harness.json("client", "deposit", "5")
    job = (await harness.json("client", "run", "Tell me a story."))["job"]
    file, story = harness.folder / "evidence.json", harness.folder / "story.txt"
    export = ("client", "evidence", "export", job, "--output", str(file))
    exported = await harness.json(*export)
    assert exported["canvases"] == 4
    assert exported["missing"].startswith("the prompt")
    assert "exists" in await harness.command(*export, expect=1)

    market = ("--deployment", str(harness.folder / "deployment.json"))
    node = ("--rpc", str(harness.market.deployment.rpc_url))
    words = await harness.command("verify-reply", str(file), *market, *node, home=False)
    assert "is bonded with" in words and "the contracts have the code" in words
    assert words.endswith("it holds\n")
    alone = await harness.command("verify-reply", str(file), "--json", home=False)
    assert json.loads(alone)["texts"] == [WHOLE]

    await harness.command("provenance", "write", str(file), "--text", str(story))
    assert story.read_text() == WHOLE
    assert "it holds" in await harness.command("provenance", "verify", str(story), home=False)
    story.write_text(WHOLE[:-1] + "?")
    said = await harness.command("provenance", "verify", str(story), expect=1, home=False)
    assert "the text or its manifest was changed" in said
    file.write_bytes(file.read_bytes().replace(b'"canvas":0', b'"canvas":1', 1))
    said = await harness.command("verify-reply", str(file), expect=1, home=False)
    assert said.startswith("error: ")


async def test_a_client_without_gas_deposits_through_somebody_else(harness: CommandStage) -> None:
    payer = await make_client(harness, 3 * USD, wei=0)
    file = harness.folder / "deposit.json"
    await harness.json("client", "deposit", "3", "--gasless", str(file))
    other = harness.folder / "other"
    arguments = (
        "client",
        "init",
        "--deployment",
        str(harness.folder / "deployment.json"),
        "--home",
        str(other),
    )
    made = json.loads(await harness.command(*arguments, "--json", home=False))
    await harness.market.give(parse_address(made["payer"]), wei=chains.ETHER)
    await harness.command(
        "client", "deposit", "--relay", str(file), "--home", str(other), home=False
    )
    balance = await harness.json("client", "balance")
    assert (balance["payer"], balance["pooled"], balance["native_wei"]) == (payer, 3 * USD, 0)
    assert (await harness.json("client", "run", "Tell me a story."))["text"] == WHOLE


async def test_a_silent_workers_channel_is_withdrawn_after_its_delay(harness: CommandStage) -> None:
    await make_client(harness, 2 * USD)
    await harness.command("client", "deposit", "2")
    await harness.command("client", "run", "Tell me a story.")
    await harness.mine_funding()
    await harness.worker.__aexit__()
    (closing,) = (await harness.json("client", "close"))["channels"]
    assert not closing["closed"]
    assert closing["withdrawable_at"] is not None
    early = await harness.json("client", "withdraw", "0.5")
    assert early["channels"][0]["note"] == "the withdrawal delay is not over"
    await harness.market.pass_time(3601)
    late = await harness.json("client", "withdraw")
    assert late["channels"][0]["closed"]
    assert late["amount"] == 2 * USD - USD // 2


async def test_market_and_gateway_serve_until_told_to_stop(harness: CommandStage) -> None:
    await make_client(harness, 2 * USD)
    await harness.command("client", "deposit", "2")
    file = str(harness.folder / "deployment.json")
    market_home = str(harness.folder / "market")
    market, index = await harness.serve(
        "market", "start", "--deployment", file, "--home", market_home, "--port", "0"
    )
    assert (index["ready"], index["role"]) == (True, "market")
    await harness.publish(index["url"])
    gateway, ready = await harness.serve(
        "gateway", "--home", str(harness.home), "--port", "0", "--index", index["url"]
    )
    assert ready["role"] == "gateway"
    async with openai.AsyncOpenAI(base_url=ready["url"], api_key="none", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(
            model="tale-1", messages=cast(Any, [{"role": "user", "content": "Tell me a story."}])
        )
    assert answer.choices[0].message.content == WHOLE
    for process in (gateway, market):
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_errors_are_one_line_without_a_traceback(harness: CommandStage) -> None:
    missing = await harness.command("client", "balance", expect=1)
    assert missing.startswith("error: no client in ")
    await make_client(harness, 0)
    poor = await harness.command("client", "run", "Tell me a story.", expect=1)
    assert poor.count("\n") == 1
    assert "Deposit more" in poor
    unknown = await harness.command("client", "quote", "x", "--model", "epic-9", expect=1)
    assert "nobody serves the model 'epic-9'" in unknown
    (harness.home / "config.toml").write_text("indexs = []\n")
    typo = await harness.command("client", "balance", expect=2)
    assert "Did you mean indexes?" in typo
    other = ("client", "init", "--deployment", str(harness.folder / "deployment.json"))
    (harness.home / "config.toml").write_text('indexes = ["http://here"]\n')
    asked = await harness.command(*other, "--index", "http://there", expect=1)
    assert "has other indexes: http://here" in asked and "http://there" in asked
    nowhere = ("--home", "/proc/nowhere/client")
    line = await harness.command(*other, *nowhere, expect=1, home=False)
    assert line.startswith("error: cannot make the folder /proc/nowhere") and line.count("\n") == 1


async def example(harness: CommandStage, name: str, **environment: str) -> str:
    """Run a program of `examples/` as a user would; its standard output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", str(EXAMPLES / f"{name}.py")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "PIECEWORK_PASSWORD": PASSWORD,
            "PIECEWORK_HOME": str(harness.folder),
            **environment,
        },
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_examples_do_what_they_say(harness: CommandStage) -> None:
    await make_client(harness, 5 * USD)
    await harness.command("client", "deposit", "3")
    asked = await example(harness, "ask")
    assert asked.startswith(WHOLE) and "tUSDC" in asked
    streamed = await example(harness, "stream")
    assert WHOLE in streamed and "at most" in streamed and " 0 drafts" not in streamed
    quoted = await example(harness, "quote")
    assert "reliability" in quoted and "refused: max_price_too_low" in quoted
    harness.worker.script.drop_after = [1]
    resumed = await example(harness, "resume", PIECEWORK_CLIENT_RESUME_ATTEMPTS="0")
    assert resumed.startswith("interrupted: ") and WHOLE in resumed
    proved = await example(harness, "receipts")
    count = proved.strip().splitlines()[-1].split()[0]
    assert int(count) > 8 and f"{count} of {count} receipts proved" in proved
    await harness.mine_funding()
    moved = await example(harness, "money")
    assert "closed together with the worker" in moved and "withdrawn" in moved
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        *("ask", "stream", "quote", "resume", "receipts", "money")
    }
