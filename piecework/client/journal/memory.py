"""What the client remembers of workers, in its journal: how they kept their word, how fast and how
dear they were, and what was paid last for each model.

It is the base of choosing a worker. Losing it costs nothing but the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import apsw

from piecework.client.journal.database import Database
from piecework.client.journal.records import (
    AnswerLength,
    Experience,
    Measured,
    Memories,
    PaidTariff,
)
from piecework_protocol.types import Address, Amount, Digest

MAX_REMEMBERED_WORKERS = 10_000
"""Rows that are kept. The longest unused is forgotten first."""
_EXPERIENCE = (
    "operator, successes, failures, updated_at, broken_clause, broken_at, silences, silent_at, "
    "answered_at"
)
_MEASURED = "operator, model, jobs, seconds, claimed_seconds, steps, usual_steps, updated_at"
Update = Callable[[Experience], Experience]


@dataclass(frozen=True, slots=True)
class JobDone:
    """What a job that ran to its end says of its model: what it took, and what was paid."""

    model: Digest
    measure: Callable[[Measured], Measured]
    length: Callable[[AnswerLength], AnswerLength]
    paid: PaidTariff


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a job teaches about its worker."""

    experience: Update
    done: JobDone | None = None


class WorkerMemory:
    """The tables `workers`, `measured`, `lengths` and `tariffs` of the journal.

    Attributes:
        run: Calls a method of it from an event loop.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.run = database.run

    def all(self) -> Memories:
        """Return everything that is remembered."""
        with self._database.read() as db:
            workers = _rows(db, f"SELECT {_EXPERIENCE} FROM workers")  # noqa: S608
            measured = _rows(db, f"SELECT {_MEASURED} FROM measured")  # noqa: S608
            tariffs = _rows(db, "SELECT model, prompt, output, steps FROM tariffs")
            lengths = _rows(db, "SELECT model, jobs, tokens, updated_at FROM lengths")
            opened = _rows(
                db,
                "SELECT DISTINCT operator FROM channels WHERE status = 'open' AND funded <> '0'",
            )
        return Memories(
            {Address(row[0]): _experience(row) for row in workers},
            {(Address(row[0]), Digest(row[1])): _measured(row) for row in measured},
            {Digest(row[0]): _tariff(row) for row in tariffs},
            frozenset(Address(row[0]) for row in opened),
            {Digest(row[0]): _length(row) for row in lengths},
        )

    def experience(self) -> dict[Address, Experience]:
        """Return what is remembered of every worker."""
        return dict(self.all().experience)

    def remember(self, operator: Address, update: Update) -> None:
        """Change what is remembered of a worker."""
        self.remember_all([(operator, update)])

    def remember_all(self, updates: Iterable[tuple[Address, Update]]) -> None:
        """Change what is remembered of several workers, in one transaction."""
        with self._database.change("remember workers", durable=False) as db:
            for operator, update in updates:
                _update(db, operator, update)
            db.execute(
                "DELETE FROM workers WHERE operator IN (SELECT operator FROM workers ORDER BY "
                "max(updated_at, broken_at, silent_at, answered_at) DESC LIMIT -1 OFFSET ?)",
                (MAX_REMEMBERED_WORKERS,),
            )


def teach(db: apsw.Connection, operator: Address, lesson: Lesson) -> None:
    """Learn from a job, in the transaction that ends it."""
    _update(db, operator, lesson.experience)
    done = lesson.done
    if done is None:
        return
    query = f"SELECT {_MEASURED} FROM measured WHERE operator = ? AND model = ?"  # noqa: S608
    rows = _rows(db, query, (operator, done.model))
    m = done.measure(_measured(rows[0]) if rows else Measured(operator, done.model))
    sums = (m.jobs, m.seconds, m.claimed_seconds, m.steps, m.usual_steps, m.updated_at)
    db.execute(
        "INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (m.operator, m.model, *sums),
    )
    query = "SELECT model, jobs, tokens, updated_at FROM lengths WHERE model = ?"
    rows = _rows(db, query, (done.model,))
    length = done.length(_length(rows[0]) if rows else AnswerLength(done.model))
    db.execute(
        "INSERT OR REPLACE INTO lengths VALUES (?, ?, ?, ?)",
        (length.model, length.jobs, length.tokens, length.updated_at),
    )
    paid = done.paid
    db.execute(
        "INSERT OR REPLACE INTO tariffs VALUES (?, ?, ?, ?)",
        (done.model, str(paid.prompt), str(paid.output), str(paid.steps)),
    )


def _rows(db: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a query. STRICT tables hold the types that they declare."""
    return db.execute(sql, bindings).fetchall()


def _update(db: apsw.Connection, operator: Address, update: Update) -> None:
    rows = _rows(db, f"SELECT {_EXPERIENCE} FROM workers WHERE operator = ?", (operator,))  # noqa: S608
    e = update(_experience(rows[0]) if rows else Experience(operator))
    db.execute(
        "INSERT OR REPLACE INTO workers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            operator,
            e.successes,
            e.failures,
            e.updated_at,
            e.broken_clause,
            e.broken_at,
            e.silences,
            e.silent_at,
            e.answered_at,
        ),
    )


def _experience(row: Any) -> Experience:
    return Experience(*row)


def _measured(row: Any) -> Measured:
    return Measured(*row)


def _length(row: Any) -> AnswerLength:
    return AnswerLength(*row)


def _tariff(row: Any) -> PaidTariff:
    return PaidTariff(Amount(int(row[1])), Amount(int(row[2])), Amount(int(row[3])))
