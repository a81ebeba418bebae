"""A part of a channel asked back and called off, and withdrawals that somebody else submits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from piecework.chain.contracts.authorizations import SignedWithdrawal
from piecework.chain.errors import TransactionReverted
from piecework.client.errors import ClientError, InsufficientFunds
from piecework.client.journal.records import ChannelRow, ChannelStatus
from piecework.client.orders import ClosingState
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import MalformedInput, Reason, Refusal
from tests.support.chain.chains import USD, TestMarket
from tests.support.chain.purse import Purse, mine_openings, purse
from tests.support.client.client_side import ask, collect
from tests.support.client.fake_worker import FakeWorker

DELAY_S = 3601


@pytest.fixture
async def mine(mine: Purse) -> Purse:
    """It has gas too."""
    await mine.give_gas()
    return mine


async def opened(
    client: PieceworkClient, market: TestMarket, worker: FakeWorker, mine: Purse
) -> ChannelRow:
    """A channel of one token that a job was paid over."""
    await collect(client.run(ask()))
    await mine_openings(market, worker, mine)
    (row,) = client.store.channels()
    return await client.channels.refresh(row.id)


async def test_a_part_comes_back_after_the_delay_and_the_channel_stays_in_use(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, funds):
        row = await opened(client, market, worker, mine)
        asked = await funds.orders.request(row.id, "0.4")
        assert asked.state is ClosingState.WAITING
        row = client.store.channel(row.id)
        assert row.status is ChannelStatus.OPEN
        assert row.deposit == USD - 4 * USD // 10, "what was asked for is gone at once"
        await collect(client.run(ask()))
        assert len(client.store.channels()) == 1
        (early,) = await funds.withdraw_due()
        assert early.state is ClosingState.WAITING
        await market.pass_time(DELAY_S)
        (back,) = await funds.withdraw_due()
        assert back.state is ClosingState.PART
        assert await funds.withdraw_due() == ()
        row = client.store.channel(row.id)
        assert (row.status, row.deposit) == (ChannelStatus.OPEN, USD - 4 * USD // 10)
    assert await mine.pooled() == 4 * USD + 4 * USD // 10


async def test_no_more_is_asked_back_than_is_promised_to_nobody(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, funds):
        row = await opened(client, market, worker, mine)
        free = client.amount("1").units - row.book.cumulative
        token = client.payment_token
        for units in (free + 1, USD + 1):
            with pytest.raises(InsufficientFunds, match="in the channel are promised to nobody"):
                await funds.orders.request(row.id, token.amount(units))
        await funds.orders.request(row.id, token.amount(free))
        with pytest.raises(ClientError, match="has a request already"):
            await funds.orders.request(row.id, token.amount(1))
        assert client.store.channel(row.id).deposit == row.book.cumulative


@pytest.mark.parametrize("everything", [False, True])
async def test_a_request_can_be_called_off_and_the_channel_is_used_again(
    market: TestMarket, worker: FakeWorker, mine: Purse, everything: bool
) -> None:
    worker.script.refuse_close = Refusal(Reason.INTERNAL, "not today")
    async with mine.process() as (client, funds):
        row = await opened(client, market, worker, mine)
        if everything:
            (waiting,) = await funds.close_all()
            assert waiting.state is ClosingState.WAITING
        else:
            await funds.orders.request(row.id, "0.5")
        await funds.orders.call_off(row.id)
        again = client.store.channel(row.id)
        assert (again.status, again.deposit) == (ChannelStatus.OPEN, USD)
        await market.pass_time(DELAY_S)
        assert await funds.withdraw_due() == ()
        with pytest.raises(ClientError, match="no request to call off"):
            await funds.orders.call_off(row.id)


async def test_a_channel_with_a_request_for_a_part_is_closed_like_any_other(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, funds):
        row = await opened(client, market, worker, mine)
        await funds.orders.request(row.id, "0.4")
        worker.script.refuse_close = Refusal(Reason.INTERNAL, "not today")
        (waiting,) = await funds.close_all()
        assert waiting.state is ClosingState.WAITING and "withdrawal requested" in waiting.note
        await market.pass_time(DELAY_S)
        (done,) = await funds.withdraw_due()
        assert done.closed


async def test_a_client_without_gas_withdraws_through_somebody_else_for_a_fee(
    market: TestMarket, tmp_path: Path
) -> None:
    poor, helper = purse(market, tmp_path / "poor", "poor"), purse(market, tmp_path / "h", "h")
    await market.pool(poor.payer, market.chain.faucet, 5 * USD)
    await helper.give_gas()
    async with poor.process() as (_, funds):
        with pytest.raises(InsufficientFunds):
            await funds.orders.sign("5", None, "0.01", 3600)
        signed = await funds.orders.sign("4.5", None, "0.01", 3600)
    handed_on = SignedWithdrawal.from_json(json.loads(json.dumps(signed.to_json())))
    assert handed_on == signed
    async with helper.process() as (_, funds):
        await funds.orders.relay(handed_on)
        with pytest.raises(TransactionReverted):
            await funds.orders.relay(handed_on)
    assert await poor.wealth() == 45 * USD // 10
    assert await helper.wealth() == USD // 100
    assert await poor.pooled() == 5 * USD - 451 * USD // 100


def test_a_file_that_is_no_withdrawal_is_said() -> None:
    for raw in ({}, {"owner": "0x12"}, {"amount": -1}):
        with pytest.raises(MalformedInput, match="not a signed withdrawal"):
            SignedWithdrawal.from_json(raw)
