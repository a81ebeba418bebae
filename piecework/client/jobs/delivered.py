"""What a caller gets of a canvas that is verified and paid."""

from __future__ import annotations

from typing import Final, TypedDict

from piecework.client.jobs.events import CanvasText, FinishReason, ReadAnswers, StepOpened
from piecework.client.journal.records import JobRow, Payment
from piecework_protocol.client_session import CanvasVerified
from piecework_protocol.kinds.open import OpenOutput
from piecework_protocol.kinds.read import on_canvas
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish, ModelOffer
from piecework_protocol.types import Amount, Digest

_FINISHES: Final = {
    Finish.END_OF_TEXT: FinishReason.END_OF_TEXT,
    Finish.TOKEN_LIMIT: FinishReason.TOKEN_LIMIT,
}


class _Paid(TypedDict):
    """What the events of all kinds say of a canvas."""

    canvas: int
    steps: int
    amount: Amount
    cost: Amount
    receipt: Digest
    leaf_index: int
    last: bool
    again: bool


def finish_reason(last: Finish) -> FinishReason:
    """Say why a text ends, from the job's last receipt."""
    return _FINISHES.get(last, FinishReason.CANCELLED)


def delivered(
    event: CanvasVerified, payment: Payment, cost: Amount, job: JobRow, model: ModelOffer
) -> CanvasText | ReadAnswers | StepOpened:
    """Return the event for the caller. `cost` is that of the whole job so far."""
    receipt, output = event.receipt, event.output
    paid: _Paid = {
        "canvas": receipt.canvas,
        "steps": receipt.steps,
        "amount": receipt.amount,
        "cost": cost,
        "receipt": event.digest,
        "leaf_index": payment.leaf_index,
        "last": receipt.finish is not Finish.MORE,
        "again": payment.again,
    }
    if isinstance(output, TextOutput):
        return CanvasText(
            segments=output.segments, tokens=receipt.units, token_ids=output.token_ids, **paid
        )
    if isinstance(output, OpenOutput):
        return StepOpened(
            canvas_fields=output.canvas, fields=output.fields, soft=output.soft, **paid
        )
    outline = job.outline
    asked = on_canvas(len(outline.labels), outline.draws, receipt.canvas, model.canvas_size)
    # A cancelled canvas has no answers.
    questions = tuple(asked)[: len(output.answers)]
    return ReadAnswers(questions=questions, answers=output.answers, **paid)
