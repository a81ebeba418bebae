"""Requests with an Idempotency-Key: which jobs they led to. Part of the journal.

No text and no answer is kept. Of the header and of the body there is a SHA-256. A job is named in
the transaction that records it, so there is no job of such a request that is not found again.
One living process works on a request at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apsw

from piecework.client.errors import RequestDiffers, RequestFollowed, TooManyRequests
from piecework.client.journal.database import Database
from piecework.client.journal.owners import NOBODY, Owner
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

    def __init__(self, database: Database, owner: Owner) -> None:
        self._database, self._owner = database, owner

    def check(self, request: RequestKey, body: bytes) -> None:
        """See that a request is not known with another body.

        Raises:
            RequestDiffers: it is.
        """
        with self._database.read() as db:
            _found(db, request, body)

    def open(self, request: RequestKey, body: bytes, now: Timestamp) -> KnownRequest:
        """Find a request, or record it. This process works on it from now on, until `close`.

        Args:
            request: The API key's name and the hash of the header.
            body: The hash of the body.
            now: The moment.

        Raises:
            RequestDiffers: it is known with another body.
            RequestFollowed: another living process works on it.
            TooManyRequests: as many are kept as may be.
        """
        with self._database.change("record a request", durable=False) as db:
            db.execute("DELETE FROM requests WHERE created_at <= ?", (now - REQUEST_LIFETIME_S,))
            found = _found(db, request, body)
            if found is not None:
                created_at, owner = found
                if owner != self._owner.name and self._owner.follows(owner):
                    raise RequestFollowed(
                        "another process of this client works on this Idempotency-Key. "
                        "Send the request again later"
                    )
                self._own(db, request, self._owner.name)
                return KnownRequest(created_at, _jobs(db, request))
            kept = _rows(db, "SELECT count(*) FROM requests WHERE budget = ?", (request.budget,))
            if kept[0][0] >= MAX_REQUESTS:
                raise TooManyRequests(f"{MAX_REQUESTS} Idempotency-Keys were used within a day")
            row = (request.budget, request.key, body, now, self._owner.name)
            db.execute("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", row)
            return KnownRequest(now, {})

    def close(self, request: RequestKey) -> bool:
        """Stop working on a request. Forget it if none of its jobs was paid for or may still be.

        Sending one that was forgotten again starts it from the beginning. One that another process
        works on stays as it is.

        Returns:
            Whether it was forgotten.
        """
        with self._database.change("close a request", durable=False) as db:
            mine = _rows(
                db,
                "SELECT 1 FROM requests WHERE budget = ? AND key = ? AND owner = ?",
                (request.budget, request.key, self._owner.name),
            )
            if not mine:
                return False
            bound = _rows(
                db,
                "SELECT 1 FROM request_jobs q JOIN jobs j ON j.id = q.job"
                " WHERE q.budget = ? AND q.key = ? AND (j.status = 'live'"
                " OR EXISTS (SELECT 1 FROM receipts r WHERE r.job = j.id))",
                (request.budget, request.key),
            )
            if bound:
                self._own(db, request, NOBODY)
            else:
                db.execute(
                    "DELETE FROM requests WHERE budget = ? AND key = ?",
                    (request.budget, request.key),
                )
            return not bound

    def _own(self, db: apsw.Connection, request: RequestKey, owner: str) -> None:
        db.execute(
            "UPDATE requests SET owner = ? WHERE budget = ? AND key = ?",
            (owner, request.budget, request.key),
        )


def record(db: apsw.Connection, part: Part, job: JobId) -> None:
    """Name the job of a part, in the transaction that records the job."""
    if part.request is not None:
        db.execute(
            "INSERT OR REPLACE INTO request_jobs VALUES (?, ?, ?, ?)",
            (part.request.budget, part.request.key, part.number, job),
        )


def _found(db: apsw.Connection, request: RequestKey, body: bytes) -> tuple[Timestamp, str] | None:
    """When a request came first, and who works on it."""
    found = _rows(
        db,
        "SELECT body, created_at, owner FROM requests WHERE budget = ? AND key = ?",
        (request.budget, request.key),
    )
    if not found:
        return None
    known, created_at, owner = found[0]
    if known != body:
        raise RequestDiffers("this Idempotency-Key came with another body before")
    return Timestamp(created_at), str(owner)


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
