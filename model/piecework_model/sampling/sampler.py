"""The sampler: what a denoising step makes of the model's logits. Pure functions, no generator, no
hidden state.

The arithmetic follows `EntropyBoundSampler`, `LinearTemperatureScheduleLogitsProcessor` and
`StableAndConfidentStoppingCriteria` of transformers 5.23 operation by operation, so that the same
random numbers give the same canvases (tests/unit/model/test_faithfulness.py). The acceptance rule
is that of "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking", arXiv
2505.24857. C = canvas size, V = vocabulary, P = positions: those of one or more canvases, which do
not see each other here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from piecework_model import limits
from piecework_model.elementwise import by_rows


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """What the logits of P positions say, under one uniform for each. All [P] but the last."""

    argmax: Tensor  # int64
    sampled: Tensor  # int64
    entropy: Tensor  # float32, nats; not finite exactly when a logit of the position is not
    log_probability: Tensor  # float32, of the sampled token
    gap: Tensor  # float32, between the two largest scaled logits
    probabilities: (
        Tensor  # [P, V] in the logits' own type: what multiplies the embeddings for the next step
    )

    @property
    def fingerprint(self) -> Tensor:
        """The numbers of the trace, float16 [P, 3] (sampling/trace.py)."""
        return torch.stack([self.entropy, self.log_probability, self.gap], dim=-1).to(torch.float16)


def temperature(start: float, end: float, remaining: int, max_steps: int) -> np.float32:
    """Temperature of the step with `remaining` steps to go, itself included (max_steps at first, 1
    at last).

    end + (start - end) * float32(remaining / max_steps), each operation rounded to float32.
    """
    share = np.float32(remaining) / np.float32(max_steps)
    return np.float32(end) + np.float32(start - end) * share


def sample(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    """One step of the sampler, before acceptance.

    raw: [P, V] float32 or bfloat16, the output of the last layer. temperatures: [P] float32. cap:
    the logits are bounded to it by tanh first. uniforms: [P] float64 in (0, 1).
    """
    logits = raw.to(torch.float32, copy=True)
    finite = torch.isfinite(logits.amax(-1)) & torch.isfinite(
        logits.amin(-1)
    )  # tanh would hide an infinity
    logits = by_rows(torch.tanh_, logits.div_(cap)).mul_(cap).div_(temperatures[:, None])
    largest, argmax = torch.max(logits, dim=-1, keepdim=True)
    second = logits.scatter_(-1, argmax, -math.inf).amax(-1, keepdim=True)
    logits.scatter_(-1, argmax, largest)
    exact = torch.softmax(logits, dim=-1)
    sampled = inverse_cdf_sample(exact, uniforms)
    rounded = exact
    if raw.dtype is not torch.float32:
        rounded = logits.to(raw.dtype).softmax(dim=-1, dtype=torch.float32).to(raw.dtype)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    entropy = -(exact * log_probabilities).sum(-1)
    return SampleOutput(
        argmax=argmax.squeeze(1),
        sampled=sampled,
        entropy=entropy.masked_fill_(~finite, math.nan),
        log_probability=log_probabilities.gather(1, sampled[:, None]).squeeze(1),
        gap=(largest - second).squeeze(1),
        probabilities=rounded,
    )


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF sampling: ids [P] from probabilities [P, V] float32 and uniforms [P] float64 in
    (0, 1).

    The token is the first whose cumulative probability exceeds u times the total. Two levels: sums
    of blocks of the vocabulary, each in float32 and added up in float64, pick a block; the float64
    prefix sums inside it pick the token. So nothing of size [P, V] is made in float64, and both
    prefix sums are taken on the CPU in a fixed order.
    """
    positions, vocab_size = probabilities.shape
    width = limits.CDF_BLOCK_TOKENS
    padding = -vocab_size % width
    padded = torch.nn.functional.pad(probabilities, (0, padding)) if padding else probabilities
    blocks = padded.view(positions, -1, width)
    cumulative = blocks.sum(dim=-1).double().cpu().cumsum(dim=-1)  # [P, blocks]
    threshold = uniforms.cpu() * cumulative[:, -1]
    block = (cumulative <= threshold[:, None]).sum(dim=-1).clamp(max=cumulative.shape[1] - 1)  # [P]
    before = torch.cat([torch.zeros(positions, 1, dtype=torch.float64), cumulative], dim=-1)
    rest = threshold - before.gather(1, block[:, None]).squeeze(1)
    inside = blocks.gather(1, block.to(blocks.device)[:, None, None].expand(-1, 1, width)).squeeze(
        1
    )
    within = (inside.double().cpu().cumsum(dim=-1) <= rest[:, None]).sum(dim=-1)  # [P]
    if bool((within == width).any()):
        # Rounding between the two levels put `rest` past the block's own sum: its last token with
        # any mass.
        last = width - 1 - (inside.cpu().flip(-1) > 0).int().argmax(dim=-1)
        within = torch.minimum(within, last)
    return (block * width + within).to(probabilities.device)


def confident(entropy: Tensor, confidence_thresholds: Tensor) -> Tensor:
    """Whether each row's mean entropy over its canvas [rows, C], in nats, is below its threshold
    [rows]."""
    return torch.mean(entropy, dim=-1) < confidence_thresholds


def accept(entropy: Tensor, entropy_bounds: Tensor) -> Tensor:
    """The accepted positions [rows, C]: in each row those of lowest entropy, as long as the
    entropies before them sum to the row's bound [rows]."""
    ordered, order = torch.sort(entropy, dim=-1, descending=False, stable=True)
    chosen = torch.cumsum(ordered, dim=-1) - ordered <= entropy_bounds[:, None]
    return torch.scatter(torch.zeros_like(chosen), dim=-1, index=order, src=chosen)
