"""Compare every row of the journal with its log, and the running totals with the tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import apsw

from piecework_node.errors import JournalCorrupt
from piecework_node.journal.log import (
    ENTRY_DIGEST_BYTES,
    FOLDED,
    GENESIS,
    GONE,
    KEY_COLUMNS,
    RunningTotals,
    decode_entries,
    link,
    pack_key,
    row_digest,
)
from piecework_node.journal.writes import amount_of
from piecework_protocol.merkle import Accumulator
from piecework_protocol.states import JobState

ANCHOR: Final = "log_anchor"
"""The name of the value that holds the head before the first row of the log."""
_PRUNED: Final = "pruned"
"""The column of a row that the totals vouch for."""

_Latest = dict[tuple[str, bytes], bytes]


def verify(db: apsw.Connection, *, deep: bool) -> int:
    """Check the file, the chain of the log, every row, and the totals. Return the rows checked.

    The check of the file holds every index to its table. SQLite's quick check does not, and a bit
    in an index can hide an unpaid canvas whose row is as it was written.

    deep: also check that receipts and vouchers agree.

    Raises:
        JournalCorrupt: something is not as it was written. Names the first one.
    """
    said = db.execute("PRAGMA integrity_check(1)").get
    if said != "ok":
        raise JournalCorrupt(f"the file is damaged: {said}")
    try:
        latest, totals = _walk(db)
    except ValueError as error:
        raise JournalCorrupt(f"the log: {error}") from None
    found = RunningTotals()
    count = sum(_check_table(db, table, latest, found) for table in KEY_COLUMNS)
    gone = [table for (table, _), body in latest.items() if body not in (GONE, FOLDED)]
    if gone:
        raise JournalCorrupt(f"a row of {gone[0]} is missing")
    _check_totals(db, totals, found)
    if deep:
        _check_vouchers(db)
    return count


def head_of(db: apsw.Connection) -> tuple[bytes, RunningTotals]:
    """Return the head of the chain and the running totals."""
    row = db.execute("SELECT head, totals FROM log ORDER BY position DESC LIMIT 1").fetchone()
    return (row[0], RunningTotals.decode(row[1])) if row is not None else (GENESIS, RunningTotals())


def _walk(db: apsw.Connection) -> tuple[_Latest, RunningTotals]:
    head = _anchor(db)
    latest: _Latest = {}
    totals = b""
    rows = db.execute("SELECT position, at, entries, totals, head FROM log ORDER BY position")
    for position, at, entries, totals, stored in rows:
        head = link(head, at, entries, totals)
        if head != stored:
            raise JournalCorrupt(f"log row {position}: the hash chain is broken")
        latest.update({(e.table, e.key): e.digest for e in decode_entries(entries)})
    return latest, RunningTotals.decode(totals) if totals else RunningTotals()


def _anchor(db: apsw.Connection) -> bytes:
    anchor: str | None = db.execute("SELECT value FROM meta WHERE key = ?", (ANCHOR,)).get
    try:
        return bytes.fromhex(anchor) if anchor is not None else GENESIS
    except ValueError:
        raise JournalCorrupt(f"{ANCHOR} is not what was written") from None


def _check_table(db: apsw.Connection, table: str, latest: _Latest, found: RunningTotals) -> int:
    names, columns, count = column_names(db, table), KEY_COLUMNS[table], 0
    pruned = names.index(_PRUNED) if _PRUNED in names else None
    for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608  our own names
        count += 1
        body = latest.pop((table, pack_key(row[:columns])), None)
        if pruned is not None and row[pruned]:
            if body not in (None, FOLDED):
                raise JournalCorrupt(f"a row of {table} is not what was written")
            found.fold(table, row)
        elif body != row_digest(table, row)[:ENTRY_DIGEST_BYTES]:
            raise JournalCorrupt(f"a row of {table} is not what was written")
    return count


def column_names(db: apsw.Connection, table: str) -> list[str]:
    """Return the columns of a table, in their order."""
    query = "SELECT name FROM pragma_table_info(?) ORDER BY cid"
    return [str(row[0]) for row in db.execute(query, (table,)).fetchall()]


def _check_totals(db: apsw.Connection, kept: RunningTotals, found: RunningTotals) -> None:
    for amount, leaf in db.execute("SELECT amount, leaf_index FROM canvases"):
        found.charged += amount_of(amount)
        found.canvases += 1
        found.unpaid += amount_of(amount) if leaf is None else 0
    for cumulative, settled in db.execute("SELECT cumulative, settled FROM channels"):
        found.accepted += amount_of(cumulative)
        found.settled += amount_of(settled)
    for state, count in db.execute("SELECT state, count(*) FROM jobs GROUP BY state"):
        found.jobs[JobState(state)] = count
    if kept.encode() != found.encode():
        raise JournalCorrupt("the running totals are not the sums of the rows")


def _check_vouchers(db: apsw.Connection) -> None:
    """Hold every channel's voucher to the receipts that it pays for."""
    query = "SELECT number, cumulative, count, peaks FROM channels"
    channels: list[Any] = db.execute(query).fetchall()
    for number, cumulative, count, peaks in channels:
        accumulator, paid = Accumulator(), 0
        for position, (leaf, digest, amount) in enumerate(_leaves(db, number)):
            if leaf != position:
                raise JournalCorrupt(f"channel {number}: receipt {position} is missing")
            accumulator, paid = accumulator.append(digest), paid + amount_of(amount)
        if (accumulator.count, b"".join(accumulator.peaks)) != (count, peaks):
            raise JournalCorrupt(
                f"channel {number}: the voucher's root is not that of its receipts"
            )
        if paid != amount_of(cumulative):
            raise JournalCorrupt(f"channel {number}: the voucher is not the sum of its receipts")


def _leaves(db: apsw.Connection, channel: int) -> Iterator[tuple[int, bytes, bytes]]:
    query = (
        "SELECT leaf_index, digest, amount FROM canvases "
        "WHERE channel = ? AND leaf_index IS NOT NULL ORDER BY leaf_index"
    )
    rows: Iterator[Any] = iter(db.execute(query, (channel,)))
    yield from rows
