"""Budgets in the journal: held before a job is signed, paid from, and free again after its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from piecework.client.errors import StoreError
from piecework.client.jobs.spending import Spending
from piecework.client.journal.budgets import (
    DAY_S,
    LATE_S,
    BudgetTooSmall,
    Shortage,
    day_of,
    month_of,
)
from piecework.client.journal.records import ChannelStatus, JobRow, JobStatus, Limits, Part
from piecework.client.journal.store import Store
from piecework.client.limits import FUNDING_GRACE_S
from piecework_protocol.types import Amount, Timestamp
from tests.support.chain.fake_chain import DOMAIN, TOKEN_INFO
from tests.support.client.client_side import PAYER, FakeClock
from tests.support.market.offers import offer
from tests.support.system.dying_database import deaths
from tests.support.waiting import until
from tests.unit.client.test_store import (
    CHANNEL,
    NOW,
    UNTIL,
    accepted,
    canvas,
    exactly,
    job_row,
    seen,
    terms,
)
from tests.vectors import client_databases

TEN = Limits(per_day=Amount(1000))
NEVER = Timestamp(0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


@pytest.fixture
def store(file: Path) -> Store:
    store = Store(file, DOMAIN, PAYER.address)
    store.open_channel(terms())
    limits = Limits(Amount(500), Amount(800), Amount(300))
    store.api_keys.add("alice", "pw-alice", limits, now=NOW, expires_at=NEVER)
    return store


def held(found: tuple[int, ...] | Shortage) -> tuple[int, ...]:
    assert not isinstance(found, Shortage)
    return found


def short(found: object) -> Shortage:
    assert isinstance(found, Shortage)
    return found


def test_all_parts_are_held_or_none(store: Store) -> None:
    parts = [Amount(400)] * 3
    refused = short(store.budgets.reserve("", parts, TEN, NOW, UNTIL))
    assert (refused.period, refused.limit, refused.left, refused.needed) == (
        "day",
        1000,
        1000,
        1200,
    )
    assert store.budgets.used("", NOW).held == 0
    assert len(held(store.budgets.reserve("", parts[:2], TEN, NOW, UNTIL))) == 2
    assert store.budgets.used("", NOW).held == 800
    store.close()


def test_what_one_key_holds_counts_for_the_client_and_for_no_other_key(store: Store) -> None:
    store.api_keys.add("bob", "pw-bob", Limits(Amount(900)), now=NOW, expires_at=NEVER)
    held(store.budgets.reserve("alice", [Amount(300)], TEN, NOW, UNTIL))
    assert store.budgets.left(Part("alice"), TEN, NOW) == 200
    assert store.budgets.left(Part("bob"), TEN, NOW) == 700
    assert short(store.budgets.reserve("bob", [Amount(701)], TEN, NOW, UNTIL)).budget == ""
    assert short(store.budgets.reserve("alice", [Amount(201)], TEN, NOW, UNTIL)).budget == "alice"
    store.close()


def test_a_month_outlasts_its_days(store: Store) -> None:
    for day in range(2):
        moment = Timestamp(NOW + day * DAY_S)
        (hold,) = held(store.budgets.reserve("alice", [Amount(400)], Limits(), moment, UNTIL))
        job = job_row(day + 1, 400, now=moment)
        store.admit(job, None, exactly, UNTIL, part=Part("alice", hold))
        store.pay(canvas(job, 0, 400), job.channel_id, None)
        store.finish(job.id, JobStatus.COMPLETE)
    third = Timestamp(NOW + 2 * DAY_S)
    assert month_of(day_of(NOW)) == month_of(day_of(third))
    assert (
        short(store.budgets.reserve("alice", [Amount(1)], Limits(), third, UNTIL)).period == "month"
    )
    following = Timestamp(month_of(day_of(NOW)).stop * DAY_S)
    assert held(store.budgets.reserve("alice", [Amount(500)], Limits(), following, following))
    store.close()


def test_months_are_those_of_the_calendar() -> None:
    assert month_of(0) == range(31)
    assert month_of(31 + 5) == range(31, 59)
    leap = day_of(Timestamp(1_709_164_800))  # 2024-02-29
    assert len(month_of(leap)) == 29
    assert month_of(leap).stop == leap + 1


def test_a_canvas_is_counted_when_it_is_paid_and_the_rest_stays_held(store: Store) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL, part=Part("alice", hold))
    store.pay(canvas(job, 0, 30), job.channel_id, None)
    used = store.budgets.used("alice", NOW)
    assert (used.day, used.month, used.held) == (100, 100, 70)
    store.finish(job.id, JobStatus.COMPLETE)
    assert store.budgets.used("alice", NOW).day == 30
    # A canvas that is paid after the job's end counts too.
    store.pay(canvas(job, 1, 5), job.channel_id, None)
    assert store.budgets.used("", NOW).day == store.budgets.used("alice", NOW).day == 35
    store.close()


def test_a_job_counts_on_the_day_on_which_it_was_reserved(store: Store) -> None:
    midnight = Timestamp((day_of(NOW) + 1) * DAY_S)
    before = Timestamp(midnight - 1)
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, before, UNTIL))
    job = job_row(1, 100, now=midnight)
    store.admit(job, None, exactly, UNTIL, part=Part("alice", hold))
    store.pay(canvas(job, 0, 30), job.channel_id, None)
    assert store.budgets.used("alice", before).day == 100
    assert store.budgets.used("alice", midnight).day == 0
    store.close()


def test_a_declined_job_leaves_its_hold_to_the_next_worker(store: Store) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    part = Part("alice", hold)
    first, second = job_row(1, 100), job_row(2, 150)
    store.admit(first, None, exactly, UNTIL, part=part)
    store.finish(first.id, JobStatus.REFUSED)
    assert store.budgets.used("alice", NOW).held == 100
    assert store.budgets.cover(part, [Amount(150)], TEN, NOW, UNTIL) == (hold,)
    assert store.budgets.used("alice", NOW).held == 150
    store.admit(second, None, exactly, UNTIL, part=part)
    store.budgets.release(hold)
    assert store.budgets.used("alice", NOW).held == 150
    store.finish(second.id, JobStatus.CANCELLED)
    assert store.budgets.used("alice", NOW).held == 0
    store.close()


def test_a_job_that_a_silent_worker_may_have_taken_keeps_its_hold(store: Store) -> None:
    """The next worker's job needs another one. Both may come to cost something."""
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    store.admit(job_row(1, 100), None, exactly, UNTIL, part=Part("alice", hold))
    again = store.budgets.cover(Part("alice", hold), [Amount(100)], TEN, NOW, UNTIL)
    assert held(again) != (hold,)
    assert store.budgets.used("alice", NOW).held == 200
    late = Timestamp(NOW + 600 + LATE_S + 1)
    assert store.budgets.used("alice", late).held == 100
    store.close()


