"""Buying the steps of a canvas that was paid before, from the worker that made it.

The leaves of the steps are in the journal since the canvas came. The worker is asked by them, so
what it opens is held to them before it is paid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from piecework.client.errors import ClientError
from piecework.client.jobs.events import JobFinished, StepOpened
from piecework.client.jobs.requests import JobRequest, OpenRequest
from piecework.client.jobs.run import JobRun
from piecework.client.journal.records import JobRow, ReceiptRow
from piecework.client.journal.store import Store
from piecework_protocol.kinds import KINDS
from piecework_protocol.kinds.open import OpenContent, WantedStep
from piecework_protocol.limits import MAX_OPENED_STEPS
from piecework_protocol.openings import StepOpening, write_openings
from piecework_protocol.trace import CanvasRecord
from piecework_protocol.types import Amount, JobId


class NothingToOpen(ClientError):
    """A canvas has no steps that its worker could open, or this client has no leaves of it."""


class Buyer(Protocol):
    """The client that runs requests: `PieceworkClient`."""

    @property
    def store(self) -> Store: ...

    def run(self, request: JobRequest) -> JobRun: ...


@dataclass(frozen=True, slots=True)
class BoughtSteps:
    """All steps of a canvas as its worker opened them, and what that has cost in base units."""

    canvas: CanvasRecord
    steps: tuple[StepOpening, ...]
    cost: Amount

    @property
    def file(self) -> bytes:
        """The openings file."""
        return write_openings(self.canvas, self.steps)


async def buy_steps(
    client: Buyer, job: JobId, canvas: int, *, soft: bool, max_price: Amount | None = None
) -> BoughtSteps:
    """Buy every step of a canvas. More than one job is signed if it has many.

    soft: whether with the soft embeddings, which a forced audit needs.
    max_price: the most that each of these jobs may cost, in base units.

    Raises:
        NothingToOpen: the canvas has no steps, or its leaves were not kept.
        StoreError: the journal does not know the job.
        ClientError: as `PieceworkClient.ask`.
    """
    row, receipts = await asyncio.to_thread(
        lambda: (client.store.job(job), client.store.receipts(job=job))
    )
    found = next((r for r in receipts if r.receipt.canvas == canvas), None)
    if found is None or not found.leaves or row.prompt_tokens is None:
        raise NothingToOpen(f"canvas {canvas} of this job has no steps that could be opened")
    steps: list[StepOpening] = []
    record: CanvasRecord | None = None
    cost = 0
    for request in _requests(row, found, soft=soft, max_price=max_price):
        async with client.run(request) as run:
            async for event in run:
                if isinstance(event, StepOpened):
                    record = CanvasRecord.parse(event.canvas_fields)
                    steps.append(StepOpening(event.fields, event.soft))
                elif isinstance(event, JobFinished):
                    cost += event.cost
    if record is None or len(steps) != found.receipt.steps:
        raise NothingToOpen(f"the worker opened {len(steps)} of {found.receipt.steps} steps")
    return BoughtSteps(record, tuple(steps), Amount(cost))


def _requests(
    row: JobRow, found: ReceiptRow, *, soft: bool, max_price: Amount | None
) -> Sequence[OpenRequest]:
    """Ask for all steps of a canvas, as many as one job takes at a time."""
    job, offer = row.submission.job, row.offer.offer
    model, canvas = offer.models[job.entry], found.receipt.canvas
    kept = canvas * model.canvas_size if KINDS[job.kind].keeps_canvases else 0
    canvas_leaf, *leaves = found.leaves
    wanted = [WantedStep(step, leaf) for step, leaf in enumerate(leaves)]
    return [
        OpenRequest(
            OpenContent(
                row.id,
                canvas,
                (row.prompt_tokens or 0) + kept,
                canvas_leaf,
                tuple(wanted[start : start + MAX_OPENED_STEPS]),
                soft,
            ),
            operator=offer.operator,
            model="0x" + model.digest.hex(),
            max_price=max_price,
        )
        for start in range(0, len(wanted), MAX_OPENED_STEPS)
    ]
