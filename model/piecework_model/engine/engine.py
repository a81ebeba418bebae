"""The engine: requests in, events out, one step of every row that may go on a call.

What runs when is `engine/scheduler.py`, what it computes `engine/executor.py`; here a row's steps
become drafts, canvases and text, and what is charged is counted. No tensors. The engine is not
thread-safe: one owner calls `step` in a loop, which computes until the step is done, and the other
methods between steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from piecework_model import bounds, limits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.chunks import known_chunks
from piecework_model.engine.executor import Executor, RowFailure, RowStep
from piecework_model.engine.scheduler import Capacity, Scheduler
from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    FailedEvent,
    GenerationRequest,
)
from piecework_model.text.tokens import TextStream


@dataclass(slots=True)
class _Job:
    """One request from submission to its last event."""

    request: GenerationRequest
    remaining_tokens: int  # that may still be charged
    text: TextStream


class Engine:
    """Denoises the rows of one loaded model. See the module's docstring for who may call what
    when."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int,
        max_queued: int = limits.MAX_QUEUED_REQUESTS,
        memory_bytes: int = limits.DEFAULT_CACHE_BYTES,
        executor: Executor | None = None,
    ) -> None:
        """memory_bytes: for the KV caches of all rows; what they leave free keeps prompts
        (engine/prefixes.py).
        """
        self._loaded = loaded
        self._executor = executor or BatchedExecutor(loaded.model, loaded.limits)
        chunk = self._executor.chunk_tokens
        self._scheduler = Scheduler(
            Capacity(
                rows=max_rows,
                queued=max_queued,
                memory_bytes=memory_bytes,
                step_tokens=limits.PREFILL_STEP_CHUNKS * chunk,
                row_tokens=chunk,
            )
        )
        self._jobs: dict[str, _Job] = {}

    @property
    def rows(self) -> int:
        """How many requests hold a row, paused ones included."""
        return self._scheduler.rows

    @property
    def queued(self) -> int:
        """How many requests wait for a row."""
        return self._scheduler.queued

    @property
    def has_runnable(self) -> bool:
        """Whether `step` has anything to do now."""
        return self._scheduler.runnable

    def submit(self, request: GenerationRequest) -> None:
        """Takes a request in. Nothing is computed before the next `step`.

        Raises InvalidRequestError, ContextOverflowError or MemoryOverflowError when it can never
        run, DuplicateRequestError when its id is here already, QueueFullError when it might fit
        later.
        """
        bounds.check(request, self._loaded.limits, self._loaded.eos_ids)
        chunks = known_chunks(request, self._executor.chunk_tokens)
        self._scheduler.submit(
            request.request_id,
            footprint=self._executor.footprint(request),
            chunks=[len(chunk) for chunk in chunks],
            canvas=len(request.committed),
            canvas_limit=request.canvas_limit,
        )
        text = TextStream(self._loaded.tokenizer)
        remaining = request.max_tokens
        for canvas in request.committed:
            text.append(canvas, final=False)
            remaining -= len(canvas)
        self._jobs[request.request_id] = _Job(request, remaining, text)
        self._admit()

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Lets a row go on up to, and not including, the canvas of index `canvas_limit`. A limit
        never goes down.

        A request that is not here any more is ignored: its last event and this call may cross.
        """
        self._scheduler.allow(request_id, canvas_limit)

    def cancel(self, request_id: str) -> None:
        """Drops a request with its memory; no further event of it comes. One that is not here is
        ignored."""
        if self._jobs.pop(request_id, None) is not None:
            self._end(request_id)
        self._admit()

    def step(self) -> list[Event]:
        """One step of every row that may go on. Returns at once with no events when there is
        none."""
        self._admit()
        work = self._scheduler.plan()
        outcomes = self._executor.step(work) if work else []
        failed = {outcome.request_id for outcome in outcomes if isinstance(outcome, RowFailure)}
        for item in work:
            if item.request_id not in failed:
                self._scheduler.prefilled(item.request_id, item.chunks)
        events: list[Event] = []
        for outcome in outcomes:
            if isinstance(outcome, RowFailure):
                del self._jobs[outcome.request_id]
                self._scheduler.drop(outcome.request_id)
                events.append(FailedEvent(outcome.request_id, outcome.kind, outcome.message))
            else:
                events += self._advance(self._jobs[outcome.request_id], outcome)
        self._admit()
        return events

    def _admit(self) -> None:
        admitted = self._scheduler.admit()
        self._executor.spare(self._scheduler.memory_free)
        for request_id in admitted:
            known = self._executor.open(self._jobs[request_id].request)
            self._scheduler.prefilled(request_id, known)

    def _end(self, request_id: str) -> None:
        """Frees whatever the scheduler and the executor hold of a request."""
        if self._scheduler.drop(request_id):
            self._executor.close(request_id)

    def _advance(self, job: _Job, step: RowStep) -> list[Event]:
        """Books one step of a row: a draft, a committed canvas, or nothing to tell."""
        request = job.request
        if step.finished:
            return [self._commit(job, step)]
        if request.draft_every and (step.step + 1) % request.draft_every == 0:
            length, _ = bounds.charged_length(
                step.argmax, self._loaded.eos_ids, job.remaining_tokens
            )
            text = job.text.preview(step.argmax[:length])
            return [DraftEvent(request.request_id, step.canvas, step.step, step.argmax, text)]
        return []

    def _commit(self, job: _Job, step: RowStep) -> CanvasEvent:
        """Commits a finished canvas and ends or continues the row."""
        request_id, canvas = job.request.request_id, step.argmax
        length, ended = bounds.charged_length(canvas, self._loaded.eos_ids, job.remaining_tokens)
        job.remaining_tokens -= length
        finish = CanvasFinish.MORE
        if ended:
            finish = CanvasFinish.END_OF_TEXT
        elif job.remaining_tokens == 0:
            finish = CanvasFinish.TOKEN_LIMIT
        text = job.text.append(canvas[:length], final=finish is not CanvasFinish.MORE)
        if finish is CanvasFinish.MORE:
            self._scheduler.committed(request_id, len(canvas))
            self._executor.commit(request_id, canvas)
        else:
            del self._jobs[request_id]
            self._end(request_id)
        return CanvasEvent(
            request_id,
            step.canvas,
            canvas,
            canvas[:length],
            text,
            len(step.leaves),
            step.leaves,
            finish,
        )
