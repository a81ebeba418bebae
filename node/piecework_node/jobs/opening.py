"""Jobs of kinds `open` and `audit`: canvases that were made before, beside the engines' own jobs.

To the worker this is an engine for jobs of these kinds alone. For an opening it finds the steps of
an earlier canvas, kept or computed again, and reports each as a finished canvas. For an audit the
engine of the job's card computes another worker's canvas again (`jobs.auditing`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from piecework_model.requests import (
    AuditAsked,
    CanvasEvent,
    CanvasFinish,
    Event,
    FailedEvent,
    GenerationRequest,
    OpeningAsked,
    ProgressEvent,
    StoppedEvent,
)
from piecework_node.engine.link import EngineLink, ReplayWork
from piecework_node.jobs import auditing
from piecework_node.jobs.auditing import CannotAudit
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import StoredJob
from piecework_node.runtime.opener import CannotOpen, CanvasOpener
from piecework_protocol.errors import MalformedInput, Reason, Refusal
from piecework_protocol.kinds import KINDS
from piecework_protocol.kinds.open import OpenContent, OpenOutput
from piecework_protocol.objects import Kind
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import CanvasRecord, StepRecord, leaf_of
from piecework_protocol.types import Address, JobId

NO_SUCH_STEPS: Final = "this payer has no such steps here"
"""Of a job of somebody else nothing more is said."""

Sink = Callable[[Event], Awaitable[None]]


@dataclass(slots=True)
class _Opening:
    """A sequence of ours.

    engine: of the card that the job is on. limit: the first canvas that may not be reported yet.
    """

    request: GenerationRequest
    engine: EngineLink
    asked: OpeningAsked | AuditAsked
    limit: int
    canvas: int
    work: ReplayWork
    """What the engine has done for it."""
    begun: bool = False
    found: bool = False
    """Whether everything is there that is asked for."""
    cancelled: bool = False
    """Whether the task was cancelled for `stop`. It says then what was done."""
    end: int | None = None
    """The first canvas that is not reported any more. None: it goes on to its last."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class OpeningServer:
    """Implements `OpeningService`. `sink` takes the events of what is served here."""

    def __init__(self, opener: CanvasOpener, journal: Journal) -> None:
        self._opener, self._journal = opener, journal
        self.sink: Sink | None = None
        """The worker sets it."""
        self._openings: dict[str, _Opening] = {}
        self._large = asyncio.Lock()
        """One opening with soft embeddings at a time: they may have a hundred MB."""
        self._telling: set[asyncio.Task[None]] = set()

    # --- sequences

    def start(self, request: GenerationRequest, engine: EngineLink) -> None:
        asked = request.opening or request.auditing
        if asked is None:
            raise ValueError("a request that opens and audits nothing")
        name, canvas = request.request_id, len(request.committed)
        work = ReplayWork(lambda: self._computed(name))
        opening = _Opening(request, engine, asked, request.canvas_limit, canvas, work)
        self._openings[name] = opening
        opening.task = asyncio.create_task(self._serve(opening), name="opening")

    def allow(self, request_id: str, canvas_limit: int) -> None:
        opening = self._openings.get(request_id)
        if opening is not None:
            opening.limit, opening.end = max(opening.limit, canvas_limit), None
            opening.changed.set()

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        opening = self._openings.get(request_id)
        if opening is None:
            return
        # A step that is found is reported at once, so no canvas is half done.
        half_done = not opening.found and opening.work.prompt_tokens > 0
        opening.end = opening.canvas + (finish_canvas and half_done)
        opening.changed.set()
        if not opening.found and opening.end == opening.canvas and opening.task is not None:
            opening.cancelled = True
            opening.task.cancel()

    async def close(self) -> None:
        """End what is served. The journal has what was reported."""
        running = [opening.task for opening in self._openings.values() if opening.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *self._telling, return_exceptions=True)

    # --- openings

    async def check(self, content: OpenContent, payer: Address) -> None:
        """Check that steps can be asked for by this payer.

        Raises:
            Refusal: the job is not its own, the journal has let go of it, or the steps are others
                than those that the worker has signed for.
        """
        stored = await self._journal.job(content.job)
        if stored is None or stored.submission.channel.payer != payer:
            raise Refusal(Reason.NOT_OPENED, NO_SUCH_STEPS)
        fault = await self._fault(stored, content)
        if fault is not None:
            raise Refusal(Reason.NOT_OPENED, fault)

    async def _fault(self, stored: StoredJob, content: OpenContent) -> str | None:
        job = stored.submission.job
        if job.kind not in (Kind.TEXT, Kind.READ):
            return f"a job of kind {job.kind.name.lower()} has no steps of its own"
        if content.canvas >= len(stored.canvases) or not _signed_for(stored, content):
            return NO_SUCH_STEPS
        signed = await self._journal.offer(job.offer)
        model = None if signed is None else signed.offer.entry(job)
        if model is None:
            return "the journal does not have the offer of this job any more"
        kept = content.canvas * model.canvas_size if KINDS[job.kind].keeps_canvases else 0
        if content.context != stored.prompt_tokens + kept:
            return f"{stored.prompt_tokens + kept} tokens come before this canvas"
        return None

    async def _serve(self, opening: _Opening) -> None:
        """Find the steps, and report them as they are allowed."""
        name, asked = opening.request.request_id, opening.asked
        try:
            if isinstance(asked, AuditAsked):
                content, work = asked.content, opening.work
                event = await auditing.audited(opening.engine, name, content, work)
                opening.found = True
                await self._tell(event)
            elif not await self._serve_steps(opening, asked):
                await self._tell(self._stopped(opening))
        except asyncio.CancelledError:
            if not opening.cancelled:
                raise
            # The one who stops it holds the channel's lock, which the report needs.
            self._tell_later(self._stopped(opening))
        except (CannotOpen, CannotAudit) as error:
            if opening.engine.ready:  # otherwise the worker starts it again with the next one
                await self._tell(FailedEvent(name, "internal", str(error)))
        except MalformedInput as error:
            await self._tell(FailedEvent(name, "internal", str(error)))
        finally:
            self._openings.pop(name, None)

    async def _serve_steps(self, opening: _Opening, asked: OpeningAsked) -> bool:
        """Report steps. Returns whether all were allowed."""
        async with AsyncExitStack() as held:
            if asked.soft:
                await held.enter_async_context(self._large)
            record, steps = await self._found(opening, asked)
            opening.begun = opening.found = True
            name = opening.request.request_id
            await self._tell(ProgressEvent(name, opening.canvas, 0, asked.context))
            for step in steps:
                if not await self._may_go_on(opening):
                    return False
                await self._report(opening, record, step, last=len(asked.steps) - 1)
        return True

    async def _found(
        self, opening: _Opening, asked: OpeningAsked
    ) -> tuple[CanvasRecord, tuple[StepOpening, ...]]:
        stored = await self._journal.job(JobId(asked.job))
        if stored is None or asked.canvas >= len(stored.canvases):
            raise CannotOpen("the journal does not have this job any more")
        steps = asked.steps[opening.canvas :]
        return await self._opener.opened(
            stored, asked.canvas, steps, soft=asked.soft, work=opening.work
        )

    async def _may_go_on(self, opening: _Opening) -> bool:
        """Wait until the next canvas is allowed. False: the sequence is to stop."""
        while opening.end is None and opening.canvas >= opening.limit:
            opening.changed.clear()
            await opening.changed.wait()
        return opening.end is None or opening.canvas < opening.end

    async def _report(
        self, opening: _Opening, record: CanvasRecord, step: StepOpening, *, last: int
    ) -> None:
        canvas = opening.canvas
        opening.canvas += 1
        await self._tell(
            CanvasEvent(
                request_id=opening.request.request_id,
                canvas=canvas,
                token_ids=(),
                charged_ids=(),
                segments=(),
                steps=1,
                step_leaves=(leaf_of(step.fields),),
                finish=CanvasFinish.END_OF_TEXT if canvas == last else CanvasFinish.MORE,
                opened=OpenOutput(record.fields(), step.fields, step.soft),
            )
        )

    def _computed(self, name: str) -> None:
        """Say how far the engine is. What it has done is owed, so the client has to know."""
        opening = self._openings.get(name)
        if opening is not None and not opening.found:
            steps = len(self._steps_of(opening))
            self._tell_later(ProgressEvent(name, opening.canvas, steps, self._prefilled(opening)))

    def _steps_of(self, opening: _Opening) -> tuple[StepRecord, ...]:
        """The steps that are owed of what is half done. Those behind an opened step are not."""
        audits = isinstance(opening.asked, AuditAsked)
        return tuple(opening.work.records) if audits else ()

    def _prefilled(self, opening: _Opening) -> int:
        """The tokens before the canvas that are owed. Any step takes all of them."""
        context = opening.asked.context
        if opening.begun or opening.work.records:
            return context
        return min(opening.work.prompt_tokens, context)

    def _stopped(self, opening: _Opening) -> StoppedEvent:
        records = self._steps_of(opening)
        return StoppedEvent(
            opening.request.request_id,
            opening.canvas,
            len(records),
            self._prefilled(opening),
            tuple(record.leaf() for record in records),
            records,
        )

    async def _tell(self, event: Event) -> None:
        if self.sink is not None:
            await self.sink(event)

    def _tell_later(self, event: Event) -> None:
        task = asyncio.ensure_future(self._tell(event))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def _signed_for(stored: StoredJob, content: OpenContent) -> bool:
    """Whether the leaves that the client names are those of the canvas."""
    leaves = stored.canvases[content.canvas].leaves
    if not leaves or content.canvas_leaf != leaves[0]:
        return False
    last = content.steps[-1].step
    return last + 1 < len(leaves) and all(leaves[w.step + 1] == w.leaf for w in content.steps)