def test_a_job_without_a_hold_holds_its_ceiling_itself(store: Store) -> None:
    job = job_row(1, 100)
    store.admit(job, None, exactly, UNTIL)
    store.pay(canvas(job, 0, 30), job.channel_id, None)
    used = store.budgets.used("", NOW)
    assert (used.day, used.held) == (100, 70)
    declined = job_row(2, 50)
    store.admit(declined, None, exactly, UNTIL)
    store.finish(declined.id, JobStatus.REFUSED)
    store.finish(job.id, JobStatus.COMPLETE)
    used = store.budgets.used("", NOW)
    assert (used.day, used.held) == (30, 0)
    store.close()


def test_a_hold_that_has_ended_admits_no_job(store: Store) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    store.budgets.release(hold)
    with pytest.raises(StoreError, match="has ended"):
        store.admit(job_row(1, 100), None, exactly, UNTIL, part=Part("alice", hold))
    assert store.jobs() == ()
    store.close()


def test_a_dead_process_holds_nothing_that_no_job_has(store: Store, file: Path) -> None:
    other = Store(file, DOMAIN, PAYER.address)
    held(other.budgets.reserve("alice", [Amount(400)], TEN, NOW, UNTIL))
    assert short(store.budgets.reserve("alice", [Amount(101)], TEN, NOW, UNTIL)).left == 100
    other.close()
    assert held(store.budgets.reserve("alice", [Amount(500)], TEN, NOW, UNTIL))
    store.close()


def test_a_budget_of_a_key_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no API key 'carol'"):
        store.budgets.reserve("carol", [Amount(1)], TEN, NOW, UNTIL)
    store.close()


@pytest.mark.parametrize("version", [2, 3])
def test_what_was_paid_before_there_were_budgets_counts_on_its_day(
    version: int, tmp_path: Path
) -> None:
    store = Store(client_databases.unpacked(version, tmp_path), DOMAIN, PAYER.address)
    used = store.budgets.used("", NOW)
    assert (used.day, used.month, used.held) == (33, 33, 0)
    store.close()


# --- killed


