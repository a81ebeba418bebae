"""A SQLite file, for one instance of an index.

Its statements take well under a millisecond, so they run in the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import apsw

from piecework.base.migrations import Migration, Schema, script
from piecework.market.errors import OfferStoreError
from piecework.market.storage.database import Row, Statements
from piecework.market.storage.schema import STEPS, Dialect

WAIT_MS: Final = 5000
DIALECT: Final = Dialect("BLOB", "INTEGER", " STRICT", " STRICT, WITHOUT ROWID")
_FIRST, *_LATER = (script(DIALECT.words(step)) for step in STEPS)
SCHEMA: Final = Schema(
    "the index's database",
    1,
    _FIRST,
    tuple(Migration(number, step) for number, step in enumerate(_LATER, 2)),
)


class SqliteDatabase:
    """Implements `database.MarketDatabase`. One connection writes, the other one reads."""

    def __init__(self, file: Path) -> None:
        self._file, self._changing = file, asyncio.Lock()
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            writer = _connect(file)
            SCHEMA.prepare(writer, file)
            self._writer, self._reader = _Connection(writer), _Connection(_connect(file))
        except (apsw.Error, OSError) as error:
            raise OfferStoreError(f"cannot open {file}: {error}") from None

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self._file)

    @property
    def connections(self) -> int:
        """One to read by. What it has seen stays: a file loses nothing while programs run."""
        return 1

    async def rows(self, sql: str, *values: Any) -> Sequence[Row]:
        """Read."""
        return await self._reader.rows(sql, *values)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Statements]:
        """Hold the file's write lock for a block."""
        async with self._changing:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                self._writer.roll_back()

    async def close(self) -> None:
        """Close both connections."""
        self._reader.close()
        self._writer.close()


class _Connection:
    """Statements of one connection."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    async def rows(self, sql: str, *values: Any) -> Sequence[Row]:
        named = {str(number): value for number, value in enumerate(values, 1)}
        with _failing():
            return self._db.execute(sql, named).fetchall()

    def execute(self, sql: str) -> None:
        with _failing():
            self._db.execute(sql).fetchall()

    def roll_back(self) -> None:
        """End a transaction that was not committed, if there is one."""
        if self._db.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        self._db.close()


def _connect(file: Path) -> apsw.Connection:
    db = apsw.Connection(str(file))
    db.set_busy_timeout(WAIT_MS)
    # NORMAL: a power cut may lose the last seconds of offers, which workers send again anyway.
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise OfferStoreError(f"the index's database failed: {error}") from error
