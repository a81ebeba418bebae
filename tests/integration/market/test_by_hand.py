"""By hand, without the demo: every role with its own home, its own key and its own process, on
anvil."""

from __future__ import annotations

import asyncio
import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.faucet import ANVIL_FAUCET_KEY
from piecework.chain.reading.reader import ChainReader
from piecework.demo.market import free_port
from piecework.processes import ProcessGroup, Role
from piecework_protocol.types import Address, ChannelId, keccak256, parse_address, parse_hex, to_hex
from tests.support.chain.chains import ETHER, USD
from tests.support.system.commands import Said, piecework
from tests.support.waiting import until

pytestmark = pytest.mark.process

PAYOUT = Address(keccak256(b"a cold address of the worker's owner")[12:])
STAKE, TOKENS, DEPOSIT = 100 * USD, 5 * USD, 3 * USD
PROMPT = "Write a story about a fox and a lantern."
SETTLED_WITHIN_S = 60.0
POLL_S = 0.1

DEPLOYER = {"PIECEWORK_DEPLOYER_KEY": to_hex(ANVIL_FAUCET_KEY)}
OWNER = {
    "PIECEWORK_PASSWORD": "the password of the GPU's owner",
    "PIECEWORK_WORKER_BENCHMARK_S": "0.2",
    "PIECEWORK_WORKER_THREADS": "1",
    "PIECEWORK_WORKER_CHAIN_POLL_S": "0.2",
}
CLIENT = {"PIECEWORK_PASSWORD": "the password of the client"}


@dataclass
class Hands:
    """What each of the three people types."""

    root: Path
    rpc_url: str
    faucet: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def file(self) -> str:
        return str(self.root / "deployment.json")

    @property
    def worker_home(self) -> tuple[str, str]:
        return "--home", str(self.root / "worker")

    async def deploy(self) -> Deployment:
        """The market's founder, with a private key in the environment."""
        said = await piecework(
            *("chain", "deploy", "--rpc", self.rpc_url, "--out", self.file, "--json"),
            environment=DEPLOYER,
        )
        assert said.json()["file"] == self.file
        return Deployment.load(Path(self.file))

    async def give(self, to: str, *, native: str, tokens: str) -> None:
        """Somebody sends coins and tokens."""
        gift = ("--to", to, "--native", native, "--tokens", tokens)
        async with self.faucet:  # one key, one transaction at a time
            (await piecework("chain", "faucet", "--deployment", self.file, *gift, "--json")).json()

    async def worker_init(self, endpoint: str, index: str) -> Said:
        """The owner of the GPU answers every question by a flag."""
        terms = ("--payout", to_hex(PAYOUT), "--slots", "2", "--index", index, "--bind", endpoint)
        prices = ("--price-prompt", "0.1", "--price-output", "0.4", "--price-steps", "0.002")
        base = ("worker", "init", *self.worker_home, "--deployment", self.file)
        return await piecework(*base, *terms, *prices, "--json", environment=OWNER)

    async def worker(self, verb: str) -> Any:
        """A verb of the worker that answers with JSON."""
        return (
            await piecework("worker", verb, *self.worker_home, "--json", environment=OWNER)
        ).json()

    async def client(self, *arguments: str) -> Any:
        """A verb of the client that answers with JSON."""
        home = ("--home", str(self.root / "client"))
        return (await piecework("client", *arguments, *home, "--json", environment=CLIENT)).json()


async def test_the_same_pieces_by_hand_as_a_gpu_owner_and_a_client_would_use_them(
    anvil: Anvil, tmp_path: Path
) -> None:
    hands = Hands(tmp_path, anvil.url)
    deployment = await hands.deploy()
    async with (
        ProcessGroup(tmp_path / "logs") as group,
        await ChainReader.connect(deployment) as reader,
    ):
        index = await group.start(
            "index",
            [
                "market",
                "start",
                "--deployment",
                hands.file,
                "--home",
                str(tmp_path / "index"),
                "--port",
                "0",
            ],
        )
        worker, payer = await asyncio.gather(
            _become_a_worker(hands, group, reader, index.ready["url"]),
            _become_a_client(hands, index.ready["url"]),
        )
        results, fee = await _buy_two_texts(hands, worker)
        paid = await _settle(hands, reader, results, fee)
        await _leave(hands, reader, payer, paid + fee)
        assert await worker.stop() == 0, worker.log_tail()
        earnings = await hands.worker("earnings")
        assert (earnings["settled"], earnings["waiting"]) == (paid, 0)
        await reader.rpc.call("anvil_mine", "0x80")  # until all of it is final
        await _hold_earnings_against_the_chain(hands, paid, fee)
        assert await reader.token_balance(deployment.token, PAYOUT) == paid + fee
        assert await index.stop() == 0


