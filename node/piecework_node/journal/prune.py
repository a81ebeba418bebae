"""Let go of what nobody can ask for any more, in steps that are small enough between two commits.

A job is pruned when it has ended and is paid, and the time to audit it is over. Its submission, its
sealed content and outputs, its leaves and the members of its receipts go. What stays of a paid
canvas is its digest, its amount and its place in the accumulator. So every receipt is still
provable, and every voucher too.

Log rows of that age are folded: what they say of rows that are still there is said again in a new
row, and the chain starts after them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework_node.journal.log import (
    ENTRY_DIGEST_BYTES,
    FOLDED,
    GONE,
    KEY_COLUMNS,
    LogEntry,
    decode_entries,
    entry_of,
    row_digest,
    unpack_key,
)
from piecework_node.journal.records import MetaSet
from piecework_node.journal.verify import ANCHOR, column_names
from piecework_node.journal.writes import JournalBatch
from piecework_protocol.limits import MAX_JOB_LIFETIME_S

JOBS_A_STEP: Final = 4
LOG_ENTRIES_A_STEP: Final = 48
OFFERS_A_STEP: Final = 4

_JOBS = (
    "SELECT number FROM jobs WHERE pruned = 0 AND deadline < ? "
    "AND state IN ('delivered', 'paid', 'cancelled', 'failed') AND NOT EXISTS "
    "(SELECT 1 FROM canvases WHERE job = number AND leaf_index IS NULL) ORDER BY deadline LIMIT ?"
)
_FOLD_CANVASES = "UPDATE canvases SET pruned = 1 WHERE job = ? AND pruned = 0"
_OFFERS = (
    "digest IN (SELECT digest FROM offers WHERE expires_at < ? "
    "AND sequence < (SELECT max(sequence) FROM offers) "
    "AND NOT EXISTS (SELECT 1 FROM submissions WHERE offer = digest) LIMIT ?)"
)
_OLDEST = "SELECT position, entries, head FROM log WHERE at < ? ORDER BY position LIMIT ?"


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one step let go of."""

    jobs: int = 0
    offers: int = 0
    log_rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.jobs or self.offers or self.log_rows)


def prune(db: apsw.Connection, batch: JournalBatch, now: int, window_s: int) -> Pruned:
    """Do one step inside the batch's transaction.

    window_s: seconds after a job's deadline in which it can be audited.
    """
    oldest = now - window_s
    jobs = [row[0] for row in db.execute(_JOBS, (oldest, JOBS_A_STEP)).fetchall()]
    for job in jobs:
        batch.drop("traces", "job = ?", (job,))
        batch.drop("outputs", "job = ?", (job,))
        batch.drop("contents", "job = ?", (job,))
        batch.drop("submissions", "job = ?", (job,))
        batch.fold("canvases", _FOLD_CANVASES, (job,))
        batch.fold("jobs", "UPDATE jobs SET pruned = 1 WHERE number = ?", (job,))
    before_jobs = oldest - MAX_JOB_LIFETIME_S
    offers = batch.drop("offers", _OFFERS, (before_jobs, OFFERS_A_STEP))
    return Pruned(len(jobs), offers, _fold_log(db, batch, before_jobs))


def _fold_log(db: apsw.Connection, batch: JournalBatch, before: int) -> int:
    position, anchor, entries, rows = 0, b"", 0, 0
    oldest: list[Any] = db.execute(_OLDEST, (before, LOG_ENTRIES_A_STEP)).fetchall()
    for position_, data, head in oldest:
        if entries >= LOG_ENTRIES_A_STEP:
            break
        for entry in decode_entries(data):
            entries += 1
            _carry(db, batch, entry)
        position, anchor, rows = position_, head, rows + 1
    if rows:
        db.execute("DELETE FROM log WHERE position <= ?", (position,))
        batch.apply([MetaSet(ANCHOR, anchor.hex())])
    return rows


def _carry(db: apsw.Connection, batch: JournalBatch, entry: LogEntry) -> None:
    """Say of a row again what the log said, if that is still so.

    If it is not, a later log row says something else, or verification finds the row.
    """
    if entry.digest in (GONE, FOLDED) or batch.knows(entry):
        return
    row = _row(db, entry)
    if row is not None and row_digest(entry.table, row)[:ENTRY_DIGEST_BYTES] == entry.digest:
        batch.enter(entry_of(entry.table, row))


def _row(db: apsw.Connection, entry: LogEntry) -> tuple[Any, ...] | None:
    key = unpack_key(entry.key)
    names = column_names(db, entry.table)[: KEY_COLUMNS[entry.table]]
    where = " AND ".join(f"{name} = ?" for name in names)
    query = f"SELECT * FROM {entry.table} WHERE {where}"  # noqa: S608  our own names
    row: tuple[Any, ...] | None = db.execute(query, key).fetchone()
    return row
