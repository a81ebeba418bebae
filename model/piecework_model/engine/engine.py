"""The engine: requests in, events out. A call of `step` is one step of every runnable sequence.

`engine/scheduler.py` decides what runs. `engine/executor.py` computes it. This module turns steps
into drafts, canvases and text, and counts what is charged. It handles no tensors.

The engine is not thread-safe. One owner calls `step` in a loop and the other methods between steps.
`step` returns when the step is computed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from piecework_model import bounds, limits, templates
from piecework_model.charging import Charge, charge_of
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.executor import Executor, SequenceStep, StepTrace
from piecework_model.engine.scheduler import Capacity, Scheduler, known_chunks, prompt_chunks
from piecework_model.requests import (
    PROGRESS_STEPS,
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    FailedEvent,
    GenerationRequest,
    ProgressEvent,
    StoppedEvent,
)
from piecework_model.text.segments import SegmentStream
from piecework_protocol.trace import StepRecord


@dataclass(slots=True)
class _Job:
    """One request from submission to its last event."""

    request: GenerationRequest
    charge: Charge
    output: SegmentStream
    canvas: int  # the one in progress, or the next
    unread: deque[int]  # tokens of the prompt's chunks that are not prefilled
    steps: int = 0  # taken of the canvas in progress
    prompt_tokens: int = 0  # prefilled
    begun: bool = False  # whether the canvas in progress has cost anything
    finishing: bool = False  # whether the request ends with the canvas in progress

    def prefilled(self, chunks: int) -> None:
        """Count the prompt's chunks among the first `chunks` pending ones."""
        for _ in range(min(chunks, len(self.unread))):
            self.prompt_tokens += self.unread.popleft()


