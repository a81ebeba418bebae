"""An openings file: the steps of one canvas with all their fields, as a forced audit takes them.

It is one JSON object on one line:

    {"format": "piecework-openings/1", "canvas": ["0x…", …],
     "steps": [{"fields": ["0x…", …], "soft": "0x…" or null}, …]}

canvas: the six fields of `piecework_protocol.trace.CanvasField`. Only the rules need them. fields:
the seven fields of `piecework_protocol.trace.StepField`, in their order. soft: the soft embedding's
values, row by row, in the number type that the step's own field names. The fields of a canvas or a
step lead to its leaf without a proof, because all of them are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_model.audit.opening import OpenedStep, read_soft
from piecework_model.bounds import ModelLimits
from piecework_model.errors import OpeningError
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_DENOISING_STEPS
from piecework_protocol.trace import CanvasRecord, StepField, StepRecord

FORMAT: Final = "piecework-openings/1"


@dataclass(frozen=True, slots=True)
class StepOpening:
    """All fields of a step, and its soft embedding as bytes if it is opened."""

    fields: tuple[bytes, ...]
    soft: bytes | None


def read_openings(data: bytes) -> tuple[StepOpening, ...]:
    """Read an openings file.

    Raises:
        OpeningError: It is not one.
    """
    try:
        body = loads(data)
        if body["format"] != FORMAT or len(body["steps"]) > MAX_DENOISING_STEPS:
            raise ValueError("format or number of steps")
        return tuple(_step(step) for step in body["steps"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OpeningError(f"this is no openings file: {error}") from None


def write_openings(canvas: CanvasRecord, steps: Sequence[StepOpening]) -> dict[str, Any]:
    """Return the JSON object of an openings file."""
    return {
        "format": FORMAT,
        "canvas": ["0x" + field.hex() for field in canvas.fields()],
        "steps": [
            {
                "fields": ["0x" + field.hex() for field in step.fields],
                "soft": None if step.soft is None else "0x" + step.soft.hex(),
            }
            for step in steps
        ],
    }


def opened_steps(
    openings: Sequence[StepOpening], leaves: Sequence[bytes], limits: ModelLimits, width: int
) -> list[OpenedStep]:
    """Hold openings to the leaves of their canvas, of which the first is the canvas leaf.

    width: of the model's hidden states.

    Raises:
        OpeningError: A step is not the one that its leaf commits to, or not of this model.
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


def _step(body: Any) -> StepOpening:
    if len(body["fields"]) != len(StepField):
        raise ValueError("a step has seven fields")
    soft = body["soft"]
    return StepOpening(
        tuple(_bytes(field) for field in body["fields"]), None if soft is None else _bytes(soft)
    )


def _bytes(text: str) -> bytes:
    if not text.startswith("0x"):
        raise ValueError("bytes begin with 0x")
    return bytes.fromhex(text[2:])
