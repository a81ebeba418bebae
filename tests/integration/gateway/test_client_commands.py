"""The client's commands as real processes, on the embedded chain, with an index between them and a worker."""

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

from piecework.chain.authorizations import Registration
from piecework.chain.calls import approve, fund, register
from piecework.chain.dev.embedded import EmbeddedChain
from piecework_protocol import wire
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Timestamp, parse_address
from tests.support import chains
from tests.support.chains import MIN_STAKE, USD, Market, deployed
from tests.support.fake_chain import FakeChain
from tests.support.fake_worker import STORY, FakeWorker

WHOLE = " ".join(STORY)
PASSWORD = "correct horse"

pytestmark = pytest.mark.slow


@dataclass
class Stage:
    """A market on the embedded chain, with one bonded worker and room for a client."""

    market: Market
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
            sys.executable,
            "-m",
            "piecework",
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
        async with aiohttp.ClientSession() as http, http.post(url + "/v1/offers", data=data) as response:
            assert response.status == 201, await response.text()

    async def mine_funding(self) -> None:
        """What a worker does when it has time: submit the payer's authorization."""
        funding = self.worker.submissions[0].funding
        assert funding is not None
        a = funding.authorization
        call = fund(self.market.deployment, a.channel, a.deposit, a.deadline, funding.signature)
        await self.market.run(self.worker.operator, call)


async def join(market: Market, worker: FakeWorker) -> None:
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
        deadline=Timestamp(2**40),
    )
    await market.run(key, approve(market.token, deployment.registry, MIN_STAKE))
    await market.run(key, register(deployment, registration))


@pytest.fixture
async def stage(embedded_chain: EmbeddedChain, tmp_path: Path) -> AsyncIterator[Stage]:
    import time

    async with deployed(embedded_chain) as market:
        domain_only = FakeChain(market.reader.domain)
        async with FakeWorker(domain_only, time.time, mines=False) as worker:
            worker.token = market.token
            await join(market, worker)
            market.deployment.save(tmp_path / "deployment.json")
            yield Stage(market, worker, tmp_path)


async def make_client(stage: Stage, tokens: int, *, wei: int = chains.ETHER) -> str:
    """A client with a home, tokens and gas; its payer."""
    made = await stage.json("client", "init", "--deployment", str(stage.folder / "deployment.json"))
    payer = parse_address(made["payer"])
    await stage.market.give(payer, wei=wei, tokens=tokens)
    return str(made["payer"])


async def test_the_whole_life_of_a_client(stage: Stage) -> None:
    await make_client(stage, 5 * USD)
    again = await stage.json("client", "init", "--deployment", str(stage.folder / "deployment.json"))
    assert again["created"] == []
    assert (stage.home / "wallet.json").stat().st_mode & 0o777 == 0o600

    assert (await stage.json("client", "deposit", "5"))["amount"] == 5 * USD
    offers = await stage.json("client", "offers")
    assert [o["endpoint"] for o in offers["offers"]] == [stage.worker.endpoint]
    quote = await stage.json("client", "quote", "Tell me a story.")
    result = await stage.json("client", "run", "Tell me a story.")
    assert result["text"] == WHOLE
    assert result["cost"] == stage.worker.paid() <= quote["ceiling"]
    assert (await stage.command("client", "run", "Another one.")).strip() == WHOLE

    receipts = await stage.json("client", "receipts", "--verify")
    assert receipts["failed"] == 0
    assert len(receipts["receipts"]) == 8
    await stage.mine_funding()
    balance = await stage.json("client", "balance")
    assert (balance["in_channels"], balance["pooled"]) == (0, 4 * USD)
    (channel,) = (await stage.json("client", "channels"))["channels"]
    assert (channel["on_chain"], channel["funded"], channel["count"]) == ("open", USD, 8)

    (closing,) = (await stage.json("client", "close"))["channels"]
    assert closing["closed"], closing
    paid = stage.worker.paid()
    assert await stage.market.reader.token_balance(stage.market.token, stage.worker.receiver) == paid
    home = await stage.json("client", "withdraw")
    assert home["amount"] == 5 * USD - paid


async def test_a_client_without_gas_deposits_through_somebody_else(stage: Stage) -> None:
    payer = await make_client(stage, 3 * USD, wei=0)
    file = stage.folder / "deposit.json"
    await stage.json("client", "deposit", "3", "--gasless", str(file))
    other = stage.folder / "other"
    arguments = (
        "client",
        "init",
        "--deployment",
        str(stage.folder / "deployment.json"),
        "--home",
        str(other),
    )
    made = json.loads(await stage.command(*arguments, "--json", home=False))
    await stage.market.give(parse_address(made["payer"]), wei=chains.ETHER)
    await stage.command("client", "deposit", "--relay", str(file), "--home", str(other), home=False)
    balance = await stage.json("client", "balance")
    assert (balance["payer"], balance["pooled"], balance["native_wei"]) == (payer, 3 * USD, 0)
    assert (await stage.json("client", "run", "Tell me a story."))["text"] == WHOLE


async def test_a_silent_workers_channel_is_withdrawn_after_its_delay(stage: Stage) -> None:
    await make_client(stage, 2 * USD)
    await stage.command("client", "deposit", "2")
    await stage.command("client", "run", "Tell me a story.")
    await stage.mine_funding()
    await stage.worker.__aexit__()
    (closing,) = (await stage.json("client", "close"))["channels"]
    assert not closing["closed"]
    assert closing["withdrawable_at"] is not None
    early = await stage.json("client", "withdraw", "0.5")
    assert early["channels"][0]["note"] == "the withdrawal delay is not over"
    await stage.market.pass_time(3601)
    late = await stage.json("client", "withdraw")
    assert late["channels"][0]["closed"]
    assert late["amount"] == 2 * USD - USD // 2


async def test_market_and_gateway_serve_until_told_to_stop(stage: Stage) -> None:
    await make_client(stage, 2 * USD)
    await stage.command("client", "deposit", "2")
    file = str(stage.folder / "deployment.json")
    market_home = str(stage.folder / "market")
    market, index = await stage.serve(
        "market", "start", "--deployment", file, "--home", market_home, "--port", "0"
    )
    assert (index["ready"], index["role"]) == (True, "market")
    await stage.publish(index["url"])
    gateway, ready = await stage.serve(
        "gateway", "--home", str(stage.home), "--port", "0", "--index", index["url"]
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


async def test_errors_are_one_line_without_a_traceback(stage: Stage) -> None:
    missing = await stage.command("client", "balance", expect=1)
    assert missing.startswith("error: no client in ")
    await make_client(stage, 0)
    poor = await stage.command("client", "run", "Tell me a story.", expect=1)
    assert poor.count("\n") == 1
    assert "Deposit more" in poor
    unknown = await stage.command("client", "quote", "x", "--model", "epic-9", expect=1)
    assert "nobody serves the model 'epic-9'" in unknown
    (stage.home / "config.toml").write_text("indexs = []\n")
    typo = await stage.command("client", "balance", expect=1)
    assert "did you mean 'indexes'?" in typo
