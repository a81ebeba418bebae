"""The readable executor: every row alone, with a batch of one, through transformers' own modules
and cache.

It is what the fast one (engine/batched.py) is held equal to; nothing here is optimized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from piecework_model.bounds import ModelLimits
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.executor import Outcome, RowFailure, RowStep
from piecework_model.engine.row import RowState
from piecework_model.engine.scheduler import RowWork
from piecework_model.engine.transfer import decisions
from piecework_model.failures import NonFiniteError, failure_of
from piecework_model.layout import cache_layout
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import philox, sampler


@dataclass(slots=True)
class _Row:
    state: RowState
    cache: DynamicCache


class ReferenceExecutor:
    """Every row on its own."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, limits: ModelLimits) -> None:
        self._denoiser, self._limits = Denoiser(model), limits
        self._layout = cache_layout(
            model.config.text_config, limits.canvas_size, limits.chunk_tokens
        )
        self._rows: dict[str, _Row] = {}

    @property
    def chunk_tokens(self) -> int:
        """As of the model."""
        return self._limits.chunk_tokens

    def footprint(self, request: GenerationRequest) -> int:
        """Bytes of the row's KV cache as the fast executor lays it out; this one takes no more."""
        return self._layout.row_bytes(
            self._limits.row_tokens(request), self._denoiser.dtype.itemsize
        )

    def spare(self, free_bytes: int) -> None:
        """It remembers nothing."""

    def open(self, request: GenerationRequest) -> int:
        """Takes a row in. It starts with an empty cache."""
        self._rows[request.request_id] = _Row(
            RowState.of(request, self.chunk_tokens), self._denoiser.new_cache()
        )
        return 0

    def close(self, request_id: str) -> None:
        """Forgets a row with its cache."""
        self._rows.pop(request_id, None)

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Queues the canvas for prefill and clears the canvas state."""
        self._rows[request_id].state.commit(canvas)

    @torch.inference_mode()
    def step(self, work: Sequence[RowWork]) -> list[Outcome]:
        """One row after the other."""
        return [outcome for item in work if (outcome := self._guarded(item)) is not None]

    def _guarded(self, work: RowWork) -> Outcome | None:
        """A row's work, or the failure that ends this row only."""
        try:
            return self._work(work, self._rows[work.request_id])
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            failure = RowFailure(work.request_id, *failure_of(error))
        self.close(work.request_id)
        return failure

    def _work(self, work: RowWork, row: _Row) -> RowStep | None:
        state = row.state
        for _ in range(work.chunks):
            self._denoiser.prefill(row.cache, state.pending[0])
            state.pending.popleft()
        if not work.denoise:
            return None
        size, vocab_size, device = (
            self._limits.canvas_size,
            self._limits.vocab_size,
            self._denoiser.device,
        )
        if state.current is None:
            state.current = philox.initial_ids([state.moment], size, vocab_size)[0]
        canvas = torch.from_numpy(state.current).to(device)
        uniforms, renoise = state.draws(size, vocab_size)
        raw = self._denoiser.raw_logits(row.cache, canvas, state.soft)
        judgement = sampler.judge(
            raw,
            torch.full((size,), float(state.temperature), device=device),
            self._denoiser.cap,
            torch.from_numpy(uniforms).to(device),
        )
        soft = self._denoiser.soft_embedding(judgement.probabilities)
        (decision,) = decisions([state], judgement, soft[None], renoise[None])
        canvas_index, step = state.canvas, state.step
        finished = state.advance(decision, soft, state.leaf(decision, soft)())
        leaves = state.leaves() if finished else ()
        argmax = tuple(decision.argmax.tolist())
        return RowStep(work.request_id, canvas_index, step, argmax, finished, leaves)
