"""What an index asks of a database. Both kinds take the same SQL.

Parameters are `$1`, `$2` and so on. Each statement is one that SQLite and PostgreSQL both know, and
means the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

from piecework.market.errors import OfferStoreError

POSTGRESQL: Final = ("postgresql://", "postgres://")
"""How the address of a PostgreSQL database begins."""

Row: TypeAlias = Sequence[Any]


class Statements(Protocol):
    """Where statements go."""

    async def rows(self, sql: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows.

        Raises:
            OfferStoreError: the database did not execute it.
        """
        ...


class MarketDatabase(Statements, Protocol):
    """An open database at the newest schema.

    Statements outside of a change see what is committed, and change nothing.
    """

    @property
    def name(self) -> str:
        """What a person calls it. Without a password."""
        ...

    @property
    def connections(self) -> int:
        """How many connections it has made. The last one may lead to a server that crashed.

        Such a server may have lost the last transactions that others saw.
        """
        ...

    def change(self) -> AbstractAsyncContextManager[Statements]:
        """Begin a transaction. Only one runs at a time, also with other instances.

        It is committed at the end of the block, and taken back if the block raises.

        Raises:
            OfferStoreError: it did not begin, or was not committed.
        """
        ...

    async def close(self) -> None:
        """Give its files or connections back."""
        ...


async def open_database(place: Path | str) -> MarketDatabase:
    """Open a SQLite file or a PostgreSQL address, and bring its schema up to date.

    Raises:
        OfferStoreError: it cannot be opened, or a newer program made its schema.
        MigrationFailed: a step of the schema could not be taken.
        SchemaTooNew: a newer program made the file.
        ModuleNotFoundError: the extra `postgres` is not installed.
    """
    if isinstance(place, str):
        _require_postgresql(place)
        from piecework.market.storage.postgres import PostgresDatabase

        return await PostgresDatabase.open(place)
    from piecework.market.storage.sqlite import SqliteDatabase

    return SqliteDatabase(place)


def _require_postgresql(address: str) -> None:
    if not address.startswith(POSTGRESQL):
        raise OfferStoreError(f"the address of a database begins with {POSTGRESQL[0]}")
