"""A client's process dies, or its disk or node fails, at every named point of its money's life.

Afterwards a person runs documented commands only: recover, close, withdraw. Every unit comes home
or to the worker whom it was promised, and nothing is left in a channel.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from piecework.base.errors import PieceworkError
from piecework.chain.contracts.calls import Claim, settle
from piecework.client.sdk import PieceworkClient
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Timestamp
from tests.support.chain.chains import USD, TestMarket
from tests.support.chain.purse import Points, Purse, mine_openings, purse
from tests.support.client.client_side import ask, collect
from tests.support.client.fake_worker import STORY, FakeWorker
from tests.support.node.faults import Killed

MONEY = 2 * USD
DELAY_S = 3601
ROUNDS = 4
MOST_POINTS = 200

pytestmark = pytest.mark.slow


@pytest.fixture
def worker(worker: FakeWorker) -> FakeWorker:
    worker.script.story = STORY[:16]
    return worker


async def life(market: TestMarket, worker: FakeWorker, mine: Purse, points: Points) -> None:
    """Deposit, buy, close, withdraw: the whole money path, with every write in it."""
    async with mine.process(points, stall_timeout_s=5.0) as (client, funds):
        await funds.deposit(client.payment_token.amount(MONEY))
        await collect(client.run(ask()))
        await mine_openings(market, worker, mine)
        await collect(client.run(ask()))
        await funds.close_all()
        await funds.invoice(Timestamp(0), Timestamp(2**40))
        await funds.withdraw()


async def bring_home(market: TestMarket, worker: FakeWorker, mine: Purse) -> None:
    """What docs/troubleshooting.md tells a person to run, until it says that all is there."""
    for _ in range(ROUNDS):
        await mine_openings(market, worker, mine)
        async with mine.process(stall_timeout_s=5.0) as (client, funds):
            await funds.recover()
            closings = await funds.close_all()
            if any(not closing.closed for closing in closings):
                await settle_all(market, worker, mine)
                await market.pass_time(DELAY_S)
            await funds.withdraw()
            if await is_home(market, client, mine):
                return
    raise AssertionError("the money does not come home")


async def settle_all(market: TestMarket, worker: FakeWorker, mine: Purse) -> None:
    """What the worker does when it sees a withdrawal request: settle its latest voucher."""
    for key, book in worker.books.items():
        job = next(j for j in worker.jobs.values() if j.submission.job.channel == key)
        channel = job.submission.channel
        seen = await market.reader.channel(key)
        unsettled = seen.state in (ChannelState.OPEN, ChannelState.WITHDRAWING)
        if channel.payer == mine.payer.address and book.accepted and unsettled:
            claim = Claim(channel, book.accepted.voucher, book.accepted.signature)
            if book.cumulative > seen.settled:
                await market.run(worker.operator, settle(market.deployment, [claim]))


async def is_home(market: TestMarket, client: PieceworkClient, mine: Purse) -> bool:
    """Nothing of the payer's is in the pool or in a channel any more."""
    for row in client.store.channels():
        seen = await market.reader.channel(row.id)
        if seen.state in (ChannelState.OPEN, ChannelState.WITHDRAWING):
            return False
    return await mine.pooled() == 0


async def promised(market: TestMarket, worker: FakeWorker, mine: Purse) -> int:
    """What the worker holds vouchers for, in this payer's channels."""
    return sum(
        book.cumulative
        for key, book in worker.books.items()
        if any(
            j.submission.job.channel == key and j.submission.channel.payer == mine.payer.address
            for j in worker.jobs.values()
        )
    )


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failing"])
async def test_every_unit_comes_home_from_every_point(
    market: TestMarket, worker: FakeWorker, tmp_path: Path, kill: bool
) -> None:
    reached: list[str] = []
    for at in range(MOST_POINTS):
        mine = purse(market, tmp_path / f"{at}", f"{kill} {at}")
        await mine.give_gas()
        await market.give(mine.payer.address, tokens=MONEY)
        points = Points(at, kill=kill)
        with contextlib.suppress(Killed, PieceworkError):
            await life(market, worker, mine, points)
        over = len(points.names) <= at
        reached += points.names[at : at + 1]
        await bring_home(market, worker, mine)
        spent = await promised(market, worker, mine)
        assert await mine.wealth() == MONEY - spent, str(points)
        if over:
            break
    else:
        raise AssertionError("the life has more points than the test tries")
    assert set(reached) >= {
        "admit a job",
        "pay a receipt",
        "record an acceptance",
        "finish a job",
        "change a channel's status",
        "before a broadcast",
        "after a broadcast",
    }
