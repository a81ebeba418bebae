"""Budgets: what was spent, what is held for jobs, and what is left. Part of the journal.

A hold keeps a part of the budgets for one job. It is made before the job is signed, goes over to
the job in the transaction that records it, shrinks by every receipt that is paid, and ends with the
job. What was paid is counted in the transaction that pays it, and the fee of a funding
authorization in the one that records it (`journal.fees`). So a kill at any moment leaves every
budget with what was paid and with what may still be paid, and with nothing else.

A hold without a job ends with its process. One of a job that nobody follows any more ends a little
after the job's deadline. Later payments still count.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Final

import apsw

from piecework.base.errors import PieceworkError
from piecework.client.errors import StoreError
from piecework.client.journal.database import Database
from piecework.client.journal.owners import NOBODY, Owner
from piecework.client.journal.records import JobStatus, Limits, Part
from piecework_protocol.types import Amount, JobId, Timestamp

DAY_S: Final = 86_400
LATE_S: Final = 60
"""After a job's deadline, for the last payment of what was delivered before it."""
WHOLE: Final = ""
"""The budget that every job counts in: the client's own."""
NO_FEE: Final = Amount(0)
_EPOCH: Final = date(1970, 1, 1)


def day_of(now: Timestamp) -> int:
    """Return the UTC day of a moment, as days since 1970-01-01."""
    return now // DAY_S


def month_of(day: int) -> range:
    """Return the days of the UTC month that a day lies in."""
    first = (_EPOCH + timedelta(days=day)).replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return range((first - _EPOCH).days, (following - _EPOCH).days)


@dataclass(frozen=True, slots=True)
class Used:
    """What a budget has used of one day and its month: paid, and held for jobs. Base units."""

    day: Amount
    month: Amount
    held: Amount


@dataclass(frozen=True, slots=True)
class Shortage:
    """A budget that is too small for what was to be reserved.

    Attributes:
        budget: The name of the API key, or "" for the client as a whole.
        period: "day" or "month".
        limit: The budget, in base units.
        left: What is left of it.
        needed: What was to be reserved.
    """

    budget: str
    period: str
    limit: Amount
    left: Amount
    needed: Amount


