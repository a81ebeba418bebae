"""The signer's journal of limits: what was used of each day, on disk before a signature leaves.

A day is the later one of the clock's and of the newest in the journal. So a clock that goes back,
or a restart, gives nothing back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self, TypeVar

import apsw

from piecework.base.amounts import Token, native_coin
from piecework.base.errors import PieceworkError
from piecework.base.files import PRIVATE_FILE, shown
from piecework.signer.limits import DAY_S, KEPT_DAYS, RESERVED_SIGNATURES
from piecework.signer.policy import GAS, SIGNATURES, TOKENS, NotSigned, Use

SCHEMA: Final = 1
T = TypeVar("T")
_TABLES: Final = (
    # Wei and base units are decimal digits: they outgrow SQLite's integers.
    "CREATE TABLE IF NOT EXISTS days (day INTEGER PRIMARY KEY, signatures INTEGER NOT NULL, "
    "wei TEXT NOT NULL, tokens TEXT NOT NULL) STRICT"
)
_WRITE: Final = (
    "INSERT INTO days VALUES (?, ?, ?, ?) ON CONFLICT (day) DO UPDATE SET "
    "signatures = excluded.signatures, wei = excluded.wei, tokens = excluded.tokens"
)


class BookError(PieceworkError):
    """The journal of limits cannot be used. Nothing is signed without it."""


@dataclass(frozen=True, slots=True)
class DailyLimits:
    """Of one UTC day. wei: gas and value at most. tokens: base units of stake, in `token`."""

    signatures: int
    wei: int
    tokens: int
    token: Token


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a day, and when it ends in Unix seconds."""

    signatures: int
    wei: int
    tokens: int
    renews_at: int


@dataclass(slots=True)
class _Day:
    number: int
    signatures: int = 0
    reserved: int = 0
    wei: int = 0
    tokens: int = 0


class LimitBook:
    """Counts what is signed. One process holds it."""

    def __init__(self, db: apsw.Connection, limits: DailyLimits) -> None:
        self._db, self._limits = db, limits
        row = db.execute("SELECT * FROM days ORDER BY day DESC LIMIT 1").fetchone()
        self._day = _Day(0) if row is None else _read(row)

    @classmethod
    def open(cls, path: Path, limits: DailyLimits) -> Self:
        """Open the journal, or make it.

        Raises:
            BookError: it cannot be opened, is of another program, or another process holds it.
        """
        return opened_database(path, SCHEMA, _TABLES, lambda db: cls(db, limits), durable=True)

    def close(self) -> None:
        """Give back what is reserved and not used, and close the file."""
        if self._day.reserved != self._day.signatures:
            with suppress(apsw.Error):  # the reservation stays, which costs signatures alone
                self._write(self._day, self._day.signatures)
        self._db.close()

    def take(self, now: int, use: Use) -> None:
        """Count a signature. What it costs in wei and tokens is on the disk when this returns.

        now: Unix seconds.

        Raises:
            NotSigned: a limit of the day is reached.
            BookError: the disk fails. Nothing may be signed.
        """
        day = self._today(now)
        self._require(day, use)
        after = _Day(
            day.number,
            day.signatures + 1,
            max(day.reserved, day.signatures + 1),
            day.wei + use.wei,
            day.tokens + use.tokens,
        )
        if after.signatures > day.reserved:
            after.reserved = min(day.signatures + RESERVED_SIGNATURES, self._limits.signatures)
        if use.wei or use.tokens or after.reserved != day.reserved:
            try:
                self._write(after, after.reserved)
            except apsw.Error as error:
                raise BookError(f"the journal of limits fails: {error}") from error
        self._day = after

    def left(self, now: int) -> Left:
        """Say what is left of the day."""
        day, limits = self._today(now), self._limits
        return Left(
            max(0, limits.signatures - day.signatures),
            max(0, limits.wei - day.wei),
            max(0, limits.tokens - day.tokens),
            (day.number + 1) * DAY_S,
        )

    def _today(self, now: int) -> _Day:
        return self._day if now // DAY_S <= self._day.number else _Day(now // DAY_S)

    def _require(self, day: _Day, use: Use) -> None:
        limits = self._limits
        spent = (
            (SIGNATURES, _signatures, day.signatures, 1, limits.signatures),
            (GAS, native_coin().format, day.wei, use.wei, limits.wei),
            (TOKENS, limits.token.format, day.tokens, use.tokens, limits.tokens),
        )
        for refusal, text, used, more, limit in spent:
            if more and used + more > limit:
                raise NotSigned(
                    refusal,
                    f"{use.what} takes {text(more)}. {text(used)} of {text(limit)} are used on "
                    f"this day, which ends at {shown_time((day.number + 1) * DAY_S)}",
                )

    def _write(self, day: _Day, signatures: int) -> None:
        with self._db:
            row = (day.number, signatures, str(day.wei), str(day.tokens))
            self._db.execute(_WRITE, row)
            self._db.execute("DELETE FROM days WHERE day < ?", (day.number - KEPT_DAYS,))


def opened_database(
    path: Path,
    schema: int,
    tables: str,
    made: Callable[[apsw.Connection], T],
    *,
    durable: bool = False,
) -> T:
    """Open a journal of the signer, or make it, for this process alone.

    Args:
        path: Of its file.
        schema: Its number.
        tables: SQL that makes them.
        made: Makes the journal of an open file.
        durable: Whether a loss of power may take nothing back. Else each row is with the operating
            system, which waits for no disk.

    Raises:
        BookError: it cannot be opened, is of another program, or another process holds it.
    """
    kept = "synchronous = FULL" if durable else "journal_mode = WAL; PRAGMA synchronous = NORMAL"
    try:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, PRIVATE_FILE))
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.execute(f"PRAGMA locking_mode = EXCLUSIVE; PRAGMA {kept}").fetchall()
            version = db.execute("PRAGMA user_version").get
            if version not in (0, schema):
                raise BookError(f"{shown(path)} has schema {version} of a newer release")
            db.execute(f"BEGIN EXCLUSIVE; {tables}; PRAGMA user_version = {schema}; COMMIT")
            return made(db)
        except BaseException:
            db.close()
            raise
    except (apsw.Error, OSError, ValueError) as error:
        raise BookError(f"{shown(path)} cannot be used: {error}") from error


def _signatures(count: int) -> str:
    return f"{count} signature{'' if count == 1 else 's'}"


def shown_time(seconds: int) -> str:
    """Give a time for a person, from Unix seconds."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return f"second {seconds}"


def _read(row: tuple[object, ...]) -> _Day:
    day, signatures, wei, tokens = (int(str(value)) for value in row)
    return _Day(day, signatures, signatures, wei, tokens)
