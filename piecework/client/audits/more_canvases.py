"""More canvases of a worker, for an audit whose first one looks wrong. Their steps are bought.

The worker learns that another canvas is opened, and not which one comes next: the order is drawn.
It has committed to all of them before.

How far off an honest canvas is depends on its prompt. So at most one job of each content is taken
beside the audited one, and none of its own content.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from piecework.base.errors import PieceworkError
from piecework.client.audits.auditor import Auditor, CanvasToAudit, More, NotOpened
from piecework.client.audits.drawing import judgeable, shuffled
from piecework.client.audits.openings import BoughtSteps, Buyer, NothingToOpen, buy_steps
from piecework.client.evidence import Texts, make_evidence
from piecework.client.jobs.driver import JobContext
from piecework.client.journal.records import JobRow
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.types import JobId

RECENT_JOBS: Final = 64
"""The latest jobs of the worker, of which canvases are drawn."""


class JobKeeper(Buyer, Protocol):
    """The client whose jobs they are: `PieceworkClient`."""

    @property
    def context(self) -> JobContext: ...


async def opened_beside(evidence: EvidenceFile, canvas: int, opened: Mapping[int, bytes]) -> More:
    """Yield the other canvases of a job, whose openings files were given, in a drawn order.

    All of them must be there. Whoever chose some may have left out those that look right.

    opened: openings files, by canvas.
    """
    others = _beside(evidence, canvas)
    for number in others:
        if number not in opened:
            yield NotOpened(f"the openings of canvas {number} were not given")
            return
    for number in others:
        yield CanvasToAudit(evidence, number, opened[number])


async def bought_beside(
    client: JobKeeper,
    auditor: Auditor,
    evidence: EvidenceFile,
    canvas: int,
    bought: Callable[[BoughtSteps], None],
) -> More:
    """Yield more canvases of the worker of a job, and buy the steps of each before.

    First come those of this job. Then comes one of each other recent job of the same worker, model
    and kind whose text is kept.

    auditor: asked first about each. No steps are bought that it could not judge.
    bought: told of the steps of each.
    """
    job = evidence.job.job.id(evidence.domain)

    async def opened(of: JobId, file: EvidenceFile, number: int) -> CanvasToAudit | NotOpened:
        try:
            data = await asyncio.to_thread(write_evidence, file)
            if lacking := await auditor.forced_lacks(data, number):
                raise NothingToOpen(lacking)
            steps = await buy_steps(client, of, number, soft=True)
        except PieceworkError as error:
            return NotOpened(f"canvas {number} of job {of.hex()[:16]} was not opened: {error}")
        bought(steps)
        return CanvasToAudit(file, number, steps.file)

    for number in _beside(evidence, canvas):
        yield await opened(job, evidence, number)
    asked = {evidence.content}
    for row in shuffled(await asyncio.to_thread(_alike, client, job)):
        file = await _evidence_of(client, row)
        if file is None or file.content in asked:
            continue
        asked.add(file.content)
        if numbers := shuffled(judgeable(file)):
            yield await opened(row.id, file, numbers[0])


def _beside(evidence: EvidenceFile, canvas: int) -> list[int]:
    """Draw an order of the other canvases of a job that a forced audit can judge."""
    return shuffled([number for number in judgeable(evidence) if number != canvas])


def _alike(client: JobKeeper, job: JobId) -> list[JobRow]:
    """List recent jobs of the same worker, model and kind as a job, without it. Their worker must
    still keep what opens them.
    """
    mine, now = client.store.job(job).submission, client.context.now()
    found = [
        row
        for row in client.store.jobs()
        if row.id != job
        and now < row.submission.job.deadline + row.offer.offer.evidence_seconds
        and row.submission.channel.operator == mine.channel.operator
        and row.submission.job.model == mine.job.model
        and row.submission.job.kind == mine.job.kind
    ]
    return found[-RECENT_JOBS:]


async def _evidence_of(client: JobKeeper, row: JobRow) -> EvidenceFile | None:
    """Make the evidence of a job whose text is kept in full, without asking anybody."""
    kept = await asyncio.to_thread(client.store.texts, row.id)
    if kept.content is None or not kept.outputs:
        return None
    try:
        return await make_evidence(client.context, row.id, Texts(kept.content, kept.outputs))
    except PieceworkError:  # a job without a receipt, say
        return None
