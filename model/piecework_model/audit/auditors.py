"""The report of an audit that was bought, and the audit of the auditor.

Did the one who was paid for an audit report what the canvas shows? The evidence of an audit job has
all that it takes: the claim that was audited, the signed report, and the leaves of the auditor's
own trace.
"""

from __future__ import annotations

from dataclasses import dataclass

from piecework_model.audit.job import CanvasAudit, JobAudit
from piecework_model.audit.replay import Replayer, first_difference
from piecework_model.engine.executor import SequenceStep
from piecework_model.errors import AuditError, RequestError
from piecework_protocol.evidence.check import ProvenJob
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.trace import StepRecord


@dataclass(frozen=True, slots=True)
class WalkedCanvas:
    """A canvas that was computed again, pass by pass. Implements `job.ComputedCanvas`."""

    records: tuple[StepRecord, ...]
    token_ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    finished: bool


def report_of(
    job: JobAudit, content: AuditContent, records: tuple[StepRecord, ...], last: SequenceStep
) -> AuditOutput:
    """Make the report of an audit.

    records: of the steps that were computed again. last: what the last of them gave.

    Raises:
        AuditError: The canvas is not the one that is claimed.
    """
    committed = job.request_of(content.canvas).committed
    walked = WalkedCanvas(records, last.argmax, last.answers, last.finished)
    found = job.judged(content.canvas, walked, committed)
    return AuditOutput(
        level=content.level,
        profile=content.profile,
        trace_root=content.trace_root,
        outcome=found.outcome,
        canvas_leaf=job.canvas_record(committed).leaf(),
        steps=len(records),
        prompt_tokens=job.prompt_tokens,
        findings=found.findings,
    )


def judge_report(
    job: JobAudit,
    replayer: Replayer,
    content: AuditContent,
    evidence: EvidenceFile,
    proven: ProvenJob,
) -> CanvasAudit:
    """Hold the report of an audit job to a replay on the same profile.

    job: the claim that was audited.

    Raises:
        AuditError: There is no report, or the replay failed here.
    """
    output = proven.outputs[0] if proven.outputs else None
    leaves = evidence.canvases[0].leaves if evidence.canvases else None
    if not isinstance(output, AuditOutput) or not output.profile or leaves is None:
        raise AuditError("the evidence has no report of an audit that was finished")
    request = job.request_of(content.canvas)
    try:
        replayed = replayer.replay(request, steps=content.steps)
    except RequestError as error:
        raise AuditError(f"this job cannot be replayed: {error}") from error
    true = job.judged(content.canvas, replayed, request.committed)
    lines = []
    if output.outcome is not true.outcome:
        words = {AuditOutcome.PASS: "passes", AuditOutcome.FAIL: "fails"}
        lines.append(
            f"the auditor says that the canvas {words[output.outcome]}, and it "
            f"{words[true.outcome]}: {'; '.join(true.findings) or 'nothing is wrong with it'}"
        )
    if output.prompt_tokens != job.prompt_tokens:
        lines.append(f"the auditor counts {output.prompt_tokens} prompt tokens of the job")
    if output.canvas_leaf != job.canvas_record(request.committed).leaf():
        lines.append("the auditor's canvas leaf is another")
    place = first_difference(replayed.leaves, leaves[1:])
    if place is not None:
        lines.append(f"the auditor's trace differs from step {place} on")
    outcome = AuditOutcome.FAIL if lines else AuditOutcome.PASS
    steps, level, own = len(replayed.steps), AuditLevel.REPLAY, replayed.leaves
    return CanvasAudit(level, outcome, 0, steps, tuple(lines), leaves=own)
