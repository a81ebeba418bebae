"""API keys of the gateway's callers, in the client's journal. Only their hashes are kept.

A key is 32 random bytes, so one SHA-256 is enough: nobody can try that many.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework.client.errors import StoreError
from piecework.client.journal.database import Database
from piecework.client.journal.records import Limits
from piecework_protocol.types import Amount, Timestamp

MAX_API_KEYS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COLUMNS: Final = "name, secret, created_at, expires_at, revoked_at, per_day, per_month, max_price"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One caller's key, without its secret. `expires_at` and `revoked_at` are 0 for never."""

    name: str
    created_at: Timestamp
    expires_at: Timestamp
    revoked_at: Timestamp
    limits: Limits

    def is_valid(self, now: Timestamp) -> bool:
        """Say whether a caller may use it."""
        return not self.revoked_at and not 0 < self.expires_at <= now


class ApiKeys:
    """The table `api_keys` of the journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, name: str, key: str, limits: Limits, *, now: Timestamp, expires_at: Timestamp
    ) -> None:
        """Record a key. The name of one that is revoked or has expired may be used again.

        Raises:
            StoreError: the name is malformed or in use, or there are too many keys.
        """
        if not _NAME.fullmatch(name):
            raise StoreError(
                "the name of an API key is up to 64 letters, digits, dots, hyphens and underscores"
            )
        with self._database.change("add an API key") as db:
            known = _keys(db, "WHERE name = ?", (name,))
            if known and known[0][0].is_valid(now):
                raise StoreError(f"there is an API key {name!r}. Revoke it first")
            if not known and len(_keys(db)) >= MAX_API_KEYS:
                raise StoreError(f"there are {MAX_API_KEYS} API keys, and no more are kept")
            amounts = (limits.per_day, limits.per_month, limits.max_price)
            db.execute(
                "INSERT OR REPLACE INTO api_keys VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                (
                    name,
                    secret_of(key),
                    now,
                    expires_at,
                    *(None if amount is None else str(amount) for amount in amounts),
                ),
            )

    def revoke(self, name: str, now: Timestamp) -> None:
        """Let nobody use a key any more. It stays in the list, and what it spent stays counted.

        Raises:
            StoreError: there is no such key, or it is revoked already.
        """
        with self._database.change("revoke an API key") as db:
            known = _keys(db, "WHERE name = ?", (name,))
            if not known:
                raise StoreError(f"there is no API key {name!r}")
            if known[0][0].revoked_at:
                raise StoreError(f"the API key {name!r} is revoked already")
            db.execute("UPDATE api_keys SET revoked_at = ? WHERE name = ?", (now, name))

    def all(self) -> tuple[ApiKey, ...]:
        """Return every key, revoked ones too, by name."""
        with self._database.read() as db:
            return tuple(key for key, _ in _keys(db, "ORDER BY name"))

    def exist(self) -> bool:
        """Say whether a key was ever made here. Then every caller needs one."""
        with self._database.read() as db:
            return bool(db.execute("SELECT 1 FROM api_keys LIMIT 1").fetchall())

    def find(self, key: str, now: Timestamp) -> ApiKey | None:
        """Return the valid key that a caller shows, or None."""
        secret = secret_of(key)
        with self._database.read() as db:
            found = _keys(db, "WHERE secret = ?", (secret,))
        for known, kept in found:
            # The index compares hashes of 256 random bits, of which timing tells nothing. This
            # comparison decides, and takes the same time whatever the difference.
            if hmac.compare_digest(kept, secret) and known.is_valid(now):
                return known
        return None


def secret_of(key: str) -> bytes:
    """Return what is kept of a key: its SHA-256."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _keys(
    db: apsw.Connection, where: str = "", bindings: tuple[Any, ...] = ()
) -> list[tuple[ApiKey, bytes]]:
    found: list[Any] = db.execute(
        f"SELECT {_COLUMNS} FROM api_keys {where}",  # noqa: S608  our own words
        bindings,
    ).fetchall()
    return [(_key(row), row[1]) for row in found]


def _key(row: Any) -> ApiKey:
    name, _, created_at, expires_at, revoked_at, *amounts = row
    limits = Limits(*(None if value is None else Amount(int(value)) for value in amounts))
    times = (Timestamp(created_at), Timestamp(expires_at), Timestamp(revoked_at))
    return ApiKey(name, *times, limits)
