"""The table of earnings adds up to what vouchers promise, and to what transactions cost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework.chain.deployment import Deployment
from piecework_node.daemon.console_feed import EarningsBook
from piecework_node.errors import ConfigError, JournalLocked
from piecework_node.home import Home
from piecework_node.journal.records import (
    OfferIssued,
    PaidJob,
    StoredTx,
    TxKind,
    TxMoved,
    TxState,
    Worth,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_node.operations.earnings import (
    DAY_COLUMNS,
    ChainIncome,
    EarnedBalance,
    Period,
    balance,
    by_day,
    by_job,
    table,
)
from piecework_node.operations.registration import prepare_home
from piecework_protocol.frames import LeafRef
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Seconds,
    Timestamp,
    parse_address,
)
from tests.support.clock import FakeClock
from tests.support.node.journal_life import DAY_S, Life, opened
from tests.support.node.records import TRANSACTION
from tests.vectors import generate

COIN_PRICE = 3_000_000_000
FEE_WEI = 10**12 + 1


async def test_days_and_jobs_add_up_to_the_accepted_vouchers(tmp_path: Path) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    for day in range(3):
        for _ in range(day + 1):
            await life.job()
        clock.advance(DAY_S)
    await life.job(pay=False)
    time = Timestamp(int(clock.wall()))
    worth = Worth(Amount(99), None)
    await life.journal.append([StoredTx(TxKind.SETTLE, TRANSACTION, (), worth, time)])
    await life.journal.append([TxMoved(TRANSACTION.hash, TxState.FINAL, time, 50_000, FEE_WEI)])
    paid = await life.journal.paid_jobs(0, 2**40)
    spent = await life.journal.spent(0, 2**40)
    accepted = (await life.journal.earnings()).accepted
    await life.journal.close()
    days = by_day(paid, spent, COIN_PRICE)
    assert [row[1] for row in days] == [1, 2, 3, 0]
    assert sum(int(row[3]) for row in days) == accepted
    assert days[-1][4] == 0, "a settlement is paid by its claims"
    assert days[-1][5] == FEE_WEI and days[-1][6] == FEE_WEI * COIN_PRICE // 10**18 + 1
    assert all(int(row[7]) == int(row[3]) + int(row[4]) - int(row[6]) for row in days)
    assert sum(int(row[4]) for row in by_job(paid)) == accepted
    assert len(by_job(paid)) == 6


async def lately(life: Life, since: int) -> tuple[PaidJob, ...]:
    """All pages of the newest jobs."""
    return tuple([job async for page in life.journal.paid_lately(since) for job in page])


def paid_job(number: int, channel: int, gross: int, at: int = 10) -> PaidJob:
    name = ChannelId(Bytes32(bytes([channel]) * 32))
    return PaidJob(JobId(bytes([number]) * 32), name, Timestamp(at), 1, Amount(gross), None)


def came(
    channel: int, *, settled: int = 0, fee: int = 0, at: int = 20, last: bool = False, **more: int
) -> Any:
    amounts = {name: Amount(value) for name, value in more.items()}
    paid, brought = Amount(settled), Amount(fee)
    return ChainIncome(named(channel), Timestamp(at), paid, brought, last, **amounts)


def named(channel: int) -> ChannelId:
    return ChannelId(Bytes32(bytes([channel]) * 32))


def test_what_was_promised_is_settled_waits_or_is_lost() -> None:
    jobs = [paid_job(1, 1, 70), paid_job(2, 1, 30), paid_job(3, 2, 50), paid_job(4, 3, 8)]
    income = [
        came(1, fee=5, funded=200),
        came(1, settled=70),
        came(2, funded=50),
        came(2, settled=40),
        came(2, fee=2, last=True),
        came(4, fee=3, funded=1),
    ]
    held = balance(jobs, income, {named(3): Amount(9)})
    losses = (f"channel 0x{'02' * 32}: 10 lost, because it is closed",)
    assert held == EarnedBalance(
        158, settled=110, waiting=30 + 8, lost=10, fees=10, losses=losses, troubles=()
    )


@pytest.mark.parametrize(
    ("income", "to_come", "lost", "why"),
    [
        ([], 0, 100, "its opening was never mined"),
        ([], 100, 0, ""),
        ([], 60, 40, "no deposit reaches that far"),
        ([{"funded": 100}], 0, 0, ""),
        ([{"funded": 70}], 0, 30, "no deposit reaches that far"),
        ([{"funded": 70}], 100, 0, ""),
        ([{"funded": 70}, {"settled": 70}], 50, 30, "no deposit reaches that far"),
        ([{"funded": 70}, {"funded": 30}, {"settled": 60}], 0, 0, ""),
        ([{"funded": 150}, {"withdrawn": 50}], 0, 0, ""),
        ([{"funded": 150}, {"withdrawn": 60}], 0, 10, "the payer has withdrawn 60"),
        ([{"funded": 150}, {"settled": 90}, {"withdrawn": 60}], 0, 10, "has withdrawn 60"),
        ([{"funded": 100}, {"withdrawn": 60}], 140, 20, "the payer has withdrawn 60"),
        ([{"funded": 100}, {"withdrawn": 100}, {"funded": 100}], 0, 0, ""),
        ([{"funded": 100}, {"settled": 20}, {"last": True}], 200, 80, "it is closed"),
    ],
)
def test_what_no_channel_can_pay_is_lost_and_says_why(
    income: list[dict[str, Any]], to_come: int, lost: int, why: str
) -> None:
    events = [came(1, **event) for event in income]
    held = balance([paid_job(1, 1, 100)], events, {named(1): Amount(to_come)} if to_come else {})
    assert held.lost == lost and held.gross == held.settled + held.waiting + held.lost == 100
    assert not held.troubles
    assert [line.split(": ")[1].split(", because ")[0] for line in held.losses] == (
        [f"{lost} lost"] if lost else []
    )
    assert all(line.endswith(why) for line in held.losses)


def test_a_payment_without_receipts_in_the_journal_is_named() -> None:
    held = balance([paid_job(1, 1, 70)], [came(1, settled=71), came(2, settled=4)], {})
    assert [line.split(": ")[1] for line in held.troubles] == [
        "the escrow has paid 71, this journal has receipts for 70",
        "the escrow has paid 4, this journal has receipts for 0",
    ]


def test_a_fee_that_another_sender_brought_counts_on_its_day() -> None:
    later = [came(1, funded=9, at=2 * DAY_S), came(1, withdrawn=9, at=3 * DAY_S)]
    rows = by_day([paid_job(1, 1, 70)], (), COIN_PRICE, [came(1, fee=5, at=DAY_S), came(1), *later])
    assert rows == [
        ("1970-01-01", 1, 1, 70, 0, 0, 0, 70, 0),
        ("1970-01-02", 0, 0, 0, 5, 0, 0, 5, 0),
    ]


class CountedJobs(list[PaidJob]):
    """Counts how often somebody goes through it."""

    walks = 0

    def __iter__(self) -> Iterator[PaidJob]:
        self.walks += 1
        return super().__iter__()


def test_the_table_goes_through_the_jobs_once_however_many_days_it_has() -> None:
    jobs = CountedJobs(paid_job(n, 1, n, at=n // 2 * DAY_S) for n in range(100))
    rows = by_day(jobs, (), COIN_PRICE)
    assert [row[3] for row in rows] == [4 * n + 1 for n in range(50)]
    assert jobs.walks == 1


@pytest.mark.parametrize(
    ("kind", "state", "fees"),
    [
        (TxKind.FUND, TxState.FINAL, 99),
        (TxKind.CLOSE, TxState.MINED, 99),
        (TxKind.FUND, TxState.FAILED, 0),
        (TxKind.PUSH, TxState.FINAL, 0),
    ],
)
async def test_the_fees_of_transactions_that_came_about_are_earned(
    tmp_path: Path, kind: TxKind, state: TxState, fees: int
) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    time = Timestamp(int(clock.wall()))
    await life.journal.append([StoredTx(kind, TRANSACTION, (), Worth(Amount(99), None), time)])
    await life.journal.append([TxMoved(TRANSACTION.hash, state, time, 50_000, FEE_WEI)])
    ((_, _, _, _, earned, *_),) = by_day((), await life.journal.spent(0, 2**40), COIN_PRICE)
    await life.journal.close()
    assert earned == fees


async def test_a_period_holds_its_first_and_its_last_day(tmp_path: Path) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    for _ in range(3):
        await life.job()
        clock.advance(DAY_S)
    whole = by_job(await life.journal.paid_jobs(0, 2**40))
    second = str(whole[1][0])
    assert by_job(await life.journal.paid_jobs(*Period.parse(second, second).seconds)) == [whole[1]]
    await life.journal.close()


async def test_the_newest_jobs_are_found_from_the_end_with_the_offers_that_they_named(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    for _ in range(3):
        await life.job()
        clock.advance(DAY_S)
    everything = await life.journal.paid_jobs(0, 2**40)
    assert await lately(life, 0) == everything
    assert await lately(life, everything[1].at) == everything[1:]
    assert await lately(life, 2**40) == ()
    assert all(job.offer is not None for job in everything)
    await life.journal.close()


async def test_a_paid_job_names_its_entry_and_its_tokens_until_its_evidence_is_gone(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    for entry in (0, 3):
        await life.job(entry=entry)
    paid = await lately(life, 0)
    assert [(job.entry, job.tokens) for job in paid] == [(0, 4), (3, 4)]
    clock.advance(DAY_S)
    assert await life.prune()
    pruned = await lately(life, 0)
    assert [(job.offer, job.entry, job.tokens) for job in pruned] == [(None, None, None)] * 2
    assert [job.gross for job in pruned] == [job.gross for job in paid]
    await life.journal.close()


class PagedJournal:
    """Implements `BookJournal`: the journal's own pages, of a size of the test."""

    def __init__(self, inner: SqliteJournal, page: int) -> None:
        self._inner, self._page = inner, page
        self.largest = 0
        self.spent, self.channel, self.offer = inner.spent, inner.channel, inner.offer

    async def paid_lately(self, since: int) -> AsyncIterator[tuple[PaidJob, ...]]:
        async for page in self._inner.paid_lately(since, page=self._page):
            self.largest = max(self.largest, len(page))
            yield page


