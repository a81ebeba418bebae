"""Between bookkeeping and tensors: what the engine needs done to its rows.

`Executor` is the seam. `engine/reference.py` has the readable one, every row alone through
transformers' own modules; `engine/batched.py` the fast one, which a test holds equal to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from piecework_model.engine.scheduler import RowWork
from piecework_model.requests import FailureKind, GenerationRequest


@dataclass(frozen=True, slots=True)
class RowStep:
    """One denoising step of one row. argmax: the canvas [C] that would be committed now.

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
class RowFailure:
    """A row that could not go on. The executor has forgotten it already."""

    request_id: str
    kind: FailureKind
    message: str


Outcome = RowStep | RowFailure


class Executor(Protocol):
    """Rows of one model. A row is opened once, stepped, given each finished canvas back, and closed
    once."""

    @property
    def chunk_tokens(self) -> int:
        """Where prompts are cut (engine/chunks.py), and how much one row may prefill in a step."""
        ...

    def footprint(self, request: GenerationRequest) -> int:
        """Bytes of the row's KV cache, for all of its canvases."""
        ...

    def spare(self, free_bytes: int) -> None:
        """How much memory no row has taken now: what an executor may use to remember things."""
        ...

    def open(self, request: GenerationRequest) -> int:
        """Takes a row in, without computation. How many of its first chunks are in its cache
        already."""
        ...

    def step(self, work: Sequence[RowWork]) -> list[Outcome]:
        """Prefills and denoises as told. One outcome for every row that denoised or failed, in this
        order."""
        ...

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Ends the row's canvas with these ids, which become its next chunk to prefill."""
        ...

    def close(self, request_id: str) -> None:
        """Forgets a row, if it is there, and frees its memory."""
        ...
