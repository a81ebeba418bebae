"""Requests with an Idempotency-Key: which jobs they led to. Part of the journal.

No text and no answer is kept. Of the header and of the body there is a SHA-256. A job is named in
the transaction that records it, so there is no job of such a request that is not found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework.client.errors import RequestDiffers, TooManyRequests
from piecework.client.journal.database import Database
from piecework.client.journal.records import Part, RequestKey
from piecework_protocol.types import JobId, Timestamp

REQUEST_LIFETIME_S: Final = 86_400
"""A request is found again for a day. Workers keep finished jobs longer than that."""
MAX_REQUESTS: Final = 100_000
"""Of one API key within a day. About 250 bytes each."""


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """What is kept of a request: when it came first, and the last job of each part."""

    created_at: Timestamp
    jobs: dict[int, JobId]


class Requests:
    """The tables `requests` and `request_jobs` of the journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, request: RequestKey, body: bytes, now: Timestamp) -> KnownRequest:
        """Find a request, or record it.

        Args:
            request: The API key's name and the hash of the header.
            body: The hash of the body.
            now: The moment.

        Raises:
            RequestDiffers: it is known with another body.
            TooManyRequests: as many are kept as may be.
        """
        with self._database.change("record a request", durable=False) as db:
            db.execute("DELETE FROM requests WHERE created_at <= ?", (now - REQUEST_LIFETIME_S,))
            found = _rows(
                db,
                "SELECT body, created_at FROM requests WHERE budget = ? AND key = ?",
                (request.budget, request.key),
            )
            if found:
                if found[0][0] != body:
                    raise RequestDiffers("this Idempotency-Key came with another body before")
                return KnownRequest(Timestamp(found[0][1]), _jobs(db, request))
            kept = _rows(db, "SELECT count(*) FROM requests WHERE budget = ?", (request.budget,))
            if kept[0][0] >= MAX_REQUESTS:
                raise TooManyRequests(f"{MAX_REQUESTS} Idempotency-Keys were used within a day")
            row = (request.budget, request.key, body, now)
            db.execute("INSERT INTO requests VALUES (?, ?, ?, ?)", row)
            return KnownRequest(now, {})

    def forget_if_free(self, request: RequestKey) -> bool:
        """Forget a request that failed, if none of its jobs was paid for or may still be.

        Sending it again then starts it from the beginning.
        """
        with self._database.change("forget a request", durable=False) as db:
            bound = _rows(
                db,
                "SELECT 1 FROM request_jobs q JOIN jobs j ON j.id = q.job"
                " WHERE q.budget = ? AND q.key = ? AND (j.status = 'live'"
                " OR EXISTS (SELECT 1 FROM receipts r WHERE r.job = j.id))",
                (request.budget, request.key),
            )
            if not bound:
                db.execute(
                    "DELETE FROM requests WHERE budget = ? AND key = ?",
                    (request.budget, request.key),
                )
            return not bound


def record(db: apsw.Connection, part: Part, job: JobId) -> None:
    """Name the job of a part, in the transaction that records the job."""
    if part.request is not None:
        db.execute(
            "INSERT OR REPLACE INTO request_jobs VALUES (?, ?, ?, ?)",
            (part.request.budget, part.request.key, part.number, job),
        )


def _jobs(db: apsw.Connection, request: RequestKey) -> dict[int, JobId]:
    """The jobs that may be fetched again. One that was declined leaves its part open."""
    found = _rows(
        db,
        "SELECT q.part, q.job FROM request_jobs q JOIN jobs j ON j.id = q.job"
        " WHERE q.budget = ? AND q.key = ? AND (j.status <> 'refused'"
        " OR EXISTS (SELECT 1 FROM receipts r WHERE r.job = j.id))",
        (request.budget, request.key),
    )
    return {part: JobId(job) for part, job in found}


def _rows(db: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
    """All rows of a query. STRICT tables hold the types that they declare."""
    return db.execute(sql, bindings).fetchall()