class WholeJournal:
    """Implements `BookJournal`, and reads everything at once."""

    def __init__(self, inner: SqliteJournal, accepted: Sequence[tuple[JobId, int]]) -> None:
        """accepted: each job and the time of its acceptance, as they came."""
        self._inner, self._accepted = inner, accepted
        self.spent, self.channel, self.offer = inner.spent, inner.channel, inner.offer

    async def paid_lately(self, since: int) -> AsyncIterator[tuple[PaidJob, ...]]:
        older = [place for place, (_, at) in enumerate(self._accepted) if at < since]
        newest = [job for job, _ in self._accepted[max(older, default=-1) + 1 :]]
        paid = {one.job: one for one in await self._inner.paid_jobs(0, 2**40)}
        yield tuple(paid[job] for job in newest if job in paid)


async def fill(life: Life, clock: FakeClock, chance: random.Random) -> list[tuple[JobId, int]]:
    """Write a random journal of about two weeks. Return the jobs and when they came."""
    accepted, owed = [], list[LeafRef]()
    for number in range(120):
        clock.advance(chance.choice((0, 60, 3 * 3600, 8 * 3600, -5 * 3600)))
        amounts = [chance.randrange(10**24) for _ in range(chance.randint(1, 4))]
        paid = chance.random() < 0.8
        ref = await life.job(pay=paid, entry=chance.randrange(3), amounts=amounts)
        accepted.append((ref.job, int(clock.wall())))
        owed += [] if paid else [ref]
        if owed and chance.random() < 0.2:
            await life.pay(owed.pop(chance.randrange(len(owed))))
        if number == 60:
            await life.prune()
    return accepted


