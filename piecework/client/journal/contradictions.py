"""What a worker signed and should not have: evidence. Part of the client's journal.

A frame is kept when it breaks a clause and carries the operator's valid signature: the second of
two receipts for one canvas, a receipt that charges too much, a second acceptance with another
prompt length. Together with what the journal holds of the job it proves the fault.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from piecework.client.journal.database import Database
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken, ProtocolViolation
from piecework_protocol.frames import Accepted, CanvasDelivered, WorkerFrame
from piecework_protocol.objects import Acceptance
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Address, JobId, Timestamp, Uint32, keccak256

_UNSIGNED_SECTION: Final = "5."
"""What a worker says of vouchers travels in frames that it signs for something else."""
MAX_KEPT_PER_JOB: Final = 16
"""The first frame ends the job. More come only from a job that is taken up again."""


@dataclass(frozen=True, slots=True)
class KeptFrame:
    """A signed frame that broke a clause, without its sealed output and its account.

    Attributes:
        clause: Its number in docs/protocol.md.
        message: What was wrong, for a person.
        at: When it came.
    """

    frame: Accepted | CanvasDelivered
    clause: str
    message: str
    at: Timestamp


class Contradictions:
    """The table `contradictions` of the journal."""

    def __init__(self, database: Database, domain: Domain) -> None:
        self._database, self._domain = database, domain

    def keep(
        self,
        job: JobId,
        operator: Address,
        frame: WorkerFrame | None,
        violation: ProtocolViolation,
        now: Timestamp,
    ) -> bool:
        """Keep the frame that broke a clause, if its operator signed it for this job.

        Returns:
            Whether it is evidence. Other frames are not kept.
        """
        if not isinstance(frame, Accepted | CanvasDelivered):
            return False
        if violation.clause.startswith(_UNSIGNED_SECTION):
            return False
        if not self._is_signed(job, operator, frame):
            return False
        data = wire.encode_worker_frame(_bare(frame))
        with self._database.change("keep evidence") as db:
            db.execute(
                "INSERT OR IGNORE INTO contradictions SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE"
                " (SELECT count(*) FROM contradictions WHERE job = ?1) < ?7",
                (
                    job,
                    keccak256(data),
                    data,
                    violation.clause,
                    violation.message,
                    now,
                    MAX_KEPT_PER_JOB,
                ),
            )
        return True

    def of(self, job: JobId) -> tuple[KeptFrame, ...]:
        """Return what is kept of a job, oldest first."""
        with self._database.read() as db:
            found: list[Any] = db.execute(
                "SELECT frame, clause, message, at FROM contradictions WHERE job = ?"
                " ORDER BY at, digest",
                (job,),
            ).fetchall()
        return tuple(_kept(row) for row in found)

    def _is_signed(self, job: JobId, operator: Address, frame: Accepted | CanvasDelivered) -> bool:
        signed = (
            frame.receipt
            if isinstance(frame, CanvasDelivered)
            else Acceptance(frame.job, Uint32(frame.prompt_tokens), frame.accepted_at)
        )
        return signed.job == job and signed_by(self._domain, signed, frame.signature, operator)


def _bare(frame: Accepted | CanvasDelivered) -> Accepted | CanvasDelivered:
    """Drop what nobody signed."""
    if isinstance(frame, Accepted):
        return replace(frame, account=None)
    return replace(frame, sealed_output=b"")


def _kept(row: Any) -> KeptFrame:
    data, clause, message, at = row
    frame = wire.decode_worker_frame(data)
    if not isinstance(frame, Accepted | CanvasDelivered):
        raise InvariantBroken("the journal keeps signed frames")
    return KeptFrame(frame, clause, message, Timestamp(at))
