"""The sampler: what a denoising step makes of the model's logits.

These are pure functions without a generator or hidden state. Their arithmetic follows
`EntropyBoundSampler`, `LinearTemperatureScheduleLogitsProcessor` and
`StableAndConfidentStoppingCriteria` of transformers 5.23 operation by operation. The same random
numbers then give the same canvases (tests/unit/model/test_faithfulness.py).

The acceptance rule is that of "Accelerated Sampling from Masked Diffusion Models via Entropy
Bounded Unmasking", arXiv 2505.24857.

C = canvas size, V = vocabulary, P = positions of one or more canvases, which are independent here.
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
    """What the logits of P positions give, with one uniform for each. All are [P] but the last."""

    argmax: Tensor  # int64
    sampled: Tensor  # int64
    entropy: Tensor  # float32, nats; not finite exactly when a logit of the position is not
    log_probability: Tensor  # float32, of the sampled token
    gap: Tensor  # float32, between the two largest scaled logits
    probabilities: Tensor  # [P, V] in the logits' own type, to multiply the embeddings

    @property
    def fingerprint(self) -> Tensor:
        """The numbers of the trace, float16 [P, 3] (`piecework_protocol.trace`)."""
        return torch.stack([self.entropy, self.log_probability, self.gap], dim=-1).to(torch.float16)


def temperature(start: float, end: float, remaining: int, max_steps: int) -> np.float32:
    """Compute the temperature of the step with `remaining` steps to go, itself included.

    `remaining` is max_steps at first and 1 at last. The formula is end + (start - end) *
    float32(remaining / max_steps), with each operation rounded to float32.
    """
    share = np.float32(remaining) / np.float32(max_steps)
    return np.float32(end) + np.float32(start - end) * share


def sample(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    """Sample one step, before acceptance.

    raw: [P, V] float32 or bfloat16, the output of the last layer. temperatures: [P] float32. cap:
    tanh bounds the logits to it first. uniforms: [P] float64 in (0, 1).
    """
    logits = raw.to(torch.float32, copy=True)
    # Before the cap: tanh would hide an infinity.
    finite = torch.isfinite(logits.amax(-1)) & torch.isfinite(logits.amin(-1))
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
    """Sample ids [P] from probabilities [P, V] float32 and uniforms [P] float64 in (0, 1).

    The token is the first whose cumulative probability exceeds u times the total. There are two
    levels. Sums of blocks of the vocabulary, each in float32 and added up in float64, pick a block.
    Float64 prefix sums inside the block pick the token.

    So no array of [P, V] is made in float64. Both prefix sums are taken on the CPU in a fixed
    order.
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
    """Say for each sequence whether its mean entropy over its canvas, in nats, is below its
    threshold.

    entropy: [sequences, C]. confidence_thresholds: [sequences].
    """
    return torch.mean(entropy, dim=-1) < confidence_thresholds


def accept(entropy: Tensor, entropy_bounds: Tensor) -> Tensor:
    """Choose the accepted positions [sequences, C] of each canvas.

    Positions are taken in order of entropy, as long as the entropies before them sum to at most the
    sequence's bound. entropy: [sequences, C], 0 where a position is pinned: that one is accepted
    and adds nothing. entropy_bounds: [sequences].
    """
    ordered, order = torch.sort(entropy, dim=-1, descending=False, stable=True)
    chosen = torch.cumsum(ordered, dim=-1) - ordered <= entropy_bounds[:, None]
    return torch.scatter(torch.zeros_like(chosen), dim=-1, index=order, src=chosen)
