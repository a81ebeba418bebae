"""What the stand-in engine reports of a canvas that it audits, by the rules of the real one."""

from __future__ import annotations

from collections.abc import Sequence

from piecework_model.requests import HOLE, CanvasEvent, GenerationRequest
from piecework_node.engine.link import EngineFacts
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import AuditOutcome, Finish, Kind
from piecework_protocol.trace import CanvasRecord, StepRecord, pinned_root, trace_root


def audit_report(
    facts: EngineFacts,
    content: AuditContent,
    request: GenerationRequest,
    records: Sequence[StepRecord],
    event: CanvasEvent,
) -> AuditOutput:
    """Compare what is claimed of a canvas with what this engine makes of it."""
    size, canvas = facts.canvas_size, content.canvas
    pins = request.template[canvas * size : (canvas + 1) * size]
    record = CanvasRecord(
        canvas=canvas,
        size=size,
        vocab_size=facts.vocab_size,
        kind=content.job_kind,
        seed=content.parameters.seed,
        parameters=content.parameters.struct_hash(),
        content=content.job_content,
        pinned=pinned_root((i, token) for i, token in enumerate(pins) if token != HOLE),
        prompt_tokens=content.prompt_tokens,
    )
    told = (
        ReadOutput(event.answers)
        if content.job_kind is Kind.READ
        else TextOutput(event.charged_ids, event.segments)
    )
    root = trace_root((record.leaf(), *(one.leaf() for one in records)))
    found = []
    if root != content.trace_root:
        found.append("the trace is another one")
    if event.steps != content.steps:
        found.append(f"{content.steps} steps are charged, and the canvas takes {event.steps}")
    if len(request.prompt_ids) != content.prompt_tokens:
        found.append("other prompt tokens are charged than the prompt has")
    if told != content.told or Finish(int(event.finish)) is not content.finish:
        found.append("the delivered tokens are others than those of the canvas")
    return AuditOutput(
        level=content.level,
        profile=content.profile,
        trace_root=content.trace_root,
        outcome=AuditOutcome.FAIL if found else AuditOutcome.PASS,
        canvas_leaf=record.leaf(),
        steps=len(records),
        prompt_tokens=len(request.prompt_ids),
        findings=tuple(found),
    )
