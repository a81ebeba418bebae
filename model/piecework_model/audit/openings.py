"""Openings of a canvas, held to its leaves: what a forced audit takes."""

from __future__ import annotations

from collections.abc import Sequence

from piecework_model.audit.opening import OpenedStep, read_soft
from piecework_model.bounds import ModelLimits
from piecework_model.errors import OpeningError
from piecework_protocol.errors import MalformedInput
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import StepField, StepRecord


def opened_steps(
    openings: Sequence[StepOpening], leaves: Sequence[bytes], limits: ModelLimits, width: int
) -> list[OpenedStep]:
    """Hold openings to the leaves of their canvas, of which the first is the canvas leaf.

    width: of the model's hidden states.

    Raises:
        OpeningError: A step is not the one that its leaf commits to.
        ImpossibleStepError: The one that its leaf commits to is none that this model makes.
    """
    opened: list[OpenedStep] = []
    for one in openings:
        try:
            record = StepRecord.parse(one.fields)
        except MalformedInput as error:
            raise OpeningError(str(error)) from None
        if record.step + 1 >= len(leaves) or record.leaf() != leaves[record.step + 1]:
            raise OpeningError(f"step {record.step} is not the one that was committed")
        if opened and record.step <= opened[-1].step:
            raise OpeningError("the steps do not ascend")
        soft = None
        if one.soft is not None:
            field = one.fields[StepField.SOFT]
            soft = read_soft(field, one.soft, positions=limits.canvas_size, width=width)
        opened.append(OpenedStep.of(record, soft, limits))
    return opened
