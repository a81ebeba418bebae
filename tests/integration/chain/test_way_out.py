"""Every state of a client's money has a way out: failures are said, commands can be repeated."""

from __future__ import annotations

import pytest

from piecework.client.journal.records import ChannelStatus
from piecework.client.orders import ClosingState
from piecework_protocol.errors import Reason, Refusal
from tests.support.chain.chains import USD, TestMarket
from tests.support.chain.purse import Points, Purse, mine_openings, scripted_worker
from tests.support.client.client_side import ask, collect, last
from tests.support.client.fake_worker import FakeWorker

DELAY_S = 3601


async def test_a_close_without_gas_is_said_and_works_when_gas_is_there(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    worker.script.refuse_close = Refusal(Reason.INTERNAL, "not today")
    async with mine.process() as (client, funds):
        paid = last(await collect(client.run(ask()))).cost
        await mine_openings(market, worker, mine)
        for _ in range(2):
            (failed,) = await funds.close_all()
            assert failed.state is ClosingState.FAILED and "gas" in failed.note
        (row,) = client.store.channels()
        assert row.status is ChannelStatus.OPEN
        assert (await collect(client.run(ask())))[-1]
        assert len(client.store.channels()) == 1
        await mine.give_gas()
        (waiting,) = await funds.close_all()
        assert waiting.state is ClosingState.WAITING and "withdrawal requested" in waiting.note
        await market.pass_time(DELAY_S)
        done = await funds.withdraw()
        assert [closing.state for closing in done.channels] == [ClosingState.CLOSED]
    assert await mine.wealth() == 5 * USD
    assert paid > 0


async def test_one_channels_error_stops_no_other(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    await mine.give_gas()
    async with scripted_worker(market, "second") as second:
        async with mine.process() as (client, _):
            await collect(client.run(ask()))
            first, other = (worker, second) if worker.submissions else (second, worker)
            first.script.refusals = [Refusal(Reason.BUSY, "full")]
            await collect(client.run(ask()))
            for each in (first, other):
                await mine_openings(market, each, mine)
        broken = Points(0, kill=False)
        async with mine.process(broken) as (_, funds):
            broken.names.clear()  # the first change of the journal from here on fails
            closings = await funds.close_all()
        assert {c.state for c in closings} == {ClosingState.FAILED, ClosingState.CLOSED}
        async with mine.process() as (_, funds):
            assert all(closing.closed for closing in await funds.close_all())


async def test_a_channel_whose_opening_is_pending_waits_and_is_closed_later(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    await mine.give_gas()
    async with mine.process() as (client, funds):
        await collect(client.run(ask()))
        (waiting,) = await funds.close_all()
        assert waiting.state is ClosingState.WAITING and "not opened yet" in waiting.note
        assert (await client.balance()).reservations[0].amount == USD
        assert (await funds.withdraw()).amount.units == 4 * USD
        await mine_openings(market, worker, mine)
        (closed,) = await funds.close_all()
        assert closed.closed
        await funds.withdraw()
    assert await mine.wealth() == 5 * USD - worker.paid()


async def test_a_channel_that_was_never_opened_leaves_nothing_reserved(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    worker.script.refusals = [Refusal(Reason.DRAINING, "leaving")]
    async with mine.process() as (client, funds):
        with pytest.raises(Exception, match="busy"):
            await collect(client.run(ask()))
        balance = await client.balance()
        assert (balance.free.units, balance.reservations) == (5 * USD, ())
        assert await funds.close_all() == ()
