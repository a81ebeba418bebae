"""Free replay: a canvas is computed again from prompt, template, seed, parameters and the canvases
before it.

On the worker's engine profile every leaf has the same bytes, whatever shared the worker's passes.
On another profile the first difference says nothing about the worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from piecework_model import bounds, templates
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.executor import Executor, SequenceFailure, SequenceStep, StepObserver
from piecework_model.engine.scheduler import SequenceWork, known_chunks
from piecework_model.errors import InvalidRequestError, ReplayError
from piecework_model.requests import GenerationRequest
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


@dataclass(slots=True)
class _Steps:
    made: list[ReplayedStep] = field(default_factory=list)

    def observe(self, request_id: str, record: StepRecord, soft: Tensor) -> None:
        self.made.append(ReplayedStep(record, soft))


class Replayer:
    """One loaded model that replays one canvas at a time."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded, self._steps = loaded, _Steps()
        observe: StepObserver = self._steps.observe
        executor = BatchedExecutor(loaded.model, loaded.limits, observe=observe)
        self.kernels = executor.kernels
        """What decides last bits, as in the engine profile."""
        self._executor: Executor = executor

    def replay(self, request: GenerationRequest, *, steps: int | None = None) -> ReplayedCanvas:
        """Replay the canvas that follows the request's committed ones.

        steps: stop after so many, as for a canvas that was cancelled. None: to its end.

        Raises:
            InvalidRequestError, ContextOverflowError: The request can never run, or it has no
                further canvas.
            ReplayError: The engine failed, for example because memory ran out.
            ValueError: `steps` is less than 1.
        """
        if steps is not None and steps < 1:
            raise ValueError(f"a canvas of {steps} steps has no leaf")
        bounds.check(request, self._loaded.limits, self._loaded.eos_ids)
        if len(request.committed) >= templates.canvas_count(
            request, self._loaded.limits.canvas_size
        ):
            raise InvalidRequestError("committed", "there is no canvas behind these")
        most = request.max_steps if steps is None else min(steps, request.max_steps)
        self._executor.open(replace(request, tenant="", canvas_limit=len(request.committed) + 1))
        try:
            return self._run(request, most)
        finally:
            self._executor.close(request.request_id)
            self._steps.made = []

    def _run(self, request: GenerationRequest, most: int) -> ReplayedCanvas:
        chunks = known_chunks(request, self._executor.chunk_tokens)
        for _ in chunks:
            self._step(SequenceWork(request.request_id, 1, denoise=False))
        last: SequenceStep | None = None
        while last is None or not (last.finished or last.step + 1 >= most):
            last = self._step(SequenceWork(request.request_id, 0, denoise=True))
        return ReplayedCanvas(tuple(self._steps.made), last.argmax, last.answers, last.finished)

    def _step(self, work: SequenceWork) -> SequenceStep | None:
        for outcome in self._executor.step([work]):
            if isinstance(outcome, SequenceFailure):
                raise ReplayError(f"{outcome.kind}: {outcome.message}")
            return outcome
        return None


def first_difference(replayed: Sequence[bytes], committed: Sequence[bytes]) -> int | None:
    """Find the first step whose leaf differs, or that only one side has. None: all are equal."""
    for step, (ours, theirs) in enumerate(zip(replayed, committed, strict=False)):
        if ours != theirs:
            return step
    return None if len(replayed) == len(committed) else min(len(replayed), len(committed))
