"""From an evidence file to what another worker needs to audit one of its canvases. Pure."""

from __future__ import annotations

from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import ProvenJob
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import AuditLevel, Kind


def audit_content(evidence: EvidenceFile, proven: ProvenJob, canvas: int) -> AuditContent:
    """Make the content of an audit of a canvas. It names neither worker nor payer.

    Raises:
        MalformedInput: The file lacks what another worker needs, or the canvas is one that another
            worker cannot audit.
    """
    if not isinstance(proven.content, TextContent | ReadContent) or evidence.content is None:
        raise MalformedInput("the evidence has no text, which an auditor needs")
    if not 0 <= canvas < len(evidence.canvases):
        raise MalformedInput(f"the job has no canvas {canvas}")
    shown, job = evidence.canvases[canvas], evidence.job.job
    if shown.output is None or not shown.leaves:
        raise MalformedInput("the evidence lacks the output or the leaves of this canvas")
    before = (proven.outputs or ())[:canvas] if job.kind is Kind.TEXT else ()
    receipt = shown.receipt
    return AuditContent(
        level=AuditLevel.REPLAY,
        profile=proven.model.profile,
        job_kind=job.kind,
        parameters=job.parameters,
        job_content=job.content,
        asked=evidence.content,
        canvas=canvas,
        committed=tuple(one.token_ids for one in before if isinstance(one, TextOutput)),
        output=shown.output,
        steps=receipt.steps,
        finish=receipt.finish,
        prompt_tokens=receipt.total_prompt_tokens,
        trace_root=receipt.trace_root,
    )
