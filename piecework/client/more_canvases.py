"""More canvases of a worker, for an audit whose first one looks wrong. Their steps are bought.

The worker learns that another canvas is opened, and not which one comes next: the order is drawn.
It has committed to all of them before.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from piecework.base.errors import PieceworkError
from piecework.client.auditing import OpenedCanvas, choose_canvas
from piecework.client.journal.records import JobRow
from piecework.client.openings import BoughtSteps, Buyer, buy_steps
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.types import JobId

RECENT_JOBS: Final = 64
"""Of the journal. Canvases of other jobs are drawn among so many."""
T = TypeVar("T")


class EvidenceKeeper(Buyer, Protocol):
    """The client whose jobs they are: `PieceworkClient`."""

    async def evidence(self, job: JobId) -> tuple[EvidenceFile, str]: ...


async def opened_beside(
    evidence: EvidenceFile, canvas: int, opened: Mapping[int, bytes]
) -> AsyncIterator[OpenedCanvas]:
    """Yield the other canvases of a job whose openings files are there, in a drawn order.

    opened: openings files, by canvas.
    """
    for other in shuffled([number for number in opened if number != canvas]):
        if other < len(evidence.canvases):
            yield OpenedCanvas(evidence, other, opened[other])


async def bought_beside(
    client: EvidenceKeeper,
    job: JobId,
    evidence: EvidenceFile,
    canvas: int,
    bought: Callable[[BoughtSteps], None],
) -> AsyncIterator[OpenedCanvas]:
    """Yield more canvases of the worker of a job, and buy the steps of each before.

    First come those of this job, then one of each other recent job of the same worker and kind
    whose text is kept. What the worker does not open is left out.

    bought: told of the steps of each.
    """

    async def opened(of: JobId, file: EvidenceFile, number: int) -> OpenedCanvas | None:
        try:
            steps = await buy_steps(client, of, number, soft=True)
        except PieceworkError:
            return None
        bought(steps)
        return OpenedCanvas(file, number, steps.file)

    traced = [shown.receipt.canvas for shown in evidence.canvases if shown.receipt.steps]
    for number in shuffled([one for one in traced if one != canvas]):
        if (found := await opened(job, evidence, number)) is not None:
            yield found
    for row in shuffled(await asyncio.to_thread(_alike, client, job)):
        try:
            file, missing = await client.evidence(row.id)
        except PieceworkError:  # a job without a receipt, say
            continue
        drawn = None if missing else choose_canvas(file, secrets.token_bytes)
        if drawn is not None and (found := await opened(row.id, file, drawn)) is not None:
            yield found


def _alike(client: Buyer, job: JobId) -> list[JobRow]:
    """List recent jobs of the same worker and kind as a job, without it."""
    mine = client.store.job(job).submission
    return [
        row
        for row in client.store.jobs()[-RECENT_JOBS:]
        if row.id != job
        and row.submission.channel.operator == mine.channel.operator
        and row.submission.job.kind == mine.job.kind
    ]


def shuffled(items: Sequence[T]) -> list[T]:
    """Put items into an order that no worker can know."""
    return secrets.SystemRandom().sample(items, len(items))
