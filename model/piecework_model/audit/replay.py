"""Free replay: a canvas is computed again from prompt, template, seed, parameters and the canvases
before it.

On the worker's engine profile every leaf has the same bytes, whatever shared the worker's passes.
On another profile the first difference says nothing about the worker.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from piecework_model import bounds, templates
from piecework_model.bounds import ModelLimits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.executor import SequenceStep, StepObserver
from piecework_model.engine.scheduler import SequenceWork, known_chunks
from piecework_model.errors import InvalidRequestError, ReplayError
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_protocol.trace import StepRecord


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """One step of a replayed canvas.

    record: what its leaf commits to. soft: its soft embedding [C, H], which conditions the next.
    """

    record: StepRecord
    soft: Tensor

    @property
    def leaf(self) -> bytes:
        """The trace leaf."""
        return self.record.leaf()


@dataclass(frozen=True, slots=True)
class ReplayedCanvas:
    """A replayed canvas: its steps, its tokens, and the answers if it is one of a read."""

    steps: tuple[ReplayedStep, ...]
    token_ids: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    finished: bool

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The trace leaves, one a step."""
        return tuple(step.leaf for step in self.steps)

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """What the trace leaves commit to."""
        return tuple(step.record for step in self.steps)


class Replayer:
    """One loaded model that replays one canvas at a time."""

    def __init__(self, loaded: LoadedModel, executor: BatchedExecutor | None = None) -> None:
        """Take the model.

        executor: one that others use too, between two steps. None: one of its own.
        """
        self.loaded = loaded
        self._executor = executor or BatchedExecutor(loaded.model, loaded.limits)
        self.kernels = self._executor.kernels
        """What decides last bits, as in the engine profile."""

    def replay(self, request: GenerationRequest, *, steps: int | None = None) -> ReplayedCanvas:
        """Replay the canvas that follows the request's committed ones.

        steps: stop after so many, as for a canvas that was cancelled. None: to its end.

        Raises:
            InvalidRequestError, ContextOverflowError: The request can never run, or it has no
                further canvas.
            ReplayError: The engine failed, for example because memory ran out.
            ValueError: `steps` is less than 1.
        """
        made: list[ReplayedStep] = []
        last: SequenceStep | None = None

        def keep(request_id: str, record: StepRecord, soft: Tensor) -> None:
            made.append(ReplayedStep(record, soft))

        for step in self.walk(request, steps=steps, observe=keep):
            last = step
        if last is None:
            raise ReplayError("the engine took no step")
        return ReplayedCanvas(tuple(made), last.argmax, last.answers, last.finished)

    def walk(
        self, request: GenerationRequest, *, steps: int | None, observe: StepObserver
    ) -> Generator[SequenceStep | None, None, None]:
        """Replay a canvas as `replay` does, a pass at a time. None: a pass that only prefilled.

        Others may use the executor between two passes. `observe` is told of every step. Close the
        generator to stop early.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"a canvas of {steps} steps has no leaf")
        bounds.check(request, self.loaded.limits, self.loaded.eos_ids)
        if len(request.committed) >= templates.canvas_count(
            request, self.loaded.limits.canvas_size
        ):
            raise InvalidRequestError("committed", "there is no canvas behind these")
        most = request.max_steps if steps is None else min(steps, request.max_steps)
        self._executor.open(alone(request, self.loaded.limits))
        try:
            for _ in known_chunks(request, self._executor.chunk_tokens):
                yield self._step(SequenceWork(request.request_id, 1, denoise=False), observe)
            last: SequenceStep | None = None
            while last is None or not (last.finished or last.step + 1 >= most):
                last = self._step(SequenceWork(request.request_id, 0, denoise=True), observe)
                yield last
        finally:
            self._executor.close(request.request_id)

    def _step(self, work: SequenceWork, observe: StepObserver) -> SequenceStep | None:
        self._executor.observe = observe
        try:
            outcomes = self._executor.step([work])
        finally:
            self._executor.observe = None
        for outcome in outcomes:
            if isinstance(outcome, FailedEvent):
                raise ReplayError(f"{outcome.kind}: {outcome.message}")
            return outcome
        return None


def alone(request: GenerationRequest, limits: ModelLimits) -> GenerationRequest:
    """Return the request whose sequence ends with the canvas that follows the committed ones.

    Its KV cache is that of this canvas, and not that of the whole job. A text with a form keeps its
    length: the form says how long it is.
    """
    next_canvas = len(request.committed) + 1
    most = request.max_tokens
    if not request.template:
        most = min(most, next_canvas * limits.canvas_size)
    return replace(request, tenant="", canvas_limit=next_canvas, max_tokens=most)


def first_difference(replayed: Sequence[bytes], committed: Sequence[bytes]) -> int | None:
    """Find the first step whose leaf differs, or that only one side has. None: all are equal."""
    for step, (ours, theirs) in enumerate(zip(replayed, committed, strict=False)):
        if ours != theirs:
            return step
    return None if len(replayed) == len(committed) else min(len(replayed), len(committed))