class BudgetTooSmall(PieceworkError):
    """A budget has too little left for the fee of an authorization. Nothing was recorded."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(shortage.period)
        self.shortage = shortage


class Budgets:
    """The tables `holds` and `spent` of the journal."""

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database, self._owner = database, owner
        self.run = database.run

    def reserve(
        self,
        budget: str,
        ceilings: Sequence[Amount],
        whole: Limits,
        now: Timestamp,
        until: Timestamp,
        *,
        fee: Amount = NO_FEE,
    ) -> tuple[int, ...] | Shortage:
        """Keep a part of the budgets for each of several jobs. All of them, or nothing.

        Args:
            budget: The name of the API key that pays, or "".
            ceilings: The most that each job may cost.
            whole: The limits of the client as a whole.
            now: The moment. Its day and month count.
            until: When a hold ends that no job was recorded for.
            fee: What the first of the jobs signs beside its ceiling. There must be room for it. It
                is not held, because nobody knows which job is the first.

        Returns:
            One hold for each ceiling, or what stands against it. Then nothing is held.

        Raises:
            StoreError: there is no API key of this name.
        """
        with self._database.change("reserve budgets", durable=False) as db:
            self._sweep(db, now)
            total = Amount(sum(ceilings) + fee)
            short = _shortage(db, budget, total, whole, day_of(now))
            if short is not None:
                return short
            return tuple(
                _insert(db, budget, day_of(now), ceiling, until, self._owner.name)
                for ceiling in ceilings
            )

    def cover(
        self,
        part: Part,
        ceilings: Sequence[Amount],
        whole: Limits,
        now: Timestamp,
        until: Timestamp,
    ) -> tuple[int, ...] | Shortage:
        """See that a part's holds are at least this large, and make those that there are not.

        A hold that went over to a job stays with it: that job may still have to be paid.

        Args:
            part: Whose holds: its job's, and then those of its audits.
            ceilings: The most that each may cost, in the same order. All are held, or none.
            whole: The limits of the client as a whole.
            now: The moment.
            until: When a hold ends that no job was recorded for.

        Returns:
            One hold for each ceiling, or what stands against it. Then nothing has changed.

        Raises:
            StoreError: there is no API key of this name.
        """
        with self._database.change("raise a hold", durable=False) as db:
            self._sweep(db, now)
            keys = (part.hold, *part.audits, *itertools.repeat(None, len(ceilings)))
            rows = [_row(db, key) for key in keys[: len(ceilings)]]
            day = next((found[1] for found in rows if found is not None), day_of(now))
            amounts = [
                Amount(ceiling if found is None else max(ceiling, found[0]))
                for ceiling, found in zip(ceilings, rows, strict=True)
            ]
            more = Amount(sum(amounts) - sum(found[0] for found in rows if found is not None))
            short = _shortage(db, part.budget, more, whole, day) if more else None
            if short is not None:
                return short
            return tuple(
                _insert(db, part.budget, day, amount, until, self._owner.name)
                if key is None or found is None
                else _raised(db, key, amount, until)
                for key, found, amount in zip(keys, rows, amounts, strict=False)
            )

    def release(self, hold: int) -> None:
        """Give a hold up, unless a job has it. That job's end gives it up."""
        with self._database.read() as db:
            free = _row(db, hold)
        if free is not None:
            with self._database.change("release a hold", durable=False) as db:
                db.execute("DELETE FROM holds WHERE id = ? AND job IS NULL", (hold,))

    def left(self, part: Part, whole: Limits, now: Timestamp) -> Amount | None:
        """Return what is left for a part beside what others hold. None: there is no limit.

        Raises:
            StoreError: there is no API key of this name.
        """
        if part.budget == WHOLE and whole == Limits():
            return None
        with self._database.read() as db:
            counts = self._counts(db, now)
            rooms = [room.left for room in _rooms(db, part.budget, whole, day_of(now), counts)]
            found = _row(db, part.hold)
        if not rooms:
            return None
        return Amount(min(rooms) + (found[0] if found is not None else 0))

    def used(self, budget: str, now: Timestamp) -> Used:
        """Return what a budget has used of this day and month."""
        with self._database.read() as db:
            counts = self._counts(db, now)
            day, held = day_of(now), _held(db, budget, range(1 << 40), counts)
            return Used(
                _used(db, budget, range(day, day + 1), counts),
                _used(db, budget, month_of(day), counts),
                held,
            )

    def limits(self, budget: str) -> Limits:
        """Return the limits of an API key, or none for "".

        Raises:
            StoreError: there is no API key of this name.
        """
        if budget == WHOLE:
            return Limits()
        with self._database.read() as db:
            return _limits(db, budget)

    def _counts(self, db: apsw.Connection, now: Timestamp) -> _Counts:
        """Tell which holds count at a moment."""
        owners = _rows(db, "SELECT DISTINCT owner FROM holds WHERE job IS NULL")
        dead = frozenset(owner for (owner,) in owners if not self._owner.follows(owner))
        return lambda owner, job, until: until >= now and (job is not None or owner not in dead)

    def _sweep(self, db: apsw.Connection, now: Timestamp) -> None:
        """Remove the holds of dead processes, and those whose time is over."""
        counts = self._counts(db, now)
        for key, owner, job, until in _rows(db, "SELECT id, owner, job, until FROM holds"):
            if not counts(owner, job, until):
                db.execute("DELETE FROM holds WHERE id = ?", (key,))


_Counts = Callable[[str, "bytes | None", int], bool]


# --- inside the journal's own transactions


def day_and_budget(db: apsw.Connection, part: Part, now: Timestamp) -> tuple[int, str]:
    """Return what a job counts in: the day of its hold, and its budget."""
    if part.hold is None:
        return day_of(now), part.budget
    found = _rows(db, "SELECT day, budget FROM holds WHERE id = ? AND job IS NULL", (part.hold,))
    if not found:
        raise StoreError("what was reserved for this job has ended. Ask again")
    day, budget = found[0]
    return int(day), str(budget)


def bind(db: apsw.Connection, part: Part, job: JobId, ceiling: Amount, until: Timestamp) -> None:
    """Give a part's hold to the job that was recorded for it.

    Where nothing is limited, nothing was held before. The job then holds its ceiling from here on,
    because a limit may be set while it runs.
    """
    hold = part.hold
    if hold is None:
        ((day, budget),) = _rows(db, "SELECT day, budget FROM jobs WHERE id = ?", (job,))
        hold = _insert(db, budget, day, ceiling, until, NOBODY)
    db.execute("UPDATE holds SET job = ?, until = ? WHERE id = ?", (job, until + LATE_S, hold))


def spend(db: apsw.Connection, job: JobId, amount: Amount) -> None:
    """Count a payment, and hold that much less for its job."""
    ((budget, day),) = _rows(db, "SELECT budget, day FROM jobs WHERE id = ?", (job,))
    add(db, budget, day, amount)
    for key, held in _rows(db, "SELECT id, amount FROM holds WHERE job = ?", (job,)):
        left = max(0, int(held) - amount)
        db.execute("UPDATE holds SET amount = ? WHERE id = ?", (str(left), key))


