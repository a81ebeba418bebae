"""Between bookkeeping and tensors: what the engine needs done to its rows, and the readable reference that
does it.

`Executor` is the seam: `ReferenceExecutor` runs each row's forward pass alone, so that a row's result cannot
depend on its neighbours even in the last bit. A faster executor that batches rows has to give the same
`RowStep`s.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from model import philox, sampler, trace
from model.denoiser import Denoiser
from model.requests import FailureKind, GenerationRequest

_EMBEDDING_TYPES: dict[torch.dtype, trace.EmbeddingType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # torch has no exception type of its own for the CPU


@dataclass(frozen=True, slots=True)
class RowStep:
    """One denoising step of one row: its record for the trace, and whether the canvas is finished with it."""

    request_id: str
    record: trace.StepRecord
    finished: bool


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that could not go on. The executor has forgotten it already."""

    request_id: str
    kind: FailureKind
    message: str


class Executor(Protocol):
    """Rows of one model. A row is opened once, stepped, given each finished canvas back, and closed once."""

    def open(self, request: GenerationRequest) -> None:
        """Takes a row in. No computation yet."""

    def step(self, request_ids: Iterable[str]) -> list[RowStep | RowFailure]:
        """One denoising step for each of these rows, in this order."""

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Ends the row's canvas with these ids; the row's next step belongs to its next canvas."""

    def close(self, request_id: str) -> None:
        """Forgets a row, if it is there, and frees its memory."""


@dataclass(slots=True)
class _Row:
    """The state of one row: what its cache holds, what it must hold before the next step, and the canvas
    itself.
    """

    request: GenerationRequest
    cache: DynamicCache
    canvas: int  # index of the canvas being denoised
    pending: list[tuple[int, ...]]  # chunks to prefill: the prompt, then canvases, each on its own
    step: int = 0
    current: Tensor | None = None  # [C] int64; None before the first step of a canvas
    soft: Tensor | None = None  # [C, H]; None at step 0
    history: list[tuple[int, ...]] = field(
        default_factory=list
    )  # last argmax canvases, at most stability_steps


class _NonFiniteError(Exception):
    """The model produced NaN or infinity."""


class ReferenceExecutor:
    """Every row on its own, batch size 1."""

    def __init__(self, denoiser: Denoiser, canvas_size: int, vocab_size: int) -> None:
        self._denoiser = denoiser
        self._canvas_size = canvas_size
        self._vocab_size = vocab_size
        self._rows: dict[str, _Row] = {}

    def open(self, request: GenerationRequest) -> None:
        """Takes a row in; prompt and committed canvases are prefilled before its first step."""
        chunks = [request.prompt_ids, *request.committed]
        self._rows[request.request_id] = _Row(
            request, self._denoiser.new_cache(), len(request.committed), chunks
        )

    def close(self, request_id: str) -> None:
        """Forgets a row with its cache."""
        self._rows.pop(request_id, None)

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Queues the canvas for prefill and clears the canvas state."""
        row = self._rows[request_id]
        row.pending.append(canvas)
        row.canvas, row.step, row.current, row.soft = row.canvas + 1, 0, None, None
        row.history.clear()

    @torch.inference_mode()
    def step(self, request_ids: Iterable[str]) -> list[RowStep | RowFailure]:
        """One denoising step for each row, one after the other."""
        return [self._guarded(request_id) for request_id in request_ids]

    def _guarded(self, request_id: str) -> RowStep | RowFailure:
        """A step, or the failure that ends this row only. A broken accelerator is not a row's failure: it is
        raised.
        """
        try:
            return self._step(request_id, self._rows[request_id])
        except _NonFiniteError:
            failure = RowFailure(request_id, "non_finite", "the model produced NaN or infinity")
        except (torch.OutOfMemoryError, MemoryError):
            failure = RowFailure(request_id, "out_of_memory", "the row does not fit into memory")
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            if _CPU_OUT_OF_MEMORY in str(error):
                failure = RowFailure(request_id, "out_of_memory", "the row does not fit into memory")
            else:
                failure = RowFailure(
                    request_id, "internal", f"the forward pass failed: {type(error).__name__}"
                )
        self.close(request_id)
        if failure.kind == "out_of_memory" and self._denoiser.device.type == "cuda":
            torch.cuda.empty_cache()
        return failure

    def _step(self, request_id: str, row: _Row) -> RowStep:
        request, size, device = row.request, self._canvas_size, self._denoiser.device
        while row.pending:
            self._denoiser.prefill(row.cache, row.pending[0])
            row.pending.pop(0)
        if row.current is None:
            row.current = self._ids(philox.initial_ids(request.seed, row.canvas, size, self._vocab_size))
        raw = self._denoiser.logits(row.cache, row.current, row.soft)
        scaled = raw / sampler.temperature(
            request.temperature_start,
            request.temperature_end,
            request.max_steps - row.step,
            request.max_steps,
            device,
        )
        soft = self._denoiser.soft_embedding(scaled)
        _require_finite(scaled)
        _require_finite(soft)
        choice = sampler.choose(
            scaled,
            torch.from_numpy(philox.uniforms(request.seed, row.canvas, row.step, size)),
            self._ids(philox.renoise_ids(request.seed, row.canvas, row.step, size, self._vocab_size)),
            request.entropy_bound,
        )
        record = _record(row, row.current, choice, soft)
        finished = self._finished(row, record.argmax, choice)
        row.current, row.soft, row.step = choice.after, soft, row.step + 1
        return RowStep(request_id, record, finished)

    def _finished(self, row: _Row, argmax: tuple[int, ...], choice: sampler.StepChoice) -> bool:
        """Stable and confident, or out of steps. Remembers `argmax` for the steps to come."""
        request = row.request
        enough = len(row.history) == request.stability_steps
        stable = enough and all(earlier == argmax for earlier in row.history)
        row.history = [*row.history, argmax][-request.stability_steps :] if request.stability_steps else []
        confident = sampler.is_confident(choice.entropy, request.confidence_threshold)
        return (stable and confident) or row.step + 1 == request.max_steps

    def _ids(self, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Tensor:
        return torch.from_numpy(ids).to(self._denoiser.device)


def _require_finite(values: Tensor) -> None:
    low, high = torch.aminmax(values)  # both propagate NaN
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise _NonFiniteError


def _record(row: _Row, before: Tensor, choice: sampler.StepChoice, soft: Tensor) -> trace.StepRecord:
    """The step's record as plain values."""
    soft_bytes = soft.contiguous().cpu().view(torch.uint8).numpy().tobytes()
    return trace.StepRecord(
        canvas=row.canvas,
        step=row.step,
        before=tuple(before.tolist()),
        after=tuple(choice.after.tolist()),
        argmax=tuple(choice.argmax.tolist()),
        accepted=tuple(choice.accepted.tolist()),
        embedding_digest=trace.embedding_digest(_EMBEDDING_TYPES[soft.dtype], soft_bytes),
        fingerprint=choice.fingerprint.contiguous().cpu().numpy().astype("<f2").tobytes(),
    )