@pytest.mark.parametrize("page", [1, 7, 500])
async def test_sums_of_pages_are_the_sums_of_the_whole_journal(tmp_path: Path, page: int) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    await life.journal.append([OfferIssued(Digest(bytes(32)), generate.offers()["2 models"])])
    accepted = await fill(life, clock, random.Random(page))
    paged, whole = PagedJournal(life.journal, page), WholeJournal(life.journal, accepted)
    books = EarningsBook(paged, COIN_PRICE), EarningsBook(whole, COIN_PRICE)
    for step in (0, 1800, 2 * 3600):
        clock.advance(step)
        accepted.append(((await life.job(entry=1)).job, int(clock.wall())))
        found = []
        for book in books:
            now = int(clock.wall())
            await book.refresh(now)
            joules = {now // 3600 - back: 10.0 + back for back in range(0, 200, 2)}
            shares = book.by_model(now, joules), book.by_client(now, joules)
            found.append((book.hours(now, joules), book.days(now, joules), *shares, book.costs()))
        assert found[0] == found[1]
        assert len(found[0][1]) > 5 and len(found[0][2]) == 3
    assert 0 < paged.largest <= page
    await life.journal.close()


async def test_the_first_job_of_a_time_is_found_look_by_look(tmp_path: Path) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    times = []
    for _ in range(12):
        times.append(int(clock.wall()))
        await life.job()
        clock.advance(DAY_S)
    for start, time in enumerate(times):
        pages = [page async for page in life.journal.paid_lately(time, look=5)]
        assert [job.at for page in pages for job in page] == times[start:]
    await life.journal.close()


@pytest.mark.parametrize(
    ("first", "last"), [("soon", ""), ("2027-02-30", ""), ("2027-01-02", "2027-01-01")]
)
def test_dates_that_are_none_are_refused(first: str, last: str) -> None:
    with pytest.raises(ConfigError):
        Period.parse(first, last)


async def test_the_table_of_a_running_worker_says_why_it_has_to_wait(tmp_path: Path) -> None:
    home = Home(tmp_path)
    deployment = Deployment(
        31337, Address(b"\x03" * 20), "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600)
    )
    prepare_home(home, deployment, {"payout": "0x" + "22" * 20}, "password", Timestamp(1))
    operator = parse_address("0x" + keystore_address(home.operator))
    running = await SqliteJournal.open(home.journal, deployment.domain, operator)
    with pytest.raises(JournalLocked, match=r"the worker runs.*without --csv"):
        await table(tmp_path, Period.parse("", ""), jobs=False)
    with pytest.raises(apsw.BusyError):
        reader = apsw.Connection(str(home.journal), apsw.SQLITE_OPEN_READONLY)
        reader.execute("SELECT count(*) FROM jobs").fetchall()
    await running.close()
    assert await table(tmp_path, Period.parse("", ""), jobs=False) == [DAY_COLUMNS]
