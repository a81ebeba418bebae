"""The engine: rows in, events out, one denoising step of every runnable row a call. Bookkeeping only, no
tensors.

A row is a request that holds a place (and its KV cache); `max_rows` of them exist at a time, further requests
wait in a bounded queue, first come first served. Each row is at its own canvas and step. The engine is not
thread-safe and never blocks: one owner calls `step` in a loop and the other methods between steps.
"""

from collections import deque
from dataclasses import dataclass, field

from model import bounds, limits
from model.denoiser import Denoiser
from model.errors import DuplicateRequestError, QueueFullError
from model.executor import Executor, ReferenceExecutor, RowFailure, RowStep
from model.loading import LoadedModel
from model.requests import CanvasEvent, DraftEvent, Event, FailedEvent, FinishReason, GenerationRequest
from model.text import TextStream
from model.trace import leaf


@dataclass(slots=True)
class _Job:
    """One request from submission to its last event."""

    request: GenerationRequest
    canvas_limit: int
    canvas: int  # index of the canvas to denoise next or now
    remaining_tokens: int  # that may still be charged
    text: TextStream
    leaves: list[bytes] = field(default_factory=list)


class Engine:
    """Denoises the rows of one loaded model. See the module's docstring for who may call what when."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_rows: int,
        max_queued: int = limits.MAX_QUEUED_REQUESTS,
        executor: Executor | None = None,
    ) -> None:
        if max_rows < 1 or max_queued < 0:
            raise ValueError(f"max_rows {max_rows} must be positive, max_queued {max_queued} not negative")
        self._loaded = loaded
        self._max_rows = max_rows
        self._max_queued = max_queued
        self._executor: Executor = executor or ReferenceExecutor(
            Denoiser(loaded.model), loaded.limits.canvas_size, loaded.limits.vocab_size
        )
        self._rows: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()

    @property
    def rows(self) -> int:
        """How many requests hold a row, paused ones included."""
        return len(self._rows)

    @property
    def queued(self) -> int:
        """How many requests wait for a row."""
        return len(self._queue)

    @property
    def has_runnable(self) -> bool:
        """Whether `step` has anything to do now."""
        waiting = bool(self._queue) and len(self._rows) < self._max_rows
        return waiting or any(job.canvas < job.canvas_limit for job in self._rows.values())

    def submit(self, request: GenerationRequest) -> None:
        """Takes a request in. Nothing is computed before the next `step`.

        Raises InvalidRequestError or ContextOverflowError when it can never run, DuplicateRequestError when
        its id is here already, QueueFullError when rows and queue are full.
        """
        bounds.check(request, self._loaded.limits, self._loaded.eos_ids)
        if self._find(request.request_id) is not None:
            raise DuplicateRequestError(request.request_id)
        free = self._max_rows - len(self._rows)
        if len(self._queue) >= self._max_queued + free:
            raise QueueFullError(self._max_queued)
        text = TextStream(self._loaded.tokenizer)
        remaining = request.max_tokens
        for canvas in request.committed:
            text.append(canvas, final=False)
            remaining -= len(canvas)
        job = _Job(request, request.canvas_limit, len(request.committed), remaining, text)
        self._queue.append(job)
        self._admit()

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Lets a row go on up to, and not including, the canvas of index `canvas_limit`. A limit never goes
        down.

        A request that is not here any more is ignored: its last event and this call may cross.
        """
        job = self._find(request_id)
        if job is not None:
            job.canvas_limit = max(job.canvas_limit, canvas_limit)

    def cancel(self, request_id: str) -> None:
        """Drops a request with its memory; no further event of it comes. One that is not here is ignored."""
        self._queue = deque(job for job in self._queue if job.request.request_id != request_id)
        if self._rows.pop(request_id, None) is not None:
            self._executor.close(request_id)
        self._admit()

    def step(self) -> list[Event]:
        """One denoising step for every runnable row. Returns at once with no events when there is none."""
        self._admit()
        runnable = [id_ for id_, job in self._rows.items() if job.canvas < job.canvas_limit]
        events: list[Event] = []
        for outcome in self._executor.step(runnable):
            if isinstance(outcome, RowFailure):
                del self._rows[outcome.request_id]
                events.append(FailedEvent(outcome.request_id, outcome.kind, outcome.message))
            else:
                events += self._advance(self._rows[outcome.request_id], outcome)
        self._admit()
        return events

    def _find(self, request_id: str) -> _Job | None:
        waiting = (job for job in self._queue if job.request.request_id == request_id)
        return self._rows.get(request_id) or next(waiting, None)

    def _admit(self) -> None:
        while self._queue and len(self._rows) < self._max_rows:
            job = self._queue.popleft()
            self._rows[job.request.request_id] = job
            self._executor.open(job.request)

    def _advance(self, job: _Job, outcome: RowStep) -> list[Event]:
        """Books one step of a row: a draft, a committed canvas, or nothing to tell."""
        record, request = outcome.record, job.request
        job.leaves.append(leaf(record))
        if outcome.finished:
            return [self._commit(job, record.argmax)]
        if request.draft_every and (record.step + 1) % request.draft_every == 0:
            length, _ = bounds.charged_length(record.argmax, self._loaded.eos_ids, job.remaining_tokens)
            text = job.text.preview(record.argmax[:length])
            return [DraftEvent(request.request_id, record.canvas, record.step, record.argmax, text)]
        return []

    def _commit(self, job: _Job, canvas: tuple[int, ...]) -> CanvasEvent:
        """Commits a finished canvas and ends or continues the row."""
        request_id, index = job.request.request_id, job.canvas
        length, ended = bounds.charged_length(canvas, self._loaded.eos_ids, job.remaining_tokens)
        job.remaining_tokens -= length
        finish = FinishReason.MORE
        if ended:
            finish = FinishReason.END_OF_TEXT
        elif job.remaining_tokens == 0:
            finish = FinishReason.TOKEN_LIMIT
        text = job.text.append(canvas[:length], final=finish is not FinishReason.MORE)
        leaves, job.leaves = tuple(job.leaves), []
        if finish is FinishReason.MORE:
            job.canvas += 1
            self._executor.commit(request_id, canvas)
        else:
            del self._rows[request_id]
            self._executor.close(request_id)
        return CanvasEvent(request_id, index, canvas, canvas[:length], text, len(leaves), leaves, finish)