async def _become_a_worker(
    hands: Hands, group: ProcessGroup, reader: ChainReader, index: str
) -> Role:
    """Without money: one line that says what is lacking. With it: one transaction. Then it
    starts."""
    endpoint = f"127.0.0.1:{free_port()}"
    lacking = (await hands.worker_init(endpoint, index)).line()
    for words in (
        "lacks",
        "for the stake",
        "for gas",
        "run this again",
    ):
        assert words in lacking
    operator = next(word for word in lacking.split() if word.startswith("0x"))
    await hands.give(operator, native="1", tokens="100")
    before = await reader.rpc.call("eth_getTransactionCount", operator, "latest")
    made = (await hands.worker_init(endpoint, index)).json()
    assert (made["operator"], made["payout"]) == (operator, to_hex(PAYOUT))
    assert [step["what"] for step in made["steps"] if step["new"]] == ["registration"]
    after = await reader.rpc.call("eth_getTransactionCount", operator, "latest")
    assert int(after, 16) - int(before, 16) == 1
    again, check = await asyncio.gather(hands.worker_init(endpoint, index), hands.worker("check"))
    assert not any(step["new"] for step in again.json()["steps"])
    assert check["success"], check
    found = {c["description"]: c for category in check["categories"] for c in category["checks"]}
    assert len(found) == 19
    assert found["dialled"]["detail"].endswith(f"reached {endpoint}"), "the check answers it itself"

    home = hands.root / "worker"
    assert home.stat().st_mode & 0o777 == 0o700
    private = [file for file in home.iterdir() if file.name != "deployment.json"]
    assert not [file for file in private if file.stat().st_mode & 0o077]
    worker = await group.start("worker", ["worker", "start", *hands.worker_home], environment=OWNER)
    assert (worker.ready["operator"], worker.ready["endpoint"]) == (operator, endpoint)
    return worker


async def _become_a_client(hands: Hands, index: str) -> str:
    """A wallet, tokens from somebody, and one deposit for all workers."""
    made = await hands.client("init", "--deployment", hands.file, "--index", index)
    await hands.give(made["payer"], native="1", tokens="5")
    assert (await hands.client("deposit", "3"))["amount"] == DEPOSIT
    balance = await hands.client("balance")
    assert (balance["own"], balance["pooled"]) == (TOKENS - DEPOSIT, DEPOSIT)
    return str(made["payer"])


async def _buy_two_texts(hands: Hands, worker: Role) -> tuple[list[dict[str, Any]], int]:
    """Once through the index, once with none: straight from the registry on the chain.

    Returns the results, and the fee for the opening.
    """
    offers, quote = await asyncio.gather(
        hands.client("offers"), hands.client("quote", PROMPT, "--max-tokens", "256")
    )
    (offer,) = offers["offers"]
    (model,) = offer["models"]
    assert (offer["operator"], offer["receiver"]) == (worker.ready["operator"], to_hex(PAYOUT))
    assert model["price_per_million_output_tokens"] == 400_000
    assert 0 < quote["expected"] <= quote["ceiling"]
    first = await hands.client("run", PROMPT, "--max-tokens", "256", "--seed", "11")
    assert first["cost"] <= quote["ceiling"]

    config = hands.root / "client" / "config.toml"
    config.write_text("indexes = []\n")
    second = await hands.client("run", PROMPT, "--max-tokens", "256", "--seed", "11")
    assert second["text"] == first["text"] != ""
    assert second["job"] != first["job"] and second["channel"] == first["channel"]
    fee = int(quote["fee"])
    assert fee > 0
    return [first, second], fee


async def _settle(
    hands: Hands, reader: ChainReader, results: list[dict[str, Any]], fee: int
) -> int:
    """The worker's owner wants the money on the chain now; what the chain paid."""
    promised: int = sum(result["cost"] for result in results)
    receipts, earnings, status = await asyncio.gather(
        hands.client("receipts", "--verify"), hands.worker("earnings"), hands.worker("status")
    )
    assert receipts["failed"] == 0
    assert len(receipts["receipts"]) == sum(result["canvases"] for result in results)
    assert sum(r["amount"] for r in receipts["receipts"]) == promised == earnings["accepted"]
    assert (status["state"], status["unsettled"]) == ("ready", promised), status
    assert await hands.worker("settle") == {"settling": True}
    channel = ChannelId(parse_hex(results[0]["channel"], 32, "channel"))

    async def settled() -> bool:
        token = reader.deployment.token
        home = await reader.token_balance(token, PAYOUT)
        return (await reader.channel(channel)).settled >= promised and home >= promised + fee

    await until(settled, within_s=SETTLED_WITHIN_S, poll_s=POLL_S)
    (settlement,) = await reader.settlements(channel)
    assert settlement.amount == promised
    assert await reader.token_balance(reader.deployment.token, PAYOUT) == promised + fee
    return promised


async def _hold_earnings_against_the_chain(hands: Hands, paid: int, fee: int) -> None:
    """The journal's table and the escrow's events agree to the unit."""
    said = await piecework(
        *("worker", "earnings", "--csv", "--chain", *hands.worker_home), environment=OWNER
    )
    assert said.code == 0, said.err
    (columns, *days), balance = csv.reader(said.out.splitlines()), said.err
    sums = {name: sum(int(day[n]) for day in days) for n, name in enumerate(columns) if n}
    assert (sums["gross"], sums["settled"], sums["fees"]) == (paid, paid, fee)
    assert f"{paid} promised = {paid} settled + 0 waiting + 0 lost, and {fee} of fees" in balance


async def _leave(hands: Hands, reader: ChainReader, payer: str, paid: int) -> None:
    """Close together with the worker, and take everything home that was not spent."""
    (closing,) = (await hands.client("close"))["channels"]
    assert closing["closed"], closing
    assert (await hands.client("withdraw"))["amount"] == DEPOSIT - paid
    token, escrow = reader.deployment.token, reader.deployment.escrow
    assert await reader.token_balance(token, parse_address(payer)) == TOKENS - paid
    assert await reader.token_balance(token, escrow) == 0
    assert await reader.token_balance(token, reader.deployment.registry) == STAKE
    balance = await hands.client("balance")
    assert (balance["pooled"], balance["in_channels"]) == (0, 0)
    assert 0 < balance["native_wei"] < ETHER
