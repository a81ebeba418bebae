"""Which exact rule two opened leaves break, as what the dispute contract is shown. Pure.

What the contract can check of a canvas leaf and one step is tried here first, with the same
arithmetic. Continuity needs two steps, and what is pinned needs the pins, so neither is tried.
"""

from __future__ import annotations

from collections.abc import Iterator

from piecework.chain.contracts.evidence_calls import TraceEvidence
from piecework_protocol.disputes import OpenedLeaf, TraceRule, applies
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.file import CanvasEvidence
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import Job
from piecework_protocol.rules.philox import IdPurpose, RandomIds
from piecework_protocol.trace import (
    CanvasRecord,
    StepField,
    StepRecord,
    read_bits,
    read_ids,
)


def broken_rule(
    job: Job, shown: CanvasEvidence, canvas_leaf: OpenedLeaf | None, step_leaf: OpenedLeaf
) -> TraceEvidence | None:
    """Return what shows that a trace breaks a rule, or None.

    The leaves are open whole, and were proved under the receipt's trace root. Without the canvas
    leaf only the output can be held to the step.
    """
    finish = shown.receipt.finish
    return next(
        (
            found
            for found in _found(job, shown, canvas_leaf, step_leaf)
            if applies(found.rule, job.kind, finish)
        ),
        None,
    )


def _found(
    job: Job, shown: CanvasEvidence, canvas_leaf: OpenedLeaf | None, step_leaf: OpenedLeaf
) -> Iterator[TraceEvidence]:
    receipt = shown.receipt
    if canvas_leaf is None:
        yield from _output(shown, step_leaf)
        return
    try:
        record = CanvasRecord.parse(canvas_leaf.fields)
    except MalformedInput:
        yield TraceEvidence(rule=TraceRule.CANVAS_LEAF, leaves=(canvas_leaf,))
        return
    said = (record.canvas, record.kind, record.seed, record.parameters, record.content)
    parameters = job.parameters
    mine = (receipt.canvas, job.kind, parameters.seed, parameters.struct_hash(), job.content)
    if said != mine:
        yield TraceEvidence(rule=TraceRule.CANVAS_LEAF, leaves=(canvas_leaf,))
        return
    both = (canvas_leaf, step_leaf)
    try:
        step = StepRecord.parse(step_leaf.fields)
    except MalformedInput:
        yield TraceEvidence(rule=TraceRule.STEP_LEAF, leaves=both)
        return
    if (step.canvas, step.step, step.size) != (
        receipt.canvas,
        step_leaf.index - 1,
        record.size,
    ):
        yield TraceEvidence(rule=TraceRule.STEP_LEAF, leaves=both)
        return
    yield from _random(record, step, both)
    yield from _output(shown, step_leaf)


def _random(
    record: CanvasRecord, step: StepRecord, both: tuple[OpenedLeaf, OpenedLeaf]
) -> Iterator[TraceEvidence]:
    """Hold the positions that nothing chose to Philox. Pins are not known here."""
    if step.step == 0 and record.pinned == EMPTY_ROOT:
        ids = RandomIds(record.seed, record.canvas, 0, IdPurpose.INITIAL, record.vocab_size)
        for place, token in enumerate(read_ids(step.before)):
            if token != ids.at(place):
                yield TraceEvidence(rule=TraceRule.INITIAL_CANVAS, leaves=both, position=place)
    ids = RandomIds(record.seed, record.canvas, step.step, IdPurpose.RENOISE, record.vocab_size)
    accepted = read_bits(step.accepted, record.size)
    for place, token in enumerate(read_ids(step.after)):
        if not accepted[place] and token != ids.at(place):
            yield TraceEvidence(rule=TraceRule.RENOISE, leaves=both, position=place)


def _output(shown: CanvasEvidence, step_leaf: OpenedLeaf) -> Iterator[TraceEvidence]:
    if shown.output is None or step_leaf.index != shown.receipt.steps:
        return
    evidence = TraceEvidence(rule=TraceRule.OUTPUT, leaves=(step_leaf,), output=shown.output)
    try:
        output = TextOutput.decode(shown.output)
        rest = iter(read_ids(step_leaf.fields[StepField.ARGMAX]))
    except MalformedInput:
        return  # of another kind, or refused when it came
    if not all(token in rest for token in output.token_ids):
        yield evidence
