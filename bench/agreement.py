"""Teacher-forced agreement: what another precision makes of each denoising step of a recorded run.

A run is recorded in float32: for each step the canvas that went in, the soft embedding, and what
was decided. The other model sees the same canvas and soft embedding, with a KV cache of its own
weights over the same text, and the same random numbers. So every step is one comparison, and an
early difference does not spoil the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from piecework_model.bounds import ModelLimits
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.scheduler import PrefillChunk, known_chunks
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import sampler


@dataclass(frozen=True, slots=True)
class Decided:
    """What one step makes of a canvas. All [C]; entropy in nats."""

    argmax: Tensor
    sampled: Tensor
    accepted: Tensor
    entropy: Tensor


@dataclass(frozen=True, slots=True)
class Agreement:
    """What goes into one step: canvas and uniforms [C], soft embedding [C, H] or None at the
    first step.
    """

    temperature: float
    uniforms: Tensor
    canvas: Tensor
    soft: Tensor | None


@dataclass(frozen=True, slots=True)
class ComparedStep:
    """One recorded step: what went in, and what came out in float32."""

    seen: Agreement
    decided: Decided


@dataclass(frozen=True, slots=True)
class ComparedCanvas:
    """The steps of one canvas, and the chunks that stand before it beyond those of the canvas
    before."""

    entropy_bound: float
    chunks: tuple[PrefillChunk, ...]
    steps: tuple[ComparedStep, ...]


@dataclass(slots=True)
class Tally:
    """Sums over compared steps."""

    steps: int = 0
    exact: int = 0
    positions: int = 0
    argmax_equal: int = 0
    accepted: int = 0
    accepted_equal: int = 0
    entropy_differences: list[float] = field(default_factory=list)

    def add(self, here: Decided, there: Decided) -> None:
        """Counts one step. It is exact when all that it decides is: argmax canvas, which positions
        are accepted, and their tokens.
        """
        same = here.argmax == there.argmax
        taken = here.accepted & there.accepted & (here.sampled == there.sampled)
        self.steps += 1
        agreed = torch.equal(here.accepted, there.accepted) and torch.equal(taken, there.accepted)
        self.exact += agreed and bool(same.all())
        self.positions += same.numel()
        self.argmax_equal += int(same.sum())
        self.accepted += int(there.accepted.sum())
        self.accepted_equal += int(taken.sum())
        self.entropy_differences += (here.entropy - there.entropy).abs().tolist()

    def figures(self) -> dict[str, float]:
        """Shares in [0, 1] and the mean absolute difference of entropies in nats."""
        return {
            "steps": self.steps,
            "argmax_equal": self.argmax_equal / max(1, self.positions),
            "accepted_equal": self.accepted_equal / max(1, self.accepted),
            "exact_steps": self.exact / max(1, self.steps),
            "entropy_difference": float(np.mean(self.entropy_differences))
            if self.entropy_differences
            else 0.0,
        }


class Observer:
    """One model, looked at step by step."""

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, limits: ModelLimits) -> None:
        self._denoiser, self._limits = Denoiser(model), limits

    @torch.inference_mode()
    def record(self, request: GenerationRequest) -> list[ComparedCanvas]:
        """Runs a request and keeps every step."""
        cache, size = self._denoiser.new_cache(), self._limits.canvas_size
        chunks = tuple(known_chunks(request, self._limits.chunk_tokens))
        canvases = []
        for index in range(-(-request.max_tokens // size)):
            self._prefill(cache, chunks)
            steps = tuple(self._steps(cache, request, index))
            canvases.append(ComparedCanvas(request.entropy_bound, chunks, steps))
            chunks = (PrefillChunk(tuple(steps[-1].decided.argmax.tolist())),)
        return canvases

    @torch.inference_mode()
    def compare(self, canvases: Sequence[ComparedCanvas], tally: Tally) -> None:
        """Holds this model's decisions against recorded ones."""
        cache = self._denoiser.new_cache()
        for canvas in canvases:
            self._prefill(cache, canvas.chunks)
            for step in canvas.steps:
                decided, _ = self._decide(cache, step.seen, canvas.entropy_bound)
                tally.add(decided, step.decided)

    def _prefill(self, cache: DynamicCache, chunks: Sequence[PrefillChunk]) -> None:
        for chunk in chunks:
            self._denoiser.prefill(cache, chunk)

    def _steps(
        self, cache: DynamicCache, request: GenerationRequest, index: int
    ) -> Iterator[ComparedStep]:
        """The denoising of one canvas up to its last step, or until it is stable and confident."""
        size, vocabulary = self._limits.canvas_size, self._limits.vocab_size
        generator = torch.Generator().manual_seed(1000 * request.seed + index)
        canvas = torch.randint(vocabulary, (size,), generator=generator)
        soft: Tensor | None = None
        before: Tensor | None = None
        for number in range(request.max_steps):
            start, end = request.temperature_start, request.temperature_end
            heat = float(
                sampler.temperature(start, end, request.max_steps - number, request.max_steps)
            )
            uniforms = torch.rand(size, generator=generator, dtype=torch.float64)
            seen = Agreement(heat, uniforms, canvas, soft)
            decided, next_soft = self._decide(cache, seen, request.entropy_bound)
            yield ComparedStep(seen, decided)
            threshold = torch.tensor([request.confidence_threshold])
            settled = bool(sampler.confident(decided.entropy[None], threshold))
            if before is not None and settled and torch.equal(before, decided.argmax):
                return
            renoised = torch.randint(vocabulary, (size,), generator=generator)
            canvas = torch.where(decided.accepted, decided.sampled, renoised)
            before, soft = decided.argmax, next_soft

    def _decide(
        self, cache: DynamicCache, seen: Agreement, entropy_bound: float
    ) -> tuple[Decided, Tensor]:
        """One step, and the soft embedding for the next."""
        size = len(seen.canvas)
        soft = None if seen.soft is None else seen.soft.to(self._denoiser.dtype)
        output = sampler.sample(
            self._denoiser.raw_logits(cache, seen.canvas, soft),
            torch.full((size,), seen.temperature),
            self._denoiser.cap,
            seen.uniforms,
        )
        accepted = sampler.accept(output.entropy[None], torch.tensor([entropy_bound]))[0]
        decided = Decided(output.argmax, output.sampled, accepted, output.entropy)
        return decided, self._denoiser.soft_embedding(output.probabilities)
