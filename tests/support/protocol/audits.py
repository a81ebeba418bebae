"""Claims about canvases, and reports on them, without an engine."""

from __future__ import annotations

from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import (
    AuditLevel,
    AuditOutcome,
    Finish,
    Kind,
    Parameters,
    Service,
)
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Digest, Micros, Uint32, Uint64, keccak256
from tests.support.protocol.conversations import said

LEAVES = tuple(Digest(keccak256(bytes((index,)))) for index in range(4))
"""The canvas leaf and three steps."""
PARAMETERS = Parameters(
    seed=Uint64(2**64 - 1),
    max_tokens=Uint32(12),
    max_steps=Uint32(6),
    temperature_start=Micros(800_000),
    temperature_end=Micros(400_000),
    entropy_bound=Micros(100_000),
    confidence_threshold=Micros(5_000),
    stability_steps=Uint32(1),
    service=Service.REPLAYABLE,
)
CLAIM = AuditContent(
    level=AuditLevel.REPLAY,
    profile="a profile",
    job_kind=Kind.TEXT,
    parameters=PARAMETERS,
    job_content=Digest(keccak256(b"content")),
    asked=TextContent(said("What comes at the end?")).encode(),
    canvas=2,
    committed=((1, 2, 3, 4), (5, 6, 7, 8)),
    output=TextOutput.plain((9, 10), "the end").encode(),
    steps=3,
    finish=Finish.END_OF_TEXT,
    prompt_tokens=7,
    trace_root=trace_root(LEAVES),
)
READ_CLAIM = AuditContent(
    level=AuditLevel.REPLAY,
    profile="a profile",
    job_kind=Kind.READ,
    parameters=PARAMETERS.replace(max_steps=Uint32(1), max_tokens=Uint32(16)),
    job_content=Digest(keccak256(b"another content")),
    asked=ReadContent(
        said("The fox sleeps."), (Question("Is it?", (Label("yes"), Label("no"))),), draws=4
    ).encode(),
    canvas=3,
    committed=(),
    output=ReadOutput(((ONE - 5, 5),)).encode(),
    steps=1,
    finish=Finish.END_OF_TEXT,
    prompt_tokens=7,
    trace_root=trace_root(LEAVES[:2]),
)


def report_on(content: AuditContent, outcome: AuditOutcome) -> AuditOutput:
    """What an auditor says whose canvas leaf is that of `LEAVES`."""
    return AuditOutput(
        level=content.level,
        profile=content.profile,
        trace_root=content.trace_root,
        outcome=outcome,
        canvas_leaf=LEAVES[0],
        steps=content.steps,
        prompt_tokens=content.prompt_tokens,
        findings=("the trace is another one",) if outcome is AuditOutcome.FAIL else (),
    )