def spend_some(file: Path) -> None:
    """What a process does that is killed before one of its writes."""
    store = Store(file, DOMAIN, PAYER.address)
    found = store.budgets.reserve("alice", [Amount(60), Amount(40)], TEN, NOW, UNTIL)
    first, second = (Part("alice", hold) for hold in held(found))
    done, left = job_row(1, 60), job_row(2, 40)
    store.admit(done, None, exactly, UNTIL, part=first)
    store.pay(canvas(done, 0, 10), done.channel_id, None)
    store.admit(left, None, exactly, UNTIL, part=second)
    store.pay(canvas(left, 0, 7), left.channel_id, None)
    store.finish(done.id, JobStatus.COMPLETE)
    ceilings = [Amount(50), Amount(20), Amount(20)]
    again, *reports = held(store.budgets.cover(first, ceilings, TEN, NOW, UNTIL))
    declined = replace(first, hold=again, audits=tuple(reports))
    refused = job_row(3, 50)
    store.admit(refused, None, exactly, UNTIL, part=declined)
    store.finish(refused.id, JobStatus.REFUSED)
    store.budgets.release(declined.hold or 0)
    audit = job_row(4, 20)
    store.admit(audit, None, exactly, UNTIL, part=Part("alice", reports[0]))
    store.pay(canvas(audit, 0, 6), audit.channel_id, None)
    store.finish(audit.id, JobStatus.COMPLETE)
    store.budgets.release(reports[1])
    store.close()


@pytest.mark.process
@pytest.mark.kill
def test_a_kill_before_any_write_loses_nothing_and_keeps_nothing_for_good(
    store: Store, file: Path, tmp_path: Path
) -> None:
    store.close()
    folder = tmp_path / "killed"
    died = deaths("tests.unit.client.test_budgets:spend_some", file, folder)
    assert died > 20
    seen = set()
    for number in range(died + 1):
        copy = Store(folder / f"{number}.db", DOMAIN, PAYER.address)
        paid = sum(row.receipt.amount for row in copy.receipts())
        live = {job.id for job in copy.jobs(status=JobStatus.LIVE)}
        open_ceilings = sum(
            job.submission.job.max_amount - sum(r.receipt.amount for r in copy.receipts(job=job.id))
            for job in copy.jobs(status=JobStatus.LIVE)
        )
        for name in ("", "alice"):
            used = copy.budgets.used(name, NOW)
            assert used.held == open_ceilings, (number, live)
            assert used.day == paid + open_ceilings
        later = Timestamp(NOW + 600 + LATE_S + 1)
        assert copy.budgets.left(Part("alice"), TEN, later) == 500 - paid
        assert copy.budgets.used("alice", later).held == 0
        seen.add((paid, len(live)))
        copy.close()
    assert {(0, 0), (0, 1), (10, 1), (10, 2), (17, 2), (17, 1), (23, 1)} <= seen


def test_a_job_and_its_audits_are_covered_together_or_not_at_all(store: Store) -> None:
    ceilings = [Amount(200), Amount(100), Amount(100)]
    part = Part("alice")
    hold, *audits = held(store.budgets.cover(part, ceilings, TEN, NOW, UNTIL))
    part = replace(part, hold=hold, audits=tuple(audits))
    assert store.budgets.used("alice", NOW).held == 400
    dearer = [Amount(200), Amount(151), Amount(150)]
    refused = short(store.budgets.cover(part, dearer, TEN, NOW, UNTIL))
    assert (refused.left, refused.needed) == (100, 101)
    assert store.budgets.used("alice", NOW).held == 400
    dearer = [Amount(100), Amount(150), Amount(150)]
    assert held(store.budgets.cover(part, dearer, TEN, NOW, UNTIL)) == (hold, *audits)
    assert store.budgets.used("alice", NOW).held == 500
    store.close()


def test_holds_are_gone_from_the_file_and_not_only_from_the_sum(store: Store, file: Path) -> None:
    other = Store(file, DOMAIN, PAYER.address)
    held(other.budgets.reserve("alice", [Amount(1)] * 50, TEN, NOW, UNTIL))
    other.close()
    (mine,) = held(store.budgets.reserve("alice", [Amount(1)], TEN, NOW, UNTIL))
    with closing(apsw.Connection(str(file))) as db:
        assert db.execute("SELECT id FROM holds").fetchall() == [(mine,)]
    store.close()


# --- cancelled


