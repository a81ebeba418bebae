"""The rule about the output: it is what the last argmax canvas says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish
from piecework_protocol.rules.case import Case, Vocabulary
from piecework_protocol.rules.findings import Finding, RuleNumber
from piecework_protocol.trace import StepField, read_ids

Ids = tuple[int, ...]


def check_output(case: Case) -> Iterator[Finding]:
    """Hold the output to the receipt, and of a finished text to its last argmax canvas."""
    output, receipt = case.output, case.receipt
    if output is None:
        return
    if output.units != receipt.units or receipt.units > case.model.canvas_size:
        text = f"{receipt.units} tokens charged for {output.units} delivered"
        yield Finding(RuleNumber.OUTPUT, None, text)
        return
    last = case.steps.get(receipt.steps - 1, {}).get(StepField.ARGMAX)
    if not isinstance(output, TextOutput) or last is None or receipt.finish is Finish.CANCELLED:
        return
    try:
        canvas = read_ids(last)
    except MalformedInput:
        return  # reported as FIELDS
    if not _is_said(case, output.token_ids, canvas):
        yield Finding(
            RuleNumber.OUTPUT, receipt.steps - 1, "the output is not that of the last argmax canvas"
        )


def _is_said(case: Case, output: Ids, canvas: Ids) -> bool:
    """Say whether an output can be what is charged of a canvas.

    Without the outline nobody knows whether a canvas without pins is a part of a template, all of
    whose positions are free. Then it is said if either reading says it.
    """
    if case.outline is not None and not case.outline.templated:
        return _is_free_text(case, output, canvas)
    if case.outline is None and not case.known_pins and _is_free_text(case, output, canvas):
        return True
    if case.vocabulary is None or case.known_pins is None:
        rest = iter(canvas)
        return all(token in rest for token in output)
    # Whether the hole that the canvas begins in had ended stands on the canvas before it.
    variants = (False, True) if case.receipt.canvas else (False,)
    form = case.known_pins
    return any(output == _filled(canvas, form, case.vocabulary, ended) for ended in variants)


def _is_free_text(case: Case, output: Ids, canvas: Ids) -> bool:
    """Say whether an output is the canvas up to its first end-of-text id, or to the token limit."""
    receipt, vocabulary = case.receipt, case.vocabulary
    if canvas[: len(output)] != output:
        return False
    if vocabulary is None:
        return True
    ends = [place for place, token in enumerate(canvas) if token in vocabulary.end_ids]
    left = case.job.parameters.max_tokens - (receipt.total_units - receipt.units)
    end = ends[0] if ends else len(canvas)
    if len(output) != min(end, left):
        return False
    ended = bool(ends) and end <= left
    limit = Finish.TOKEN_LIMIT if len(output) == left else Finish.MORE
    return receipt.finish is (Finish.END_OF_TEXT if ended else limit)


def _filled(
    canvas: Sequence[int], pins: Mapping[int, int], vocabulary: Vocabulary, ended: bool
) -> Ids:
    """List what is charged of a template's canvas. ended: whether its first hole had ended."""
    charged: list[int] = []
    for place, token in enumerate(canvas):
        if place in pins:
            if token in vocabulary.end_ids:
                continue  # behind the form, or the rest of a hole that ended on an earlier canvas
            charged.append(token)
            ended = False
        elif token in vocabulary.end_ids:
            ended = True
        elif not ended and token not in vocabulary.control_ids:
            charged.append(token)
    return tuple(charged)
