"""Audits by the rules of the protocol alone. They need no model."""

from __future__ import annotations

from piecework.client.audits.auditor import CanvasReport
from piecework_protocol.evidence.check import broken_rules, check_evidence, unopened
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.openings import read_openings
from piecework_protocol.outlines import Outline


def audit_rules(
    evidence: EvidenceFile, canvas: int, openings: bytes = b"", outline: Outline | None = None
) -> CanvasReport:
    """Apply the rules to a canvas. It passes only if every step of it is opened.

    Without openings they see receipts, leaves and output only. What these break fails the canvas.

    outline: that of the job's content, if it is known and the evidence lacks the content.

    Raises:
        EvidenceRefused: The evidence does not hold.
        MalformedInput: The openings file is malformed, or is not of this canvas.
    """
    proven = check_evidence(evidence)
    opened = read_openings(openings) if openings else None
    found = tuple(map(str, broken_rules(evidence, proven, canvas, opened, outline)))
    lacking = "" if found else unopened(evidence, canvas, opened)
    outcome = AuditOutcome.NO_VERDICT if lacking else AuditOutcome.PASS
    steps = evidence.canvases[canvas].receipt.steps
    return CanvasReport(
        AuditLevel.RULES,
        AuditOutcome.FAIL if found else outcome,
        canvas,
        found,
        lacking,
        steps,
        # The worker has signed what breaks a rule. So nobody else has to be asked.
        confirmed=bool(found),
    )