class Engine:
    """The sequences of one loaded model. The module's docstring says who may call it when."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_sequences: int,
        max_queued: int = limits.MAX_QUEUED_REQUESTS,
        memory_bytes: int = limits.DEFAULT_CACHE_BYTES,
        executor: Executor | None = None,
    ) -> None:
        """Start without requests.

        max_sequences: that run at a time. Short reads run beside them.
        memory_bytes: for the KV caches of all sequences. What they leave free keeps prefixes
        (engine/prefix_cache.py).
        """
        self._loaded, self._memory_bytes = loaded, memory_bytes
        self._executor = executor or BatchedExecutor(loaded.model, loaded.limits)
        self._executor.set_sequences(max_sequences)
        chunk = loaded.limits.largest_chunk
        self._scheduler = Scheduler(
            Capacity(
                sequences=max_sequences,
                queued=max_queued,
                memory_bytes=memory_bytes,
                step_tokens=limits.PREFILL_STEP_CHUNKS * chunk,
                sequence_step_tokens=chunk,
                short_sequences=limits.SHORT_SEQUENCES,
                short_bytes=memory_bytes // limits.SHORT_MEMORY_SHARE,
            )
        )
        self._jobs: dict[str, _Job] = {}

    @property
    def sequences(self) -> int:
        """How many requests run as a sequence, paused ones included."""
        return self._scheduler.sequences

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._scheduler.queued

    @property
    def has_runnable(self) -> bool:
        """Whether `step` has anything to do now."""
        return self._scheduler.runnable

    def reserve(self, memory_bytes: int) -> bool:
        """Keep memory from the sequences for a KV cache that is not theirs. 0: give it back.

        Returns whether it is free now. Otherwise nothing is reserved.
        """
        self._scheduler.reserved = 0
        fits = memory_bytes <= self._scheduler.memory_free
        if fits:
            self._scheduler.reserved = memory_bytes
        self._executor.set_free_memory(self._scheduler.memory_free)
        return fits

    def submit(self, request: GenerationRequest) -> None:
        """Take a request in. Nothing is computed before the next `step`.

        Raises:
            InvalidRequestError, ContextOverflowError, MemoryOverflowError: It can never run.
            DuplicateRequestError: A request of this id is here already.
            QueueFullError: It may fit later.
        """
        bounds.check(request, self._loaded.limits, self._loaded.eos_ids)
        chunks = known_chunks(request, self._executor.chunk_tokens)
        footprint = self._executor.footprint(request)
        self._scheduler.submit(
            request.request_id,
            footprint=footprint,
            chunks=[len(chunk) for chunk in chunks],
            canvas=len(request.committed),
            canvas_limit=request.canvas_limit,
            short=self._short(request, len(chunks), footprint),
        )
        codec = self._loaded.tokenizer
        output = SegmentStream(codec)
        charge = charge_of(
            request, self._loaded.limits.canvas_size, self._loaded.eos_ids, codec.control_ids
        )
        done = [charge.append(canvas)[0] for canvas in request.committed]
        output.append(tuple(itertools.chain.from_iterable(done)), final=False)
        prompt = prompt_chunks(request.prompt_ids, self._executor.chunk_tokens, request.images)
        unread = deque(len(chunk) for chunk in prompt)
        first = len(request.committed)
        self._jobs[request.request_id] = _Job(request, charge, output, first, unread)
        self._admit()

    def _short(self, request: GenerationRequest, chunks: int, footprint: int) -> bool:
        """Say whether a request takes few steps, few chunks and little memory: most reads do."""
        canvases = templates.canvas_count(request, self._loaded.limits.canvas_size)
        left = canvases - len(request.committed)
        return (
            bool(request.reads)
            and left <= limits.SHORT_READ_CANVASES
            and chunks <= limits.SHORT_READ_CHUNKS
            and footprint <= self._memory_bytes // limits.SHORT_FOOTPRINT_SHARE
        )

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Let a sequence go on up to, not including, the canvas of index `canvas_limit`.

        A limit never goes down. A sequence that was to end with its canvas goes on after all. A
        request that is no longer here is ignored, because its last event and this call may cross.
        """
        if (job := self._jobs.get(request_id)) is not None:
            job.finishing = False
        self._scheduler.allow(request_id, canvas_limit)

    def stop(self, request_id: str, *, finish_canvas: bool = False) -> list[Event]:
        """End a request and free its memory. Its last event says what was done.

        With `finish_canvas` a canvas that has begun goes on to its end first. Then the last event
        comes from a later `step`. An unknown request has had its last event.
        """
        job = self._jobs.get(request_id)
        if job is None:
            return []
        if finish_canvas and job.begun:
            job.finishing = True
            return []
        stopped = self._stop(job)
        self._admit()
        return [stopped]

    def _stop(self, job: _Job) -> StoppedEvent:
        request_id = job.request.request_id
        traces = self._executor.traces(request_id) if job.steps else ()
        worked = job.begun or job.canvas > len(job.request.committed)
        prompt_tokens = job.prompt_tokens if worked else 0
        del self._jobs[request_id]
        self._end(request_id)
        leaves = tuple(trace.leaf for trace in traces)
        records = _kept(job.request, traces)
        return StoppedEvent(request_id, job.canvas, job.steps, prompt_tokens, leaves, records)

    def step(self) -> list[Event]:
        """Run one step of every runnable sequence. Returns no events at once if there is none."""
        self._admit()
        for request_id in self._scheduler.prefilling:
            self._copied(request_id, self._executor.find_cached(request_id))
        work = self._scheduler.plan()
        outcomes = self._executor.step(work) if work else []
        failed = {outcome.request_id for outcome in outcomes if isinstance(outcome, FailedEvent)}
        for item in work:
            if item.request_id not in failed:
                self._scheduler.prefilled(item.request_id, item.chunks)
                self._jobs[item.request_id].prefilled(item.chunks)
                self._jobs[item.request_id].begun = True
        events: list[Event] = [
            self._progress(self._jobs[item.request_id])
            for item in work
            if item.chunks and not item.denoise and item.request_id not in failed
        ]
        for outcome in outcomes:
            if isinstance(outcome, FailedEvent):
                del self._jobs[outcome.request_id]
                self._scheduler.drop(outcome.request_id)
                events.append(outcome)
            else:
                events += self._advance(self._jobs[outcome.request_id], outcome)
        self._admit()
        return events

    def _admit(self) -> None:
        admitted = self._scheduler.admit()
        self._executor.set_free_memory(self._scheduler.memory_free)
        for request_id in admitted:
            self._copied(request_id, self._executor.open(self._jobs[request_id].request))

    def _copied(self, request_id: str, chunks: int) -> None:
        """Count chunks that are copied from the prefix cache."""
        self._scheduler.prefilled(request_id, chunks)
        self._jobs[request_id].prefilled(chunks)

    def _end(self, request_id: str) -> None:
        """Free what the scheduler and the executor hold of a request."""
        if self._scheduler.drop(request_id):
            self._executor.close(request_id)

    def _advance(self, job: _Job, step: SequenceStep) -> list[Event]:
        """Record one step of a sequence. It gives a draft, a committed canvas, or no event."""
        request = job.request
        if step.finished:
            return self._commit(job, step)
        job.steps = step.step + 1
        events: list[Event] = []
        if job.steps == 1 or job.steps % PROGRESS_STEPS == 0:
            events.append(self._progress(job))
        if request.draft_every and (step.step + 1) % request.draft_every == 0:
            shown = job.charge.preview(step.argmax)
            segments = job.output.preview(shown)
            events.append(DraftEvent(request.request_id, step.canvas, step.step, shown, segments))
        return events

    def _progress(self, job: _Job) -> ProgressEvent:
        return ProgressEvent(job.request.request_id, job.canvas, job.steps, job.prompt_tokens)

    def _commit(self, job: _Job, step: SequenceStep) -> list[Event]:
        """Commit a finished canvas, and end or continue the sequence."""
        request, canvas = job.request, step.argmax
        request_id = request.request_id
        charged, finish = job.charge.append(canvas)
        segments = job.output.append(charged, final=finish is not CanvasFinish.MORE)
        if finish is CanvasFinish.MORE:
            self._scheduler.committed(request_id, 0 if job.request.reads else len(canvas))
            self._executor.commit(request_id, canvas)
        else:
            del self._jobs[request_id]
            self._end(request_id)
        job.canvas, job.steps, job.begun = step.canvas + 1, 0, False
        done = CanvasEvent(
            request_id,
            step.canvas,
            canvas,
            charged,
            segments,
            len(step.traces),
            step.leaves,
            finish,
            step.answers,
            _kept(request, step.traces),
        )
        goes_on = finish is CanvasFinish.MORE
        return [done, self._stop(job)] if goes_on and job.finishing else [done]


def _kept(request: GenerationRequest, traces: Sequence[StepTrace]) -> tuple[StepRecord, ...]:
    """List what the steps commit to, if the request wants it."""
    return tuple(trace.record for trace in traces) if request.keep_records else ()
