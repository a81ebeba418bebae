"""Whoever audits a canvas with a model: what is asked, and what is answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from piecework.client.jobs.spending import AuditPurse
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.types import Address, Amount, JobId


@dataclass(frozen=True, slots=True)
class CanvasReport:
    """What an audit of one canvas found.

    Attributes:
        findings: What is wrong, one line each. Empty unless the outcome is FAIL.
        reason: Why there is no verdict, or empty.
        steps: Denoising steps of the canvas.
        seconds: What the audit took, without loading the model.
        by: The workers that audited. None of them: the client itself.
        jobs: The jobs that bought their reports, in the same order.
        cost: What they were paid, in base units.
        confirmed: Whether a second audit has found the same failure, or the worker's own signature
            shows it.
        remarks: What there is to say about auditors: who gave no report, who is trusted no more.
        leaves: The step leaves that a replay here has computed.
        statistical: Whether an honest canvas shows such findings now and then. Then they give
            no verdict before other canvases of the worker show them too.
        beside: The other canvases that failed with it.
    """

    level: AuditLevel
    outcome: AuditOutcome
    canvas: int
    findings: tuple[str, ...] = ()
    reason: str = ""
    steps: int = 0
    seconds: float = 0.0
    by: tuple[Address, ...] = ()
    jobs: tuple[JobId, ...] = ()
    cost: Amount = Amount(0)
    confirmed: bool = False
    remarks: tuple[str, ...] = ()
    leaves: tuple[bytes, ...] = ()
    statistical: bool = False
    beside: tuple[CanvasToAudit, ...] = ()


class CanvasToAudit(NamedTuple):
    """A canvas of a job, with the openings file of its steps, or nothing."""

    evidence: EvidenceFile
    canvas: int
    openings: bytes = b""

    def __str__(self) -> str:
        job = self.evidence.job.job.id(self.evidence.domain)
        return f"canvas {self.canvas} of job {job.hex()[:16]}"


@dataclass(frozen=True, slots=True)
class NotOpened:
    """A canvas that could not be looked at, and why."""

    reason: str


More = AsyncGenerator[CanvasToAudit | NotOpened, None]
"""More canvases of one worker. It is closed when no more are wanted."""


class Auditor(Protocol):
    """Whoever audits a canvas with a model."""

    async def audit(
        self,
        evidence: bytes,
        canvas: int,
        level: AuditLevel,
        openings: bytes = b"",
        purse: AuditPurse | None = None,
        *,
        control: bool = True,
    ) -> CanvasReport:
        """Audit one canvas of a job. A failure of the auditor is not a verdict.

        purse: pays for reports that are bought. Without one the client's own budget pays.
        control: whether a canvas that looks wrong is made here too, and has no verdict if that one
            looks wrong as well. False: an earlier audit has done so.
        """
        ...

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        """Say why a forced audit of a canvas has no verdict whatever is opened, or return "".

        It costs nothing. Ask before the steps are bought.
        """
        ...
