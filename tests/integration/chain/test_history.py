"""The chain's word about a client's money: bills to the base unit, and channels found again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework.chain.contracts.calls import Claim, push_payout, settle
from piecework.chain.errors import RpcRefused, RpcUnavailable
from piecework.chain.reading.reader import ChainReader
from piecework.client.funds import Funds
from piecework.client.history import History
from piecework.client.invoice import LineKind
from piecework.client.journal.records import ChannelStatus
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import Amount, Timestamp
from tests.support.chain.chains import USD, TestMarket
from tests.support.chain.purse import Purse, mine_openings, purse
from tests.support.client.client_side import ask, collect, last
from tests.support.client.fake_worker import FakeWorker
from tests.support.system.dying_database import copy_database

MOST_CUTS = 40
EVER = (Timestamp(0), Timestamp(2**40))


@pytest.fixture
async def mine(mine: Purse) -> Purse:
    """It has gas too."""
    await mine.give_gas()
    return mine


async def settle_now(market: TestMarket, worker: FakeWorker) -> None:
    """The worker settles its latest voucher, as it does from time to time."""
    latest = worker.vouchers[-1]
    channel = worker.jobs[latest.leaves[-1].job].session.accepted.channel
    claim = Claim(channel, latest.voucher, latest.signature)
    await market.run(worker.operator, settle(market.deployment, [claim]))


async def trade(
    market: TestMarket, worker: FakeWorker, mine: Purse, client: PieceworkClient
) -> int:
    """Two jobs, with a settlement between them. Returns what they cost."""
    cost = last(await collect(client.run(ask()))).cost
    await mine_openings(market, worker, mine)
    await settle_now(market, worker)
    return cost + last(await collect(client.run(ask("Another one.")))).cost


async def test_a_bill_reconciles_line_by_line_with_the_chain(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, funds):
        cost = await trade(market, worker, mine, client)
        await funds.close_all()
        await funds.withdraw("2")
        bill = await funds.invoice(*EVER)
        assert bill.troubles == ()
        kinds = [line.kind for line in bill.lines]
        assert kinds == [
            *(LineKind.DEPOSIT, LineKind.FUNDING, LineKind.PAYMENT, LineKind.PAYMENT),
            *(LineKind.CLOSING, LineKind.WITHDRAWAL),
        ]
        assert {line.check for line in bill.lines} == {"ok"}
        assert (bill.totals.deposited, bill.totals.withdrawn) == (5 * USD, 2 * USD)
        assert bill.totals.paid == cost == worker.paid()
        assert bill.after == (3 * USD - cost, 0)
        assert bill.after[0] == await mine.pooled()
        nothing = await funds.invoice(Timestamp(2**40 - 1), EVER[1])
        assert (nothing.lines, nothing.before, nothing.after) == ((), bill.after, bill.after)


async def test_fees_and_openings_out_of_the_account_reconcile_on_both_sides(
    market: TestMarket, worker: FakeWorker, tmp_path: Path
) -> None:
    worker.terms = {"open_fee": Amount(30_000), "top_up_fee": Amount(20_000)}
    rich = purse(market, tmp_path / "rich", "rich")
    await market.give(rich.payer.address, tokens=5 * USD)
    await rich.give_gas()
    async with rich.process() as (client, funds):
        cost = await trade(market, worker, rich, client)
        await funds.close_all()
        await funds.withdraw("0.5")
        bill = await funds.invoice(*EVER)
        assert bill.troubles == ()
        assert [line.kind for line in bill.lines][:2] == [LineKind.OPENING, LineKind.PAYMENT]
        assert bill.totals.deposited == USD + 30_000
        assert (bill.totals.fees, bill.totals.paid) == (30_000, cost)
        assert bill.after == (USD // 2 - cost, 0)
        assert bill.after[0] == await rich.pooled()
    waits = await market.reader.waiting_payout(market.token, worker.receiver)
    held = await market.reader.token_balance(market.token, worker.receiver)
    assert waits == 30_000
    await market.run(worker.operator, push_payout(market.deployment, market.token, worker.receiver))
    assert await market.reader.token_balance(market.token, worker.receiver) == held + waits
    assert held + waits == bill.totals.paid + bill.totals.fees


async def test_a_receipt_that_is_not_what_was_paid_is_said_in_its_line(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, _):
        await trade(market, worker, mine, client)
    with closing(apsw.Connection(str(mine.folder / "client.db"))) as db:
        db.execute("DELETE FROM receipts WHERE leaf_index = 1")
    async with mine.process() as (_, funds):
        bill = await funds.invoice(*EVER)
        (payment,) = [line for line in bill.lines if line.kind is LineKind.PAYMENT]
        assert payment.check == "this journal lacks 1 of 4 receipts"
        assert len(bill.troubles) == 1


async def test_a_lost_journal_is_recovered_from_chain_and_worker(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, _):
        cost = await trade(market, worker, mine, client)
        (before,) = client.store.channels()
    for file in mine.folder.glob("client.db*"):
        file.unlink()
    async with mine.process() as (client, funds):
        assert client.store.channels() == ()
        (found,) = await funds.recover()
        assert found.found and found.row.id == before.id and found.row.funded == USD
        assert found.row.book.voucher() == before.book.voucher()
        (again,) = await funds.recover()
        assert (again.found, again.note) == (False, "up to date")
        cost += last(await collect(client.run(ask("A third one.")))).cost
        (closed,) = await funds.close_all()
        assert "together" in closed.note
        await funds.withdraw()
    assert await mine.wealth() == 5 * USD - cost


async def test_a_lost_journal_gets_its_money_from_a_worker_that_shows_nothing(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, _):
        await trade(market, worker, mine, client)
    for file in mine.folder.glob("client.db*"):
        file.unlink()
    worker.script.shows_account = False
    async with mine.process() as (client, funds):
        (found,) = await funds.recover()
        assert "withdrawal delay" in found.note
        await _bring_home(market, worker, client, funds)
    assert await mine.wealth() == 5 * USD - worker.paid()


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "hidden"])
async def test_an_old_copy_of_the_journal_signs_nothing_below_what_was_signed(
    market: TestMarket, worker: FakeWorker, mine: Purse, shown: bool
) -> None:
    async with mine.process() as (client, _):
        cost = int(last(await collect(client.run(ask()))).cost)
        await mine_openings(market, worker, mine)
    file, copy = mine.folder / "client.db", mine.folder / "backup"
    copy_database(file, copy)
    async with mine.process() as (client, _):
        cost += last(await collect(client.run(ask("Another one.")))).cost
        await settle_now(market, worker)
    for part in mine.folder.glob("client.db*"):
        part.unlink()
    copy_database(copy, file)
    worker.script.shows_account = shown
    async with mine.process() as (client, funds):
        (closing,) = await funds.close_all()
        assert closing.closed is shown, closing
        if not shown:
            why = ("lies before", "lacks vouchers", "is not the voucher shown")
            assert any(reason in closing.note for reason in why), closing.note
            assert worker.closed == []
            await market.pass_time(3601)
        await funds.withdraw()
    assert await mine.wealth() == 5 * USD - cost


async def _bring_home(
    market: TestMarket, worker: FakeWorker, client: PieceworkClient, funds: Funds
) -> None:
    if not all(closing.closed for closing in await funds.close_all()):
        await settle_now(market, worker)  # what a worker does when it sees a withdrawal request
    await market.pass_time(3601)
    await funds.withdraw()
    assert {row.status for row in client.store.channels()} == {ChannelStatus.CLOSED}


class NarrowRpc:
    """A node that takes short log ranges only, and goes away after some of them."""

    def __init__(self, inner: Any, widest: int, queries: int) -> None:
        self._inner, self._widest, self._left = inner, widest, queries

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_getLogs":
            query = params[0]
            if int(query["toBlock"], 16) - int(query["fromBlock"], 16) >= self._widest:
                raise RpcRefused(method, -32005, "block range too wide")
            self._left -= 1
            if self._left < 0:
                raise RpcUnavailable("the node went away")
        return await self._inner.call(method, *params)

    async def close(self) -> None:
        return


async def test_a_scan_goes_on_where_it_was_cut_off_and_takes_any_node(
    market: TestMarket, worker: FakeWorker, mine: Purse
) -> None:
    async with mine.process() as (client, funds):
        await trade(market, worker, mine, client)
        whole = (await funds.invoice(*EVER)).lines
    for file in mine.folder.glob("client.db*"):
        file.unlink()
    async with mine.process() as (client, funds):
        cuts = 0
        while cuts < MOST_CUTS:
            rpc = NarrowRpc(market.rpc, 2, 3)
            reader = ChainReader(rpc, market.deployment)
            history = History(client.store.logs, reader, mine.payer.address)
            try:
                await history.read()
                break
            except RpcUnavailable:
                cuts += 1
        assert 1 < cuts < MOST_CUTS
        logged = [event.log for event in await history.events() if event.name != "ChannelOpened"]
        assert logged == [line.event.log for line in whole]
