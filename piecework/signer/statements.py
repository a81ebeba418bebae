"""What a signer has signed about jobs and offers, so that it never signs what contradicts it.

Two receipts of one canvas that differ take a worker's stake where there are disputes, and so do two
acceptances of one job that count the prompt differently. An honest worker signs such a pair if its
journal is older than its signatures: after a restored backup, or where two homes have one operator.
The signer stands behind all of them, so it is the one that knows.

A worker signs a receipt again for a client that returns, and for evidence, until the time of
evidence after the job's deadline is over. Offers state that time, so a statement is kept as long.

It is not a guard against a thief, who needs one false receipt and not two.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import apsw

from piecework.signer.book import BookError, opened_database
from piecework.signer.limits import (
    DAY_S,
    FIRST_EVIDENCE_DAYS,
    JOB_DAYS,
    MAX_EVIDENCE_DAYS,
    MAX_OFFER_STEP,
)
from piecework.signer.policy import CONTRADICTS, MALFORMED, OFFER_OLD, NotSigned
from piecework_protocol.eip712 import TypedData
from piecework_protocol.objects import Acceptance, Offer, Receipt
from piecework_protocol.types import Bytes32, JobId, to_hex

SCHEMA: Final = 1
_ACCEPTANCE: Final = -1
"""The place of an acceptance among the receipts of its job."""
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS statements (job BLOB NOT NULL, canvas INTEGER NOT NULL, "
    "content BLOB NOT NULL, day INTEGER NOT NULL, UNIQUE (job, canvas)) STRICT; "
    "CREATE INDEX IF NOT EXISTS statements_by_day ON statements (day); "
    "CREATE TABLE IF NOT EXISTS offers (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "sequence INTEGER NOT NULL, evidence_days INTEGER NOT NULL) STRICT"
)
_FORGOTTEN_AT_ONCE: Final = 8
"""Old statements that go with each new one, so that no signature waits for a whole day of them."""


class SignedStatements:
    """Knows the statements about jobs that may be signed again. One process holds it.

    A row is with the operating system before its signature leaves. So a killed signer has lost
    none. A machine that loses power may have lost the last ones, and its worker's journal has them.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        found = db.execute("SELECT sequence, evidence_days FROM offers").fetchone()
        number, days = (0, FIRST_EVIDENCE_DAYS) if found is None else map(int, found)
        self.last_offer = number
        """The highest number of an offer that was signed. 0: there was none."""
        self._evidence_days = days

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the file, or make it.

        Raises:
            BookError: it cannot be opened, is of another program, or another process holds it.
        """
        return opened_database(path, SCHEMA, _TABLES, cls)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def require_consistent(self, message: TypedData, digest: Bytes32) -> None:
        """Refuse what contradicts an earlier statement. The same statement again is fine.

        Raises:
            NotSigned: it does.
            BookError: the disk fails. Nothing may be signed.
        """
        if isinstance(message, Offer):
            # The last number may come again: a worker that was killed had not written it down yet.
            if message.sequence < self.last_offer:
                raise NotSigned(
                    OFFER_OLD,
                    f"it is offer {message.sequence}, and offer {self.last_offer} was signed "
                    "before. The worker's journal is old, or another home uses this signer",
                )
            if message.sequence - self.last_offer > MAX_OFFER_STEP:
                raise NotSigned(
                    MALFORMED,
                    f"it is offer {message.sequence}, far above {self.last_offer}, the last one. "
                    "Nothing could be offered after the highest number that there is",
                )
            return
        about = _about(message, digest)
        if about is None:
            return
        job, canvas, content = about
        known = _failing(lambda: self._db.execute(_FIND, (job, canvas)).fetchone())
        if known is not None and known[0] != content:
            what = "the acceptance" if canvas == _ACCEPTANCE else f"a receipt of canvas {canvas}"
            raise NotSigned(
                CONTRADICTS,
                f"{what} of job {to_hex(job)} was signed with other content. The worker's journal "
                "is old, or another home uses this signer",
            )

    def remember(self, message: TypedData, digest: Bytes32, now: int) -> None:
        """Keep a statement that is about to be signed. now: Unix seconds.

        Raises:
            BookError: the disk fails. Nothing may be signed.
        """
        if isinstance(message, Offer):
            days = min(-(-message.evidence_seconds // DAY_S), MAX_EVIDENCE_DAYS)
            last = (message.sequence, days)
            if last != (self.last_offer, self._evidence_days):
                _failing(lambda: self._db.execute("REPLACE INTO offers VALUES (1, ?, ?)", last))
                self.last_offer, self._evidence_days = last
            return
        about = _about(message, digest)
        if about is None:
            return
        day = now // DAY_S
        _failing(lambda: self._db.execute(_KEEP, (*about, day)))
        oldest = day - JOB_DAYS - self._evidence_days
        _failing(lambda: self._db.execute(_FORGET, (oldest, _FORGOTTEN_AT_ONCE)))


_FIND: Final = "SELECT content FROM statements WHERE job = ? AND canvas = ?"
_KEEP: Final = "INSERT OR IGNORE INTO statements VALUES (?, ?, ?, ?)"
_FORGET: Final = (
    "DELETE FROM statements WHERE rowid IN (SELECT rowid FROM statements WHERE day < ? LIMIT ?)"
)


def _about(message: TypedData, digest: Bytes32) -> tuple[JobId, int, bytes] | None:
    """The job and canvas that a statement is about, and what may not differ. None: no job."""
    if isinstance(message, Receipt):
        return message.job, message.canvas, digest
    if isinstance(message, Acceptance):
        # Its time may differ: who proves a contradiction has to show two counts of the prompt.
        return message.job, _ACCEPTANCE, message.prompt_tokens.to_bytes(4, "big")
    return None


def _failing(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except apsw.Error as error:
        raise BookError(f"the journal of statements fails: {error}") from error
