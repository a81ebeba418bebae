"""The readable executor: every sequence alone, through transformers' own modules and cache.

The fast one (engine/batched.py) is held equal to it. Nothing here is optimized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from piecework_model.bounds import ModelLimits
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.executor import (
    SequenceOutcome,
    SequenceStep,
    StepObserver,
    StepTrace,
)
from piecework_model.engine.scheduler import SequenceWork
from piecework_model.engine.sequence import SequenceState, decide, label_logits, to_host
from piecework_model.errors import NonFiniteError
from piecework_model.failures import failure_of
from piecework_model.layout import cache_layout
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_model.sampling import sampler


@dataclass(slots=True)
class _OpenSequence:
    state: SequenceState
    cache: DynamicCache


class ReferenceExecutor:
    """Every sequence on its own, with a batch of one."""

    def __init__(
        self,
        model: DiffusionGemmaForBlockDiffusion,
        limits: ModelLimits,
        *,
        observe: StepObserver | None = None,
    ) -> None:
        self._denoiser, self._limits = Denoiser(model, limits.images), limits
        self._observe = observe
        self._layout = cache_layout(
            model.config.text_config, limits.canvas_size, limits.largest_chunk
        )
        self._sequences: dict[str, _OpenSequence] = {}

    @property
    def chunk_tokens(self) -> int:
        """As in `ModelLimits`."""
        return self._limits.chunk_tokens

    def footprint(self, request: GenerationRequest) -> int:
        """Count the bytes of the KV cache as the fast executor lays it out. This one takes no
        more.
        """
        return self._layout.sequence_bytes(
            self._limits.sequence_tokens(request), self._denoiser.dtype.itemsize
        )

    def set_sequences(self, sequences: int) -> None:
        """Ignored: every sequence runs alone."""

    def set_free_memory(self, free_bytes: int) -> None:
        """Ignore it: this executor has no prefix cache."""

    def open(self, request: GenerationRequest) -> int:
        """Take a sequence in, with an empty cache."""
        self._sequences[request.request_id] = _OpenSequence(
            SequenceState.of(request, self._limits), self._denoiser.new_cache()
        )
        return 0

    def find_cached(self, request_id: str) -> int:
        """Return 0: this executor has no prefix cache."""
        return 0

    def traces(self, request_id: str) -> tuple[StepTrace, ...]:
        """Return the traces of the sequence's canvas so far."""
        return self._sequences[request_id].state.traces()

    def close(self, request_id: str) -> None:
        """Forget a sequence and its cache."""
        self._sequences.pop(request_id, None)

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Queue the canvas for prefill and clear the canvas state."""
        self._sequences[request_id].state.commit(canvas)

    @torch.inference_mode()
    def step(self, work: Sequence[SequenceWork]) -> list[SequenceOutcome]:
        """Run one sequence after the other."""
        return [outcome for item in work if (outcome := self._guarded(item)) is not None]

    def _guarded(self, work: SequenceWork) -> SequenceOutcome | None:
        """Do a sequence's work. A failure ends this sequence only."""
        try:
            return self._work(work, self._sequences[work.request_id])
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            failure = FailedEvent(work.request_id, *failure_of(error))
        self.close(work.request_id)
        return failure

    def _work(self, work: SequenceWork, sequence: _OpenSequence) -> SequenceStep | None:
        state = sequence.state
        for _ in range(work.chunks):
            self._denoiser.prefill(sequence.cache, state.pending[0])
            state.pending.popleft()
        if not work.denoise:
            return None
        size, vocab_size, device = (
            self._limits.canvas_size,
            self._limits.vocab_size,
            self._denoiser.device,
        )
        state.start(size, vocab_size)
        canvas = torch.from_numpy(state.current).to(device)
        uniforms, renoise = state.draws(size, vocab_size)
        raw = self._denoiser.raw_logits(sequence.cache, canvas, state.soft)
        labels = label_logits([state], raw)
        output = sampler.sample(
            raw,
            torch.full((size,), float(state.temperature), device=device),
            self._denoiser.cap,
            torch.from_numpy(uniforms).to(device),
        )
        soft = self._denoiser.soft_embedding(output.probabilities)
        (decision,) = to_host([decide([state], output, soft[None], renoise[None], labels)])
        canvas_index, step = state.canvas, state.step
        if self._observe is not None:
            self._observe(work.request_id, state.record(decision, soft), soft)
        finished = state.advance(decision, soft, state.trace(decision, soft)())
        traces = state.traces() if finished else ()
        return SequenceStep(
            work.request_id,
            canvas_index,
            step,
            tuple(decision.argmax.tolist()),
            finished,
            traces,
            decision.answers(self._denoiser.cap),
        )
