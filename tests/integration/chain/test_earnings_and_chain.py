"""A worker's journal held against a real escrow: what is settled, waits, or is lost and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.contracts import calls
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.reading.reader import ChainReader
from piecework_node.journal.records import FundingAuthorized
from piecework_node.operations.earnings import read_income
from piecework_node.operations.running import open_journal
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.objects import Channel, FundChannel
from piecework_protocol.types import Amount, Timestamp, to_hex
from tests.support.chain.chains import (
    ETHER,
    FAR,
    USD,
    TestMarket,
    channel_of,
    claim_of,
    close_of,
    deployed,
    request_of,
    signature_of,
    signer,
)
from tests.support.clock import FakeClock
from tests.support.node.journal_life import Life
from tests.support.node.owed import OPERATOR
from tests.support.system.commands import piecework
from tests.support.system.worker_process import PASSWORD, RECEIVER, WorkerProcess

pytestmark = pytest.mark.process

PAYER = signer("a client whose channels end in every way")
PROMISED = 4 * USD
ENDS = ("open", "never", "late", "coming", "drawn", "closed")


class CountedRpc:
    """A node that remembers from which block on logs were asked for, and for how many channels."""

    def __init__(self, inner: HttpRpc) -> None:
        self._inner = inner
        self.asked: list[tuple[int, int]] = []

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_getLogs":
            topics = params[0]["topics"]
            named = topics[1] if len(topics) > 1 and topics[1] else ()
            self.asked.append((int(params[0]["fromBlock"], 16), len(named)))
        return await self._inner.call(method, *params)

    async def close(self) -> None:
        await self._inner.close()


async def authorize(life: Life, market: TestMarket, until: Timestamp) -> None:
    """Put an authorization of 5 USD into the journal."""
    terms = FundChannel(life.channel, Amount(5 * USD), Amount(0), until)
    signature = signature_of(market.reader.domain, terms, PAYER)
    await life.journal.append([FundingAuthorized(life.key, FundingAuthorization(terms, signature))])


async def journal_of(worker: WorkerProcess, market: TestMarket) -> dict[str, Channel]:
    """A channel for each end, with a job of 4 USD that a voucher pays for."""
    journal, channels = await open_journal(worker.home), dict[str, Channel]()
    for salt, end in enumerate(ENDS):
        channel = channel_of(market, PAYER, OPERATOR, salt=salt, receiver=RECEIVER)
        channels[end] = channel
        life = Life(journal, FakeClock(), channel, market.reader.domain)
        await life.begin()
        await life.job(amounts=(3 * USD, USD))
        if end in ("late", "coming"):
            await authorize(life, market, Timestamp(1) if end == "late" else FAR)
    await journal.close()
    return channels


async def move_money(market: TestMarket, channels: dict[str, Channel]) -> None:
    """Open three of them with 5 USD. Take 2 of one back, and close another one at 1."""
    await market.give(PAYER.address, wei=ETHER)
    await market.pool(PAYER, PAYER, 20 * USD)
    for end in ("open", "drawn", "closed"):
        await market.open_channel(PAYER, PAYER, channels[end], 5 * USD, fee=USD)
    await market.run(PAYER, request_of(market, channels["drawn"], PAYER, Amount(2 * USD)))
    final = claim_of(market.reader.domain, channels["closed"], PAYER, USD)
    await market.run(PAYER, close_of(market, final, OPERATOR))
    await market.pass_time(channels["drawn"].withdrawal_delay)
    await market.run(PAYER, calls.withdraw(market.deployment, channels["drawn"]))


async def test_what_can_never_be_paid_is_lost_and_the_command_says_why(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=chain.url
        )
        channels = await journal_of(worker, market)
        await move_money(market, channels)
        names = {end: to_hex(one.id(market.reader.domain)) for end, one in channels.items()}
        command = ("worker", "earnings", "--csv", "--chain", "--home", str(worker.home.root))
        said = await piecework(*command, environment={"PIECEWORK_PASSWORD": PASSWORD})
        assert said.code == 0, said.err
        settled, waiting, lost = USD, 2 * PROMISED + 3 * USD, 2 * PROMISED + USD + 3 * USD
        assert (
            f"{6 * PROMISED} promised = {settled} settled + {waiting} waiting + {lost} lost, "
            f"and {3 * USD} of fees"
        ) in said.err
        for end, gone, why in (
            ("never", PROMISED, "its opening was never mined"),
            ("late", PROMISED, "its opening was never mined"),
            ("drawn", USD, f"the payer has withdrawn {2 * USD}"),
            ("closed", 3 * USD, "it is closed"),
        ):
            assert f"channel {names[end]}: {gone} lost, because {why}" in said.err
        assert names["open"] not in said.err and names["coming"] not in said.err


async def test_logs_are_read_from_the_openings_on(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        await market.pass_time(60)
        before = await market.reader.latest_block()
        channels = {
            end: channel_of(market, PAYER, OPERATOR, salt=salt, receiver=RECEIVER)
            for salt, end in enumerate(ENDS)
        }
        await move_money(market, channels)
        rpc = CountedRpc(HttpRpc(chain.url))
        async with await ChainReader.connect(market.deployment, rpc=rpc) as reader:
            ids = [one.id(reader.domain) for one in channels.values()]
            account = await read_income(reader, OPERATOR.address, ids)
        assert account.opened == {
            channels[end].id(market.reader.domain) for end in ("open", "drawn", "closed")
        }
        assert sum(one.funded for one in account.income) == 3 * 5 * USD
        (walk, none), *by_channel = rpc.asked
        assert none == 0 and walk == (market.deployment.from_block or 0)
        assert by_channel and all(first > before and named == 3 for first, named in by_channel)
