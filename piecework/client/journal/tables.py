"""A table of the client's database whose rows are the values of one class.

The columns are the fields of the class, by their names. An amount is decimal text in them, and
everything else is stored as it is.
"""

from __future__ import annotations

import typing
from dataclasses import fields
from operator import attrgetter
from typing import Any, Generic, TypeVar

import apsw

from piecework_protocol.types import Amount

V = TypeVar("V")


class Table(Generic[V]):
    """Reads and writes the values of a frozen dataclass. Every method works inside a transaction.

    Attributes:
        name: The table.
        columns: The fields of the class, in their order. The first ones are the key.
    """

    def __init__(self, name: str, kind: type[V], *, key: int = 1) -> None:
        """`key` is the number of columns that identify a row."""
        hints = typing.get_type_hints(kind)
        self.name = name
        self.columns = tuple(field.name for field in fields(kind))  # type: ignore[arg-type]
        self._kind = kind
        self._amounts = frozenset(i for i, c in enumerate(self.columns) if hints[c] is Amount)
        self._values = attrgetter(*self.columns)
        listed, marks = ", ".join(self.columns), ", ".join("?" * len(self.columns))
        key_is = " AND ".join(f"{column} = ?" for column in self.columns[:key])
        # No value of anybody is in these texts.
        self._all = f"SELECT {listed} FROM {name}"  # noqa: S608
        self._get = f"{self._all} WHERE {key_is}"
        self._put = f"INSERT OR REPLACE INTO {name} ({listed}) VALUES ({marks})"  # noqa: S608

    def all(self, db: apsw.Connection) -> list[V]:
        """Return every row."""
        return [self._value(row) for row in db.execute(self._all).fetchall()]

    def get(self, db: apsw.Connection, *key: bytes) -> V | None:
        """Return the row of a key, or None."""
        row: Any = db.execute(self._get, key).fetchone()
        return None if row is None else self._value(row)

    def put(self, db: apsw.Connection, value: V) -> None:
        """Write a row, in the place of one with the same key."""
        row: tuple[Any, ...] = self._values(value)
        if self._amounts:
            row = tuple(str(v) if i in self._amounts else v for i, v in enumerate(row))
        db.execute(self._put, row)

    def _value(self, row: Any) -> V:
        if self._amounts:
            row = (Amount(int(v)) if i in self._amounts else v for i, v in enumerate(row))
        return self._kind(*row)
