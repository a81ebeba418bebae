"""A finished job as one value: for callers who want the text and not the events."""

from __future__ import annotations

from dataclasses import dataclass

from piecework.base.amounts import Token, TokenAmount
from piecework.client.errors import WorkerUnreachable
from piecework.client.jobs.events import CanvasText, JobFinished, JobStarted
from piecework.client.jobs.run import JobRun


@dataclass(frozen=True, slots=True)
class Completion:
    """What `PieceworkClient.ask` returns.

    Attributes:
        started: Which worker and model took the job, and the most that it could cost.
        canvases: The text piece by piece, each with its receipt.
        finished: Why the text ends, and what it took.
        token: What the amounts are counted in.
    """

    started: JobStarted
    canvases: tuple[CanvasText, ...]
    finished: JobFinished
    token: Token

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(canvas.text for canvas in self.canvases)

    @property
    def cost(self) -> TokenAmount:
        """What the job has cost."""
        return self.token.amount(self.finished.cost)


async def collect(run: JobRun, token: Token) -> Completion:
    """Follow a run to its end.

    Raises:
        ClientError: as `PieceworkClient.run`.
    """
    started: JobStarted | None = None
    finished: JobFinished | None = None
    canvases = []
    async with run:
        async for event in run:
            if isinstance(event, JobStarted):
                started = event
            elif isinstance(event, CanvasText):
                canvases.append(event)
            elif isinstance(event, JobFinished):
                finished = event
    if started is None or finished is None:
        raise WorkerUnreachable("the job ended without a word")
    return Completion(started, tuple(canvases), finished, token)
