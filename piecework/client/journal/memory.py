"""What the client remembers of workers, in its journal: how they kept their word, how fast and how
dear they were, and what was paid last for each model.

It is the base of choosing a worker. Losing it costs nothing but the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework.client.journal.database import Database
from piecework.client.journal.records import (
    AnswerLength,
    Experience,
    Measured,
    Memories,
    PaidTariff,
)
from piecework.client.journal.tables import Table
from piecework_protocol.types import Address

MAX_REMEMBERED_WORKERS = 10_000
"""Rows that are kept. The longest unused is forgotten first."""
WORKERS: Final = Table("workers", Experience)
MEASURED: Final = Table("measured", Measured, key=2)
LENGTHS: Final = Table("lengths", AnswerLength)
TARIFFS: Final = Table("tariffs", PaidTariff)
Update = Callable[[Experience], Experience]


@dataclass(frozen=True, slots=True)
class JobDone:
    """What a job that ran to its end says of its model: what it took, and what was paid."""

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
            opened: list[Any] = db.execute(
                "SELECT DISTINCT operator FROM channels WHERE status = 'open' AND funded <> '0'"
            ).fetchall()
            return Memories(
                {one.operator: one for one in WORKERS.all(db)},
                {(one.operator, one.model): one for one in MEASURED.all(db)},
                {one.model: one for one in TARIFFS.all(db)},
                frozenset(Address(row[0]) for row in opened),
                {one.model: one for one in LENGTHS.all(db)},
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
    model = done.paid.model
    MEASURED.put(db, done.measure(MEASURED.get(db, operator, model) or Measured(operator, model)))
    LENGTHS.put(db, done.length(LENGTHS.get(db, model) or AnswerLength(model)))
    TARIFFS.put(db, done.paid)


def _update(db: apsw.Connection, operator: Address, update: Update) -> None:
    WORKERS.put(db, update(WORKERS.get(db, operator) or Experience(operator)))