class HeldCommits:
    """Commits that wait for a test. Implements `Committer`."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], object]] = []

    def submit(self, work: Callable[[], object], /) -> None:
        self._waiting.append(work)

    def shutdown(self) -> None:
        """Do what waits."""
        while self._waiting:
            self._waiting.pop(0)()

    @property
    def begun(self) -> bool:
        """Whether a commit waits."""
        return bool(self._waiting)


async def test_a_caller_that_is_cancelled_while_it_reserves_holds_nothing(
    store: Store, file: Path
) -> None:
    commits, clock = HeldCommits(), FakeClock()
    mine = Store(file, DOMAIN, PAYER.address, committer=commits)
    spending = Spending(mine.budgets, TEN, TOKEN_INFO, clock, lifetime_s=900)
    asking = asyncio.create_task(spending.reserve([Part()] * 2, [Amount(100)] * 2))
    await until(lambda: commits.begun)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert others  # the write that goes on
    commits.shutdown()
    await asyncio.gather(*others)
    await asyncio.sleep(0)
    assert mine.budgets.used("", Timestamp(int(clock.wall()))).held == 0
    mine.close()
    store.close()


def admitted(store: Store, seed: int, hold: int, *, fee: int = 40, whole: Limits = TEN) -> JobRow:
    """A job of alice whose worker asks a fee for its channel."""
    asks = offer(open_fee=Amount(fee), top_up_fee=Amount(fee))
    job = replace(job_row(seed, 100), offer=asks)
    store.admit(job, None, exactly, UNTIL, part=Part("alice", hold), whole=whole)
    return job


def test_a_fee_counts_from_its_signature_on(store: Store) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    job = admitted(store, 1, hold)
    for name in ("alice", ""):
        used = store.budgets.used(name, NOW)
        assert (used.day, used.held) == (140, 100)
    store.accepted(job.id, accepted(job))
    store.finish(job.id, JobStatus.COMPLETE)
    store.seen_on_chain(CHANNEL, seen(100), ChannelStatus.OPEN)
    assert store.budgets.used("alice", NOW).day == 40
    store.close()


def test_a_fee_that_no_budget_covers_is_not_signed(store: Store) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    with pytest.raises(BudgetTooSmall) as caught:
        admitted(store, 1, hold, fee=401)
    assert (caught.value.shortage.needed, caught.value.shortage.left) == (401, 400)
    assert not store.jobs() and store.channel(CHANNEL).authorized == 0
    admitted(store, 1, hold, fee=400)
    assert store.budgets.used("alice", NOW).day == 500
    store.close()


def test_the_fee_of_a_declined_job_is_given_back_until_the_chain_shows_its_use(
    store: Store,
) -> None:
    (hold,) = held(store.budgets.reserve("alice", [Amount(100)], TEN, NOW, UNTIL))
    for seed in (1, 2):
        job = admitted(store, seed, hold)
        assert store.budgets.used("alice", NOW).day == 140
        store.finish(job.id, JobStatus.REFUSED, "BUSY")
        assert store.budgets.used("alice", NOW).day == 100
    store.budgets.release(hold)
    store.seen_on_chain(CHANNEL, seen(100), ChannelStatus.OPEN)
    assert store.budgets.used("alice", NOW).day == store.budgets.used("", NOW).day == 40
    store.close()


def test_a_renewed_authorization_has_one_fee(store: Store) -> None:
    first, second = held(
        store.budgets.reserve("alice", [Amount(100), Amount(100)], TEN, NOW, UNTIL)
    )
    admitted(store, 1, first)
    admitted(store, 2, second)  # for a larger total, while no worker has taken the first
    assert store.channel(CHANNEL).authorized == 200
    assert store.budgets.used("alice", NOW).day == 240
    store.close()


def test_the_fee_of_an_authorization_that_ended_unused_is_given_back(store: Store) -> None:
    first, second = held(
        store.budgets.reserve("alice", [Amount(100), Amount(100)], TEN, NOW, UNTIL)
    )
    job = admitted(store, 1, first)
    store.accepted(job.id, accepted(job))
    store.finish(job.id, JobStatus.FAILED)
    assert store.budgets.used("alice", NOW).day == 140
    later = Timestamp(UNTIL + FUNDING_GRACE_S + 1)
    asks = offer(open_fee=Amount(40))
    again = replace(job_row(2, 100, now=later), offer=asks, created_at=later)
    until = Timestamp(later + 3600)
    store.admit(again, None, exactly, until, part=Part("alice", second), whole=TEN)
    assert store.budgets.used("alice", NOW).day == 140
    store.close()
