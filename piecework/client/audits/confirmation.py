"""From what an auditor says of a canvas to a verdict on its worker.

What fails is audited again, and what an honest canvas shows now and then is held beside others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace

from piecework.base.errors import PieceworkError
from piecework.client.audits.auditor import Auditor, CanvasReport, CanvasToAudit, More, NotOpened
from piecework.client.audits.rules import audit_rules
from piecework.client.audits.suspicion import MOST_CANVASES, MOST_TRIES, is_verdict
from piecework.client.jobs.spending import AuditPurse
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.openings import read_openings
from piecework_protocol.outlines import Outline


async def confirmed_audit(
    auditor: Auditor,
    evidence: EvidenceFile,
    canvas: int,
    level: AuditLevel = AuditLevel.REPLAY,
    openings: bytes = b"",
    *,
    purse: AuditPurse | None = None,
    outline: Outline | None = None,
    others: More | None = None,
) -> CanvasReport:
    """Audit a canvas. A failure that nobody has confirmed is audited again by the same auditor.

    If the second audit does not fail, there is no verdict. A statistical failure gives none either
    before other canvases of the worker look wrong too.

    purse: as `Auditor.audit` has it. outline: as `audit_rules` has it. others: gives more canvases
        of the same worker, opened, and is asked for them if this one looks wrong.

    Raises:
        EvidenceRefused: Level RULES alone: the evidence does not hold.
        MalformedInput: Level RULES alone: the openings are malformed, or of another canvas.
    """
    if level is AuditLevel.RULES:
        return await asyncio.to_thread(audit_rules, evidence, canvas, openings, outline)
    shown = CanvasToAudit(evidence, canvas, openings)
    report = await _twice(auditor, shown, level, purse)
    if report.outcome is AuditOutcome.FAIL and report.statistical:
        return await _beside_others(auditor, report, others, purse)
    return report


async def _twice(
    auditor: Auditor, shown: CanvasToAudit, level: AuditLevel, purse: AuditPurse | None
) -> CanvasReport:
    """Audit a canvas, and once more if it fails and nobody has confirmed that."""
    data, canvas = await asyncio.to_thread(write_evidence, shown.evidence), shown.canvas
    report = await auditor.audit(data, canvas, level, shown.openings, purse=purse)
    passed, failed = (report.outcome is one for one in (AuditOutcome.PASS, AuditOutcome.FAIL))
    if level is AuditLevel.FORCED and (passed or (failed and report.statistical)):
        report = await asyncio.to_thread(_only_whole, report, shown.evidence, shown.openings)
    if report.outcome is not AuditOutcome.FAIL or report.confirmed:
        return report
    # One control is enough: an error in it excuses the canvas, and blames nobody.
    control = not report.statistical
    again = await auditor.audit(data, canvas, level, shown.openings, purse=purse, control=control)
    if again.outcome is AuditOutcome.FAIL:
        # What only one of them is certain of is not confirmed.
        both = replace(report, confirmed=True, statistical=report.statistical or again.statistical)
        if not both.statistical or report.statistical:
            return both
        return await asyncio.to_thread(_only_whole, both, shown.evidence, shown.openings)
    reason = (
        f"the first {level.name.lower()} failed and the second did not, so this machine is unsure"
    )
    if again.reason:
        reason = f"{reason}. It said: {again.reason}"
    return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason, steps=report.steps)


async def _beside_others(
    auditor: Auditor, report: CanvasReport, others: More | None, purse: AuditPurse | None
) -> CanvasReport:
    """Hold a canvas that looks wrong beside others of its worker. Those without a verdict do not
    count. After `MOST_TRIES` of all kinds no more are asked for.

    A finding among the others that is certain needs no more of them.
    """
    findings, beside, lacking = list(report.findings), list[CanvasToAudit](), list[str]()
    seen = tries = 1
    try:
        async with contextlib.aclosing(others or _none()) as more:
            async for other in more:
                tries += 1
                found = await _looked_at(auditor, other, report.level, purse)
                if found.outcome is AuditOutcome.NO_VERDICT:
                    lacking.append(found.reason)
                else:
                    seen += 1
                if found.outcome is AuditOutcome.FAIL and isinstance(other, CanvasToAudit):
                    beside.append(other)
                    findings += [f"{other}: {line}" for line in found.findings]
                    if not found.statistical or is_verdict(1 + len(beside), seen):
                        return replace(report, findings=tuple(findings), beside=tuple(beside))
                if seen >= MOST_CANVASES or tries >= MOST_TRIES:
                    break
    except PieceworkError as error:  # what cannot be looked at takes nothing from what was seen
        lacking.append(str(error))
    return replace(
        report,
        outcome=AuditOutcome.NO_VERDICT,
        findings=(),
        reason=_too_few(findings, seen, len(beside), lacking),
        confirmed=False,
        statistical=False,
    )


async def _looked_at(
    auditor: Auditor, other: CanvasToAudit | NotOpened, level: AuditLevel, purse: AuditPurse | None
) -> CanvasReport:
    """Audit one of the others. What cannot be looked at has no verdict."""
    if isinstance(other, NotOpened):
        return CanvasReport(level, AuditOutcome.NO_VERDICT, 0, reason=other.reason)
    found = await _twice(auditor, other, level, purse)
    if found.outcome is not AuditOutcome.NO_VERDICT:
        return found
    return replace(found, reason=f"{other} has no verdict: {found.reason}")


async def _none() -> More:
    nothing: tuple[CanvasToAudit, ...] = ()
    for one in nothing:
        yield one


def _too_few(findings: Sequence[str], seen: int, beside: int, lacking: Sequence[str]) -> str:
    """Say why a canvas that looks wrong gives no verdict."""
    lines = ["it looks wrong, as an honest canvas does now and then"]
    if seen > 1:
        lines.append(f"{beside} of {seen - 1} other canvases of this worker do too: too few")
    elif not lacking:
        lines.append("there is no other canvas of this worker to hold beside it")
    if lacking:
        lines.append(f"{len(lacking)} others were not judged. The last: {lacking[-1]}")
    return ". ".join((*lines, *findings))


def _only_whole(report: CanvasReport, evidence: EvidenceFile, openings: bytes) -> CanvasReport:
    """Let a forced audit pass only if every step and its soft embedding were opened.

    Whoever saved the openings may have left out the step that is wrong.
    """
    steps = evidence.canvases[report.canvas].receipt.steps
    shown = {one.fields for one in read_openings(openings).steps if one.soft is not None}
    lacking = steps - len(shown)
    if lacking <= 0:
        return report
    reason = f"{lacking} of the canvas's {steps} steps are not opened with their soft embeddings"
    return replace(report, outcome=AuditOutcome.NO_VERDICT, reason=reason)