def charge(db: apsw.Connection, job: JobId, fee: Amount, whole: Limits) -> tuple[str, int]:
    """Count a fee that is signed beside a job, whose hold keeps the job's ceiling.

    Returns:
        The budget and the day that it counts in.

    Raises:
        BudgetTooSmall: a budget has too little left for both.
    """
    sql = (
        "SELECT j.budget, j.day, j.max_amount, h.id, h.amount FROM jobs j"
        " JOIN holds h ON h.job = j.id WHERE j.id = ?"
    )
    ((budget, day, ceiling, hold, held),) = _rows(db, sql, (job,))
    more = Amount(max(0, int(ceiling) + fee - int(held)))
    short = _shortage(db, budget, more, whole, day) if more else None
    if short is not None:
        raise BudgetTooSmall(short)
    left = int(held) + more - fee
    db.execute("UPDATE holds SET amount = ? WHERE id = ?", (str(left), hold))
    add(db, budget, day, fee)
    return budget, day


def add(db: apsw.Connection, budget: str, day: int, amount: int) -> None:
    """Count an amount in a budget and in the client's own, or take it out if it is negative."""
    for name in {WHOLE, budget}:
        total = _spent(db, name, range(day, day + 1)) + amount
        db.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?)", (name, day, str(total)))


def end(db: apsw.Connection, job: JobId, status: JobStatus) -> None:
    """Give up what a job holds. What was held before a declined job is kept for the next one."""
    if status is JobStatus.REFUSED:
        db.execute("UPDATE holds SET job = NULL WHERE job = ? AND owner <> ?", (job, NOBODY))
    db.execute("DELETE FROM holds WHERE job = ?", (job,))


# --- rows


@dataclass(frozen=True, slots=True)
class _Room:
    budget: str
    period: str
    limit: Amount
    left: Amount


def _shortage(
    db: apsw.Connection, budget: str, needed: Amount, whole: Limits, day: int
) -> Shortage | None:
    """Find the first budget that is too small. Holds that do not count were swept before."""
    for room in _rooms(db, budget, whole, day, lambda owner, job, until: True):
        if needed > room.left:
            return Shortage(room.budget, room.period, room.limit, room.left, needed)
    return None


def _rooms(
    db: apsw.Connection, budget: str, whole: Limits, day: int, counts: _Counts
) -> Iterator[_Room]:
    """Say what is left of every limit that holds for a job of a budget."""
    named = {budget: _limits(db, budget), WHOLE: whole}
    for name, limits in named.items():
        periods = (
            ("day", limits.per_day, range(day, day + 1)),
            ("month", limits.per_month, month_of(day)),
        )
        for period, limit, days in periods:
            if limit is not None:
                left = Amount(max(0, limit - _used(db, name, days, counts)))
                yield _Room(name, period, limit, left)


def _limits(db: apsw.Connection, budget: str) -> Limits:
    if budget == WHOLE:
        return Limits()
    found = _rows(
        db, "SELECT per_day, per_month, max_price FROM api_keys WHERE name = ?", (budget,)
    )
    if not found:
        raise StoreError(f"there is no API key {budget!r}")
    return Limits(*(None if value is None else Amount(int(value)) for value in found[0]))


def _used(db: apsw.Connection, budget: str, days: range, counts: _Counts) -> Amount:
    return Amount(_spent(db, budget, days) + _held(db, budget, days, counts))


def _spent(db: apsw.Connection, budget: str, days: range) -> int:
    found = _rows(
        db,
        "SELECT amount FROM spent WHERE budget = ? AND day >= ? AND day < ?",
        (budget, days.start, days.stop),
    )
    return sum(int(amount) for (amount,) in found)


def _held(db: apsw.Connection, budget: str, days: range, counts: _Counts) -> Amount:
    found = _rows(
        db,
        "SELECT amount, owner, job, until FROM holds WHERE (?1 = '' OR budget = ?1)"
        " AND day >= ?2 AND day < ?3",
        (budget, days.start, days.stop),
    )
    return Amount(sum(int(amount) for amount, *whose in found if counts(*whose)))


def _row(db: apsw.Connection, hold: int | None) -> tuple[int, int] | None:
    """The amount and the day of a hold that no job has."""
    sql = "SELECT amount, day FROM holds WHERE id = ? AND job IS NULL"
    found = _rows(db, sql, (hold,))
    return (int(found[0][0]), int(found[0][1])) if found else None


def _raised(db: apsw.Connection, hold: int, amount: Amount, until: Timestamp) -> int:
    db.execute("UPDATE holds SET amount = ?, until = ? WHERE id = ?", (str(amount), until, hold))
    return hold


def _insert(  # noqa: PLR0917
    db: apsw.Connection, budget: str, day: int, amount: Amount, until: Timestamp, owner: str
) -> int:
    db.execute(
        "INSERT INTO holds (budget, day, amount, until, owner) VALUES (?, ?, ?, ?, ?)",
        (budget, day, str(amount), until, owner),
    )
    return db.last_insert_rowid()


def _rows(db: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a query. STRICT tables hold the types that they declare."""
    return db.execute(sql, bindings).fetchall()
