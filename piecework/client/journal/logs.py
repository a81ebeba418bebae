"""The payer's part of the escrow's events, as the chain logged them. Only final blocks are read.

A scan goes range by range, and each range is one transaction. So a scan that was cut off goes on
where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.contracts.events import Log
from piecework.client.journal.database import Database
from piecework_protocol.types import Address, Bytes32, Timestamp

_SCANNED: Final = "scanned_to"


@dataclass(frozen=True, slots=True)
class LogRow:
    """One event with the time of its block."""

    log: Log
    time: Timestamp


class ChainLogs:
    """What was read of the chain so far."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def scanned_to(self) -> int | None:
        """Return the first block that was not read yet, or None before the first scan."""
        with self._database.read() as db:
            found: Any = db.execute("SELECT value FROM meta WHERE key = ?", (_SCANNED,)).get
        return None if found is None else int(found)

    def add(self, found: Iterable[LogRow], scanned_to: int) -> None:
        """Record the events of a range, and that it was read."""
        with self._database.change("record events of the chain", durable=False) as db:
            db.executemany(
                "INSERT OR IGNORE INTO chain_logs VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        row.log.block,
                        row.log.index,
                        row.time,
                        row.log.transaction,
                        b"".join(row.log.topics),
                        row.log.data,
                    )
                    for row in found
                ],
            )
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_SCANNED, str(scanned_to)))

    def all(self, escrow: Address) -> tuple[LogRow, ...]:
        """Return every event in the order of the chain."""
        with self._database.read() as db:
            found: list[Any] = db.execute(
                "SELECT block, log_index, time, transaction_hash, topics, data FROM chain_logs"
                " ORDER BY block, log_index"
            ).fetchall()
        return tuple(_row(escrow, row) for row in found)


def _row(escrow: Address, row: Any) -> LogRow:
    block, index, time, transaction, topics, data = row
    split = tuple(Bytes32(topics[i : i + 32]) for i in range(0, len(topics), 32))
    return LogRow(Log(escrow, split, data, block, index, Bytes32(transaction)), Timestamp(time))
