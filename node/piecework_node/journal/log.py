"""The log of the journal: one row a commit, chained, with a digest of every row that was written.

Pure. An entry names a table and a key, and holds the first bytes of the SHA-256 of the row. The
running totals travel with it, so that sums over the journal are read in constant time.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from piecework_node.journal.records import Earnings
from piecework_protocol.errors import invariant
from piecework_protocol.states import JobState
from piecework_protocol.types import Amount

GENESIS: Final = bytes(32)
ENTRY_DIGEST_BYTES: Final = 16
GONE: Final = bytes(ENTRY_DIGEST_BYTES)
"""The digest of a row that was deleted."""
FOLDED: Final = b"\xff" * ENTRY_DIGEST_BYTES
"""The digest of a row of a pruned job. The totals vouch for it."""
KEY_COLUMNS: Final = {
    "meta": 1,
    "offers": 1,
    "sealing_keys": 1,
    "channels": 1,
    "jobs": 1,
    "submissions": 1,
    "canvases": 2,
    "outputs": 2,
    "transactions": 1,
    "contradictions": 2,
    "traces": 2,
    "contents": 1,
}
"""Every table that is logged, and how many of its first columns are its key."""
_TABLES: Final = tuple(KEY_COLUMNS)
_MODULUS: Final = 2**256
_STATES: Final = tuple(JobState)
_TOTALS: Final = " ".join(["{:x}"] * (6 + len(_STATES)))
_CODES: Final = {table: code for code, table in enumerate(_TABLES)}
_ENTRY: Final = struct.Struct(f">BH{ENTRY_DIGEST_BYTES}s")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a commit did to one row."""

    table: str
    key: bytes
    """The key's columns, packed."""
    digest: bytes
    """Of the row as it was then. `GONE`: it was deleted."""


def pack_key(values: Sequence[Any]) -> bytes:
    """Pack the columns of a key: a type letter, a length, the value."""
    parts: list[bytes] = []
    for value in values:
        if isinstance(value, int):
            letter, data = b"i", str(value).encode()
        elif isinstance(value, str):
            letter, data = b"t", value.encode()
        else:
            letter, data = b"b", bytes(value)
        parts += (letter, len(data).to_bytes(4, "big"), data)
    return b"".join(parts)


def unpack_key(data: bytes) -> tuple[Any, ...]:
    """Undo `pack_key`."""
    values: list[Any] = []
    at = 0
    while at < len(data):
        letter, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big")
        body = data[at + 5 : at + 5 + size]
        values.append(body if letter == b"b" else int(body) if letter == b"i" else body.decode())
        at += 5 + size
    return tuple(values)


def row_digest(table: str, row: Sequence[Any]) -> bytes:
    """Return the SHA-256 of a row: its table and columns, with the length of each blob, then them.

    A blob stands as its length in brackets. So no two rows give the same bytes.
    """
    blobs = [value for value in row if isinstance(value, bytes)]
    shape = [(len(value),) if isinstance(value, bytes) else value for value in row]
    return hashlib.sha256(b"".join((table.encode(), repr(shape).encode(), *blobs))).digest()


def entry_of(table: str, row: Sequence[Any]) -> LogEntry:
    """Return the entry of a row that was inserted or changed."""
    key = pack_key(row[: KEY_COLUMNS[table]])
    return LogEntry(table, key, row_digest(table, row)[:ENTRY_DIGEST_BYTES])


def marked(table: str, row: Sequence[Any], mark: bytes) -> LogEntry:
    """Return the entry of a row that was deleted or folded. mark: `GONE` or `FOLDED`."""
    return LogEntry(table, pack_key(row[: KEY_COLUMNS[table]]), mark)


def encode_entries(entries: Sequence[LogEntry]) -> bytes:
    """Pack entries as a log row holds them."""
    parts: list[bytes] = []
    for entry in entries:
        parts.append(_ENTRY.pack(_CODES[entry.table], len(entry.key), entry.digest))
        parts.append(entry.key)
    return b"".join(parts)


def decode_entries(data: bytes) -> Iterator[LogEntry]:
    """Undo `encode_entries`.

    Raises:
        ValueError: these are not entries.
    """
    at = 0
    while at < len(data):
        try:
            table, size, digest = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size + size
            yield LogEntry(_TABLES[table], data[at - size : at], digest)
        except (struct.error, IndexError) as error:
            raise ValueError("not the entries of a log row") from error


def link(head: bytes, at: int, entries: bytes, totals: bytes) -> bytes:
    """Return the head of the chain after a commit. `at` is its time in seconds."""
    fixed = struct.pack(">qQ", at, len(entries))
    return hashlib.sha256(head + fixed + entries + totals).digest()


@dataclass(slots=True)
class RunningTotals:
    """Running sums over the whole journal, in base units unless named otherwise."""

    charged: int = 0
    accepted: int = 0
    settled: int = 0
    unpaid: int = 0
    canvases: int = 0
    pruned: int = 0
    """Sum of the digests of the rows of pruned jobs, modulo 2^256. They need no log entry."""
    jobs: dict[JobState, int] = field(default_factory=dict)
    """Jobs by state."""

    def copy(self) -> RunningTotals:
        """Return totals that change on their own."""
        return RunningTotals(*self._sums(), {**self.jobs})

    def moved(self, before: JobState | None, after: JobState) -> None:
        """Count a job that was admitted, or that moved to another state."""
        if before is not None:
            self.jobs[before] = self.jobs.get(before, 0) - 1
        self.jobs[after] = self.jobs.get(after, 0) + 1

    def fold(self, table: str, row: Sequence[Any]) -> None:
        """Take a row of a pruned job out of the log and into the sum."""
        digest = int.from_bytes(row_digest(table, row), "big")
        self.pruned = (self.pruned + digest) % _MODULUS

    def encode(self) -> bytes:
        """Write the totals as a log row holds them: in hexadecimal, with spaces between."""
        numbers = (*self._sums(), *(self.jobs.get(state, 0) for state in _STATES))
        invariant(min(numbers) >= 0, "a running total is never negative")
        return _TOTALS.format(*numbers).encode()

    @classmethod
    def decode(cls, data: bytes) -> RunningTotals:
        """Undo `encode`.

        Raises:
            ValueError: these are not totals.
        """
        numbers = [int(part, 16) for part in data.decode().split(" ")]
        charged, accepted, settled, unpaid, canvases, pruned, *counts = numbers
        jobs = {state: count for state, count in zip(_STATES, counts, strict=True) if count}
        return cls(charged, accepted, settled, unpaid, canvases, pruned, jobs)

    def _sums(self) -> tuple[int, int, int, int, int, int]:
        return (
            self.charged, self.accepted, self.settled, self.unpaid, self.canvases, self.pruned,
        )  # fmt: skip

    def earnings(self) -> Earnings:
        """Return the sums for the operator."""
        jobs = {state.value: count for state, count in self.jobs.items() if count}
        return Earnings(
            charged=Amount(self.charged),
            accepted=Amount(self.accepted),
            settled=Amount(self.settled),
            unpaid=Amount(self.unpaid),
            canvases=self.canvases,
            jobs=dict(sorted(jobs.items())),
        )
