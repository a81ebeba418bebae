"""Between bookkeeping and tensors: what the engine needs done to its sequences.

`Executor` is the seam. `engine/reference.py` has the readable one, every sequence alone through
transformers' own modules; `engine/batched.py` the fast one, which a test holds equal to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from piecework_model.engine.scheduler import SequenceWork
from piecework_model.requests import FailureKind, GenerationRequest


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """One denoising step of one sequence. argmax: the canvas [C] that would be committed now.

    leaves: when the canvas is finished, its trace leaves (sampling/trace.py), one a step; else
    empty.
    """

    request_id: str
    canvas: int
    step: int
    argmax: tuple[int, ...]
    finished: bool
    leaves: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """A sequence that could not go on. The executor has forgotten it already."""

    request_id: str
    kind: FailureKind
    message: str


SequenceOutcome = SequenceStep | SequenceFailure


class Executor(Protocol):
    """Rows of one model. A sequence is opened once, stepped, given each finished canvas back, and closed
    once."""

    @property
    def chunk_tokens(self) -> int:
        """Where prompts are cut (engine/chunks.py), and how much one sequence may prefill in a step."""
        ...

    def footprint(self, request: GenerationRequest) -> int:
        """Bytes of the sequence's KV cache, for all of its canvases."""
        ...

    def set_free_memory(self, free_bytes: int) -> None:
        """How much memory no sequence has taken now: what an executor may use to remember things."""
        ...

    def open(self, request: GenerationRequest) -> int:
        """Takes a sequence in, without computation. How many of its first chunks are in its cache
        already."""
        ...

    def step(self, work: Sequence[SequenceWork]) -> list[SequenceOutcome]:
        """Prefills and denoises as told. One outcome for every sequence that denoised or failed, in this
        order."""
        ...

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Ends the sequence's canvas with these ids, which become its next chunk to prefill."""
        ...

    def close(self, request_id: str) -> None:
        """Forgets a sequence, if it is there, and frees its memory."""
        ...
