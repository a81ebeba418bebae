"""The client's SQLite file: schema, opening and transactions. `journal.store` gives it meaning.

WAL with synchronous FULL: what was committed survives a power cut. Several processes of one client
(the command line beside the gateway) share the file: every change is one BEGIN IMMEDIATE
transaction that reads the book, computes the next one and writes it, so that two processes never
extend the same book.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from piecework.client.errors import StoreError
from piecework.client.limits import BUSY_TIMEOUT_MS
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, to_hex

SCHEMA_VERSION = 1
# Amounts are uint128: decimal text, because SQLite's integers end at 63 bits.
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE channels (
    id BLOB PRIMARY KEY, payer BLOB NOT NULL, authorizer BLOB NOT NULL, receiver BLOB NOT NULL,
    operator BLOB NOT NULL, token BLOB NOT NULL, withdrawal_delay INTEGER NOT NULL,
    salt BLOB NOT NULL,
    deposit TEXT NOT NULL, funding_deadline INTEGER NOT NULL, funded TEXT NOT NULL,
    cumulative TEXT NOT NULL, count INTEGER NOT NULL, peaks BLOB NOT NULL,
    acknowledged INTEGER NOT NULL,
    status TEXT NOT NULL
) STRICT;
CREATE INDEX channels_by_operator ON channels (operator, status);
CREATE TABLE jobs (
    id BLOB PRIMARY KEY, channel BLOB NOT NULL REFERENCES channels (id), submission BLOB NOT NULL,
    offer BLOB NOT NULL, reply_secret BLOB NOT NULL, prompt_bytes INTEGER NOT NULL,
    max_amount TEXT NOT NULL, deadline INTEGER NOT NULL, prompt_tokens INTEGER,
    status TEXT NOT NULL, detail TEXT NOT NULL, created_at INTEGER NOT NULL, owner INTEGER NOT NULL,
    prompt TEXT
) STRICT;
CREATE INDEX jobs_by_channel ON jobs (channel, status);
CREATE TABLE receipts (
    job BLOB NOT NULL REFERENCES jobs (id), canvas INTEGER NOT NULL, channel BLOB NOT NULL,
    frame BLOB NOT NULL, digest BLOB NOT NULL, amount TEXT NOT NULL, leaf_index INTEGER NOT NULL,
    text TEXT, PRIMARY KEY (job, canvas), UNIQUE (channel, leaf_index)
) STRICT;
CREATE TABLE vouchers (
    channel BLOB NOT NULL REFERENCES channels (id), count INTEGER NOT NULL,
    cumulative TEXT NOT NULL,
    root BLOB NOT NULL, PRIMARY KEY (channel, count)
) STRICT;
CREATE TABLE workers (
    operator BLOB PRIMARY KEY, successes REAL NOT NULL, failures REAL NOT NULL,
    updated_at INTEGER NOT NULL,
    broken_clause TEXT NOT NULL, broken_at INTEGER NOT NULL, silences REAL NOT NULL,
    silent_at INTEGER NOT NULL, answered_at INTEGER NOT NULL
) STRICT;
CREATE TABLE measured (
    operator BLOB NOT NULL, model BLOB NOT NULL, jobs REAL NOT NULL, seconds REAL NOT NULL,
    claimed_seconds REAL NOT NULL, steps REAL NOT NULL, usual_steps REAL NOT NULL,
    updated_at INTEGER NOT NULL, PRIMARY KEY (operator, model)
) STRICT;
CREATE TABLE tariffs (
    model BLOB PRIMARY KEY, prompt TEXT NOT NULL, output TEXT NOT NULL, steps TEXT NOT NULL
) STRICT;
"""


class Database:
    """One connection, used by one thread at a time."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        try:
            # Made here and not by SQLite, so that it is never readable by others; WAL files inherit
            # the mode.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = apsw.Connection(str(file))
            self._connection.set_busy_timeout(BUSY_TIMEOUT_MS)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {pragma}").fetchall()
        except (apsw.Error, OSError) as error:
            raise StoreError(f"cannot open {file}: {error}") from None
        self._file = file

    def close(self) -> None:
        """Give the file back; the WAL is folded in by the last process that leaves."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def change(self) -> Iterator[apsw.Connection]:
        """One durable transaction. Other processes wait; nothing is written when the body
        raises."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    # SQLite itself may have rolled back, or a failed COMMIT may have left all of it
                    # open.
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except apsw.BusyError:
                raise StoreError(f"{self._file} is held by another process for too long") from None
            except apsw.Error as error:
                raise StoreError(f"{self._file}: {error}") from error

    @contextmanager
    def read(self) -> Iterator[apsw.Connection]:
        """A consistent view."""
        with self._lock:
            try:
                self._connection.execute("BEGIN")
                try:
                    yield self._connection
                finally:
                    self._connection.execute("ROLLBACK")
            except apsw.Error as error:
                raise StoreError(f"{self._file}: {error}") from error

    def bind(self, domain: Domain, payer: Address) -> None:
        """Create the tables, or refuse a file that belongs to another chain, escrow or payer."""
        mine = {
            "schema": str(SCHEMA_VERSION),
            "chain": str(domain.chain_id),
            "escrow": to_hex(domain.verifying_contract),
            "payer": to_hex(payer),
        }
        with self.change() as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchall():
                db.execute(SCHEMA)
                db.executemany("INSERT INTO meta VALUES (?, ?)", list(mine.items()))
            found: dict[Any, Any] = dict(db.execute("SELECT key, value FROM meta"))
        for key, value in mine.items():
            if found.get(key) != value:
                raise StoreError(
                    f"{self._file} was made for {key} {found.get(key)}, not {value}. Use another "
                    "--home"
                )
