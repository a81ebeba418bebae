"""A PostgreSQL database, for several instances that serve one market.

A lock of the database lets one transaction write at a time, as SQLite does. So revisions are
committed in their order, and what one instance has read of the chain no other one counts again. A
connection that broke is made again when it is next needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from piecework.market.errors import OfferStoreError
from piecework.market.storage.database import Row, Statements
from piecework.market.storage.schema import STEPS, Dialect

CONNECTIONS: Final = 4
CONNECT_S: Final = 5.0
STATEMENT_S: Final = 10.0
"""The first step of a schema, and a sample of 10,000 workers, take less than a second."""
LOCK: Final = 0x7069656365  # "piece"
DIALECT: Final = Dialect("BYTEA", "BIGINT", "", "")
_FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class PostgresDatabase:
    """Implements `database.MarketDatabase`."""

    def __init__(self, name: str, pool: Any) -> None:
        self._name, self._pool, self._changing = name, pool, asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> PostgresDatabase:
        """Connect, and take the steps of the schema that are missing.

        Raises:
            OfferStoreError: it does not answer in time, or a newer program made its schema.
        """
        name = _name(url)
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=CONNECTIONS,
                timeout=CONNECT_S,
                command_timeout=STATEMENT_S,
                # As with SQLite: a crash of the server may lose the last offers, no more.
                server_settings={"application_name": "piecework", "synchronous_commit": "off"},
            )
        # A malformed address is a ValueError.
        except (*_FAILURES, ValueError) as error:
            raise OfferStoreError(f"cannot open {name}: {_said(error)}") from None
        opened = cls(name, pool)
        try:
            await opened._prepare()
        except BaseException:
            await opened.close()
            raise
        return opened

    @property
    def name(self) -> str:
        """Host and database."""
        return self._name

    async def rows(self, sql: str, *values: Any) -> Sequence[Row]:
        """Read."""
        with _failing():
            async with self._pool.acquire(timeout=CONNECT_S) as connection:
                return await _Session(connection).rows(sql, *values)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[Statements]:
        """Hold the database's lock for a block."""
        with _failing():
            async with asyncio.timeout(STATEMENT_S):
                await self._changing.acquire()
            try:
                # One connection waits for the lock, so that the others are free for readers.
                async with self._pool.acquire(timeout=CONNECT_S) as db, db.transaction():
                    await db.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                    yield _Session(db)
            finally:
                self._changing.release()

    async def close(self) -> None:
        """Close the connections. One that does not close in time is cut off."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _prepare(self) -> None:
        async with self.change() as db:
            await db.rows("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
            rows = await db.rows("SELECT version FROM schema_version")
            version = int(rows[0][0]) if rows else 0
            if version > len(STEPS):
                raise OfferStoreError(
                    f"{self._name} has schema {version}, made by a newer program. "
                    f"This one knows schema {len(STEPS)}. Use the newer program"
                )
            if not rows:
                await db.rows("INSERT INTO schema_version VALUES (0)")
            for step in STEPS[version:]:
                for statement in DIALECT.words(step).split(";"):
                    if statement.strip():
                        await db.rows(statement)
            await db.rows("UPDATE schema_version SET version = $1", len(STEPS))


class _Session:
    """Statements of one connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def rows(self, sql: str, *values: Any) -> Sequence[Row]:
        with _failing():
            found: Sequence[Row] = await self._connection.fetch(sql, *values)
            return found


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise OfferStoreError(f"the index's database failed: {_said(error)}") from error


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _name(url: str) -> str:
    """Return an address without what may be secret in it."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or "the local server"
    except ValueError:
        return "the PostgreSQL database"
    return f"the PostgreSQL database {parts.path.strip('/') or 'of the user'} at {host}"
