"""A PostgreSQL database, for several instances that serve one market.

A lock of the database lets one transaction write at a time, as SQLite does. So revisions are
committed in their order, and what one instance has read of the chain no other one counts again. A
connection that broke is made again when it is next needed.
"""

from __future__ import annotations

import asyncio
import re
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
MALFORMED: Final = (
    "its address cannot be read: a port or an option is wrong, or a character of the password "
    "is not written as %XX"
)
"""The parser's own words may quote a password that has a `/` in it."""
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

    def __init__(self, url: str) -> None:
        """Use `open`, which connects."""
        self._name, self._changing, self._made = _name(url), asyncio.Lock(), 0
        self._pool: Any = asyncpg.create_pool(
            url,
            min_size=1,
            max_size=CONNECTIONS,
            timeout=CONNECT_S,
            command_timeout=STATEMENT_S,
            init=self._count,
            # As with SQLite: a crash of the server may lose the last offers, no more.
            server_settings={"application_name": "piecework", "synchronous_commit": "off"},
        )

    @classmethod
    async def open(cls, url: str) -> PostgresDatabase:
        """Connect, and take the steps of the schema that are missing.

        Raises:
            OfferStoreError: it does not answer in time, or a newer program made its schema.
        """
        opened = cls(url)
        try:
            await opened._pool
        # A malformed address is a ValueError.
        except ValueError:
            raise OfferStoreError(f"cannot open {opened.name}: {MALFORMED}") from None
        except _FAILURES as error:
            raise OfferStoreError(f"cannot open {opened.name}: {_said(error)}") from None
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

    @property
    def connections(self) -> int:
        """How many were made."""
        return self._made

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
                # One connection waits for the lock, so that the others are free for readers. A role
                # may have another default of isolation: it would see the rows of before the wait.
                async with (
                    self._pool.acquire(timeout=CONNECT_S) as db,
                    db.transaction(isolation="read_committed"),
                ):
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

    async def _count(self, _: Any) -> None:
        self._made += 1

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
    """Return an address without what may be secret in it.

    A password with a `/` in it lies partly where the port and the database are.
    """
    anyone = "the PostgreSQL database"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "the local server", parts.port
    except ValueError:
        return anyone
    database = parts.path.strip("/")
    if not database:
        return f"{anyone} of the user at {host}"
    return f"{anyone} {database} at {host}" if re.fullmatch(r"[\w-]{1,63}", database) else anyone
