"""The client's SQLite file: opening it, and transactions. `journal.store` gives it meaning.

WAL mode. A durable change is synced before it returns, so it survives a power cut. A change that no
effect depends on is not synced by itself. It survives a kill, and the next durable change syncs it.

Several processes of one client share the file, such as the command line beside the gateway. Every
change is one BEGIN IMMEDIATE transaction that reads the book, computes the next one and writes it.
So two processes never extend the same book.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar

import apsw

from piecework.base.group_commit import Committer, CommitThread, GroupCommit
from piecework.base.migrations import MigrationFailed, SchemaTooNew, SchemaTooOld
from piecework.client.errors import StoreError
from piecework.client.journal.schema import CLIENT_SCHEMA
from piecework.client.limits import BUSY_TIMEOUT_MS
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, to_hex

P = ParamSpec("P")
T = TypeVar("T")
WriteWatcher: TypeAlias = Callable[[str], None]
"""Told the name of each change: once when all is written and not committed, once after."""


def _unwatched(_: str) -> None:
    """Nobody watches the writes."""


class Database:
    """One connection, used by one thread at a time. An event loop uses it through `run`."""

    def __init__(
        self,
        file: Path,
        watcher: WriteWatcher | None = None,
        committer: Committer | None = None,
    ) -> None:
        """Open the file, make it if it is missing, and bring it to the newest schema.

        `committer` commits for event loops.

        Raises:
            StoreError: it cannot be opened, or its schema cannot be used.
        """
        self._watcher = watcher or _unwatched
        self._names: list[str] = []
        """The changes in the shared transaction."""
        self._file = file
        self._durable = True
        """Whether the connection syncs at each commit now."""
        try:
            # Made here and not by SQLite, so that it is never readable by others. WAL files inherit
            # the mode.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = apsw.Connection(str(file))
        except (apsw.Error, OSError) as error:
            raise StoreError(f"cannot open {file}: {error}") from None
        try:
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
            CLIENT_SCHEMA.prepare(self._connection, file)
        except apsw.Error as error:
            self._connection.close()
            raise StoreError(f"cannot open {file}: {error}") from None
        except (MigrationFailed, SchemaTooNew, SchemaTooOld) as error:
            self._connection.close()
            raise StoreError(str(error)) from error
        self._group = GroupCommit(self._connection, self, committer or CommitThread("journal"))

    def close(self) -> None:
        """Give the file back. The last process that leaves folds the write-ahead log in."""
        self._group.finish()
        with self._group.lock:
            self._connection.close()

    async def run(self, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method that reads or changes, in the event loop's thread.

        Changes that come together share a commit.

        The answer comes when they are committed, and are on the disk if one of them must be.

        Raises:
            StoreError: as `change`.
        """
        try:
            return await self._group.run(partial(method, *args, **kwargs))
        except apsw.Error as error:
            raise self._failed(error) from error

    @contextmanager
    def change(self, name: str, *, durable: bool = True) -> Iterator[apsw.Connection]:
        """Make one change in a transaction. Nothing is written if the body raises.

        Args:
            name: What is changed, for the watcher.
            durable: Whether it must be on the disk before this returns. Everything must be that
                comes before a signature, a frame or a transaction.

        Raises:
            StoreError: another process holds the file for too long, or the disk fails.
        """
        if self._group.is_inside:
            self._group.begin(durable=durable)
            try:
                with self._connection:
                    yield self._connection
                    self._watcher(name)
            except apsw.Error as error:
                raise self._failed(error) from error
            self._names.append(name)
            return
        self._group.settle()
        with self._group.lock:
            try:
                self.begin(durable=durable, wait=True)
                try:
                    yield self._connection
                    self._watcher(name)
                    self.commit()
                except BaseException:
                    self._undo()
                    raise
                self._watcher(name)
            except apsw.Error as error:
                raise self._failed(error) from error

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """Give a consistent view.

        Raises:
            StoreError: the file cannot be read.
        """
        try:
            if self._connection.in_transaction and self._group.is_inside:
                yield self._connection  # the transaction is a consistent view already
                return
            if self._group.is_inside:
                with self._connection:
                    yield self._connection
                return
            self._group.settle()
            with self._group.lock, self._connection:
                yield self._connection
        except apsw.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: apsw.Error) -> StoreError:
        if isinstance(error, apsw.BusyError):
            return StoreError(f"{self._file} is held by another process for too long")
        return StoreError(f"{self._file}: {error}")

    # --- piecework.base.group_commit.Transactions

    def begin(self, *, durable: bool, wait: bool) -> None:
        """Open a transaction."""
        if durable is not self._durable:
            level = "FULL" if durable else "NORMAL"
            self._connection.execute(f"PRAGMA synchronous = {level}").fetchall()
            self._durable = durable
        self._connection.set_busy_timeout(BUSY_TIMEOUT_MS if wait else 0)
        self._connection.execute("BEGIN IMMEDIATE")

    def closing(self) -> None:
        """Nothing belongs to a transaction as a whole."""

    def commit(self) -> None:
        """Commit, or roll back."""
        try:
            self._connection.execute("COMMIT")
        except apsw.Error:
            self._undo()
            raise

    def ended(self, error: BaseException | None) -> None:
        """Tell the watcher what was committed."""
        names, self._names = self._names, []
        if error is None:
            for name in names:
                self._watcher(name)

    def _undo(self) -> None:
        """SQLite itself may have rolled back, or a failed COMMIT may have left all of it open."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def bind(self, domain: Domain, payer: Address) -> None:
        """Make the file this payer's, or check that it is.

        Raises:
            StoreError: it belongs to another chain, escrow or payer.
        """
        mine = {
            "chain": str(domain.chain_id),
            "escrow": to_hex(domain.verifying_contract),
            "payer": to_hex(payer),
        }
        with self.read() as db:
            found: dict[Any, Any] = dict(db.execute("SELECT key, value FROM meta"))
        if not mine.keys() & found.keys():
            with self.change("bind the file to its payer") as db:
                db.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", list(mine.items()))
                found = dict(db.execute("SELECT key, value FROM meta"))
        for key, value in mine.items():
            if found.get(key) != value:
                raise StoreError(
                    f"{self._file} was made for {key} {found.get(key)}, not {value}. Use another "
                    "--home"
                )
