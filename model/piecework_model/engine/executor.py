"""Between bookkeeping and tensors: what the engine asks an executor to do.

`Executor` has two implementations. `engine/reference.py` is readable: every sequence runs alone
through transformers' own modules. `engine/batched.py` is fast, and a test holds it equal to the
first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from piecework_model.engine.scheduler import SequenceWork
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_protocol.trace import StepRecord

StepObserver = Callable[[str, StepRecord, Tensor], None]
"""Told of every step that a sequence has made: the request's id, what the step's leaf commits to,
and its soft embedding [C, H]."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """A step's leaf and what it commits to."""

    leaf: bytes
    record: StepRecord


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One denoising step of one sequence.

    argmax: the canvas [C] that would be committed now. traces: of a finished canvas, those of its
    steps, else empty. answers: as in `CanvasEvent`.
    """

    request_id: str
    canvas: int
    step: int
    argmax: tuple[int, ...]
    finished: bool
    traces: tuple[StepTrace, ...]
    answers: tuple[tuple[int, ...], ...] = ()

    @property
    def leaves(self) -> tuple[bytes, ...]:
        """The step leaves of a finished canvas (`piecework_protocol.trace`)."""
        return tuple(trace.leaf for trace in self.traces)


SequenceOutcome = SequenceStep | FailedEvent
"""A sequence that failed could not go on, and the executor has forgotten it already."""


class Executor(Protocol):
    """Sequences of one model.

    A sequence is opened once, stepped, given each finished canvas back, and closed once.
    """

    @property
    def chunk_tokens(self) -> int:
        """Where prompts are cut, and how much one sequence may prefill in a step."""
        ...

    def footprint(self, request: GenerationRequest) -> int:
        """Count the bytes of the sequence's KV cache, for all of its canvases."""
        ...

    def set_sequences(self, sequences: int) -> None:
        """Tell for how many sequences of texts memory was planned. No pass may take more."""
        ...

    def set_free_memory(self, free_bytes: int) -> None:
        """Tell how much memory no sequence holds. An executor may use it for a cache."""
        ...

    def open(self, request: GenerationRequest) -> int:
        """Take a sequence in, without computation. Returns how many of its first chunks are
        cached.
        """
        ...

    def find_cached(self, request_id: str) -> int:
        """Look again, as `open` does, which of the sequence's next chunks are cached by now."""
        ...

    def step(self, work: Sequence[SequenceWork]) -> list[SequenceOutcome]:
        """Prefill and denoise as told.

        Returns one outcome for every sequence that denoised or failed, in this order.
        """
        ...

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """End the sequence's canvas with these ids.

        They become its next chunk to prefill, unless the request is a read.
        """
        ...

    def traces(self, request_id: str) -> tuple[StepTrace, ...]:
        """Return the traces of the sequence's canvas so far, one a step."""
        ...

    def close(self, request_id: str) -> None:
        """Forget a sequence, if it is there, and free its memory."""
        ...
