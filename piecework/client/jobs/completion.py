"""A finished job as one value: for callers who want the text and not the events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from piecework.base.amounts import Token, TokenAmount
from piecework.client.errors import WorkerUnreachable
from piecework.client.jobs.events import CanvasText, JobFinished, JobStarted
from piecework.client.jobs.run import JobRun
from piecework_protocol.conversation import ToolCall
from piecework_protocol.kinds.text import OutputSegment, SegmentKind, read_tool_call


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
        """The whole final text, without thoughts and calls."""
        return "".join(canvas.text for canvas in self.canvases)

    @property
    def thoughts(self) -> str:
        """What the model thought before it answered."""
        return "".join(part.text for part in self._parts(SegmentKind.THOUGHT))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools that the model calls, in order. Their ids are `call-0`, `call-1`, …"""
        calls = enumerate(self._parts(SegmentKind.TOOL_CALL))
        return tuple(read_tool_call(part.text, f"call-{number}") for number, part in calls)

    def _parts(self, kind: SegmentKind) -> Iterator[OutputSegment]:
        return (part for c in self.canvases for part in c.segments if part.kind is kind)

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
