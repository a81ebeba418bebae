"""Signed reports of audits, about jobs that never ran."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.evidence.reports import AuditFound, ReportFile, make_report
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.rules.philox import IdPurpose, RandomIds
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.trace import (
    CanvasRecord,
    EmbeddingType,
    StepRecord,
    soft_field,
    trace_root,
    write_bits,
    write_ids,
)
from piecework_protocol.types import Digest
from tests.support.chain.fake_chain import DOMAIN
from tests.support.market.offers import operator
from tests.support.protocol.evidence import PAYER, PROMPT_TOKENS, SIZE, Story, evidence

VOCABULARY = 997
SILENT = Story(with_text=False)
PASSED, FAILED = AuditOutcome.PASS, AuditOutcome.FAIL


def report(
    level: AuditLevel = AuditLevel.REPLAY,
    outcome: AuditOutcome = PASSED,
    *,
    story: Story = SILENT,
    canvas: int = 0,
    signer: LocalSigner = PAYER,
) -> ReportFile:
    """A report about a job as the story says."""
    return make_report(evidence(story), AuditFound(canvas, level, outcome), signer)


def checked_report() -> ReportFile:
    """An honest worker opened every step, and the rules find nothing."""
    file, openings = opened_canvas(SILENT)
    return make_report(file, AuditFound(0, AuditLevel.RULES, PASSED), PAYER, openings)


def invented_trace() -> ReportFile:
    """A worker signed a canvas whose first step does not begin with Philox's noise."""
    file, openings = opened_canvas(SILENT, noise=1)
    found = AuditFound(0, AuditLevel.RULES, FAILED)
    return make_report(file, found, PAYER, openings)


def opened_canvas(
    story: Story,
    *,
    asked: TextContent | None = None,
    noise: int = 0,
    pinned: Digest = EMPTY_ROOT,
) -> tuple[EvidenceFile, dict[str, Any]]:
    """A job of one canvas of two steps, and its openings.

    The first step accepts all, and the second changes nothing, so the canvas ends with it.

    asked: its content.
    noise: what the ids before step 0 are combined with. 0 leaves them as Philox says.
    pinned: the root of pinned positions that the canvas leaf names.
    """
    file = evidence(replace(story, steps=(2,), sentences=("Once.",)), asked)
    job, (shown,) = file.job.job, file.canvases
    record = CanvasRecord(
        canvas=0,
        size=SIZE,
        vocab_size=VOCABULARY,
        kind=job.kind,
        seed=job.parameters.seed,
        parameters=job.parameters.struct_hash(),
        content=job.content,
        pinned=pinned,
        prompt_tokens=PROMPT_TOKENS,
    )
    drawn = RandomIds(job.parameters.seed, 0, 0, IdPurpose.INITIAL, VOCABULARY)
    before = write_ids([drawn.at(place) ^ noise for place in range(SIZE)])
    after = write_ids(range(SIZE))
    soft = soft_field(EmbeddingType.FLOAT32, bytes(8))
    everywhere, sure = write_bits([True] * SIZE), struct.pack("<3e", 0, 0, 20) * SIZE
    steps = (
        StepRecord(0, 0, before, after, after, everywhere, soft, sure),
        StepRecord(0, 1, after, after, after, everywhere, soft, sure),
    )
    leaves = (record.leaf(), *(step.leaf() for step in steps))
    receipt = shown.receipt.replace(trace_root=trace_root(leaves))
    signature = sign(DOMAIN, receipt, operator("worker"))
    canvas = replace(shown, receipt=receipt, signature=signature, leaves=leaves)
    openings = {
        "format": "piecework-openings/1",
        "canvas": ["0x" + one.hex() for one in record.fields()],
        "steps": [
            {"fields": ["0x" + one.hex() for one in step.fields()], "soft": None} for step in steps
        ],
    }
    return replace(file, canvases=(canvas,), payments=()), openings
