"""Who sends a client's transactions, and what the client pays for that, on a real chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.chain.contracts.calls import submit_funding
from piecework.chain.errors import TransactionReverted
from piecework.chain.reading.reader import UNKNOWN_CHANNEL
from piecework.client.errors import FeeOverLimit, InsufficientFunds, NoWorkerFits
from piecework.client.orders import ClosingState
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import Funding, FundingAuthorization, OpeningAuthorization
from piecework_protocol.types import Amount
from tests.support.chain.chains import USD, TestMarket
from tests.support.chain.purse import Purse, mine_openings, purse
from tests.support.client.client_side import ask, collect
from tests.support.client.fake_worker import FakeWorker

FEE = 30_000
LEFT_TO_US = Refusal(Reason.FUND_YOURSELF, "not for that fee", metadata={"fee": str(FEE)})


async def test_the_fee_of_an_opening_is_signed_and_goes_from_the_pool_to_the_receiver(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    worker.terms = {"open_fee": Amount(FEE)}
    async with mine.process() as (client, _):
        assert (await client.quote(ask())).fee.units == FEE
        await collect(client.run(ask()))
        assert (await client.balance()).free.units == 4 * USD - FEE
        await mine_openings(market, worker, mine)
        await client.balance()
        assert (await client.quote(ask())).fee.units == 0
    assert await mine.pooled() == 4 * USD - FEE
    assert await market.reader.waiting_payout(market.token, worker.receiver) == FEE


async def test_an_opening_that_the_worker_leaves_to_us_is_sent_with_our_own_gas(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    worker.terms = {"open_fee": Amount(FEE)}
    worker.script.refusals = [LEFT_TO_US]
    worker.seen_deposit = Amount(USD)
    await mine.give_gas()
    async with mine.process() as (client, _):
        await collect(client.run(ask()))
    declined, taken = worker.submissions
    assert isinstance(declined.funding, FundingAuthorization)
    assert taken.funding is None, "the channel is open already"
    assert (await market.reader.channel(taken.job.channel)).funded == USD
    assert await mine.pooled() == 4 * USD


async def test_a_worker_that_asks_more_by_now_gets_what_it_asks(
    worker: FakeWorker, mine: Purse
) -> None:
    worker.script.refusals = [LEFT_TO_US]
    async with mine.process() as (client, _):
        await client.discovery.offers(None)
        worker.terms, worker.sequence = {"open_fee": Amount(FEE)}, 2
        await collect(client.run(ask()))
    assert [_fee_of(s.funding) for s in worker.submissions] == [0, FEE]


async def test_without_gas_an_opening_that_is_left_to_us_says_what_to_do(
    worker: FakeWorker, mine: Purse
) -> None:
    worker.script.refusals = [LEFT_TO_US]
    async with mine.process() as (client, _):
        with pytest.raises(
            NoWorkerFits, match=r"FUND_YOURSELF.*Send it some of the chain's native"
        ):
            await collect(client.run(ask()))


async def test_a_fee_above_the_limit_is_not_signed(worker: FakeWorker, mine: Purse) -> None:
    worker.terms = {"open_fee": Amount(FEE)}
    async with mine.process(max_fee="0.029999") as (client, _):
        with pytest.raises(NoWorkerFits, match=r"asks 0\.03 .* the limit max_fee is 0\.029999"):
            await collect(client.run(ask()))
    assert worker.submissions == []
    async with mine.process() as (client, _):
        await collect(client.run(ask()))
        (row,) = client.store.channels()
    async with mine.process(max_fee="0.01") as (client, _):
        with pytest.raises(FeeOverLimit):
            await client.channels.funding(row)


async def test_a_closing_fee_above_the_limit_is_said_and_nothing_is_signed(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    worker.terms = {"close_fee": Amount(FEE)}
    async with mine.process(max_fee="0.029999") as (client, funds):
        await collect(client.run(ask()))
        await mine_openings(market, worker, mine)
        (failed,) = await funds.close_all()
        assert failed.state is ClosingState.FAILED
        assert "max_fee is 0.029999" in failed.note and "no gas" in failed.note
        assert worker.closed == []
        await mine.give_gas()
        (closed,) = await funds.close_all()
        assert closed.closed, "our own transaction takes no fee"
    assert await mine.pooled() == 5 * USD - worker.paid()


async def test_before_the_escrow_was_there_every_channel_is_unknown(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, _):
        await collect(client.run(ask()))
        await mine_openings(market, worker, mine)
        (row,) = client.store.channels()
    assert (await market.reader.channel(row.id)).funded == USD
    assert await market.reader.channel(row.id, block=0) == UNKNOWN_CHANNEL


# --- opening in one step


@pytest.fixture
async def rich(market: TestMarket, tmp_path: Path) -> Purse:
    """A payer with five tokens in its own account, nothing in the escrow, and no gas."""
    made = purse(market, tmp_path / "rich", "rich")
    await market.give(made.payer.address, tokens=5 * USD)
    return made


async def test_a_channel_is_opened_by_one_signature_without_a_deposit_and_without_gas(
    market: TestMarket, worker: FakeWorker, rich: Purse
) -> None:
    worker.terms = {"open_fee": Amount(FEE)}
    async with rich.process() as (client, funds):
        await collect(client.run(ask()))
        assert isinstance(worker.submissions[0].funding, OpeningAuthorization)
        assert (await client.balance()).free.units == 0
        await collect(client.run(ask()))
        await mine_openings(market, worker, rich)
        (row,) = client.store.channels()
        assert (await client.channels.refresh(row.id)).funded == USD
        await collect(client.run(ask()))
        assert worker.submissions[-1].funding is None
        assert await rich.wealth() == 4 * USD - FEE
        assert await market.reader.waiting_payout(market.token, worker.receiver) == FEE
        await rich.give_gas()
        (closed,) = await funds.close_all()
        assert closed.closed
    assert await rich.pooled() == USD - worker.paid()


async def test_an_authorization_that_was_signed_twice_opens_a_channel_once(
    market: TestMarket, worker: FakeWorker, rich: Purse
) -> None:
    async with rich.process() as (client, _):
        await collect(client.run(ask()))
        (row,) = client.store.channels()
        more = await client.channels.opening(row, Amount(2 * USD), Amount(0))
    await mine_openings(market, worker, rich)
    (first, *_) = worker.submissions
    for again in (first.funding, more):
        assert again is not None
        with pytest.raises(TransactionReverted):
            call = submit_funding(market.deployment, row.channel, again)
            await market.run(worker.operator, call)
    assert await rich.wealth() == 4 * USD


async def test_the_pool_comes_first_and_the_account_can_be_left_alone(
    worker: FakeWorker, mine: Purse, rich: Purse
) -> None:
    async with mine.process() as (client, _):
        await collect(client.run(ask()))
    async with rich.process(open_from_account=False) as (client, _):
        with pytest.raises(InsufficientFunds):
            await collect(client.run(ask()))
    assert [type(s.funding) for s in worker.submissions] == [FundingAuthorization]


async def test_an_opening_in_one_step_that_is_left_to_us_is_sent_with_our_own_gas(
    market: TestMarket, worker: FakeWorker, rich: Purse
) -> None:
    worker.script.refusals = [LEFT_TO_US]
    worker.seen_deposit = Amount(USD)
    await rich.give_gas()
    async with rich.process() as (client, _):
        await collect(client.run(ask()))
        (row,) = client.store.channels()
    assert (await market.reader.channel(row.id)).funded == USD
    assert await rich.wealth() == 4 * USD


def _fee_of(funding: Funding | None) -> int:
    assert isinstance(funding, FundingAuthorization)
    return funding.authorization.fee
