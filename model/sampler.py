"""The sampler: what a denoising step makes of the model's logits. Pure functions, no generator, no hidden
state.

The arithmetic follows `EntropyBoundSampler`, `LinearTemperatureScheduleLogitsProcessor` and
`StableAndConfidentStoppingCriteria` of transformers 5.23 operation by operation, so that the same random
numbers give the same canvases (tests/unit/model/test_faithfulness.py). The acceptance rule is that of
"Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking", arXiv 2505.24857. C =
canvas size, V = vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model import limits


@dataclass(frozen=True, slots=True)
class StepChoice:
    """What a step decided. All of shape [C]: the next canvas, the argmax canvas, acceptance, and the
    statistics.
    """

    after: Tensor  # int64
    argmax: Tensor  # int64
    accepted: Tensor  # bool
    sampled: Tensor  # int64
    entropy: Tensor  # float32, nats
    fingerprint: Tensor  # float16 [C, 3], see model/trace.py


def temperature(start: float, end: float, remaining: int, max_steps: int, device: torch.device) -> Tensor:
    """Temperature of the step with `remaining` steps to go, itself included (max_steps at first, 1 at last).

    A float32 scalar: end + (start - end) * float32(remaining / max_steps), each operation rounded to float32.
    """
    steps_left = torch.tensor(remaining, dtype=torch.int32, device=device)
    return end + ((start - end) * (steps_left / max_steps))


def token_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy [C] in nats and log-probabilities [C, V] of temperature-scaled logits [C, V]."""
    log_probabilities = logits - logits.logsumexp(dim=-1, keepdim=True)
    floor = torch.finfo(logits.dtype).min
    weighted = torch.clamp(log_probabilities, min=floor) * torch.softmax(log_probabilities, dim=-1)
    return -weighted.sum(-1), log_probabilities


def sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Inverse-CDF sampling: ids [C] from probabilities [C, V] float32 and uniforms [C] float64 in (0, 1).

    The token is the first whose cumulative probability exceeds u times the total. Two levels: the float64
    sums of blocks of the vocabulary pick a block, the float64 prefix sums inside it pick the token. So
    nothing of size [C, V] is made in float64, and both prefix sums are taken on the CPU in a fixed order.
    """
    positions, vocab_size = probabilities.shape
    width = limits.CDF_BLOCK_TOKENS
    padding = -vocab_size % width
    blocks = torch.nn.functional.pad(probabilities, (0, padding)).view(positions, -1, width)
    cumulative = blocks.sum(dim=-1, dtype=torch.float64).cpu().cumsum(dim=-1)  # [C, blocks]
    threshold = uniforms.cpu() * cumulative[:, -1]
    block = (cumulative <= threshold[:, None]).sum(dim=-1).clamp(max=cumulative.shape[1] - 1)  # [C]
    before = torch.cat([torch.zeros(positions, 1, dtype=torch.float64), cumulative], dim=-1)
    rest = threshold - before.gather(1, block[:, None]).squeeze(1)
    inside = blocks.gather(1, block.to(blocks.device)[:, None, None].expand(-1, 1, width)).squeeze(1)
    within = (inside.double().cpu().cumsum(dim=-1) <= rest[:, None]).sum(dim=-1)  # [C]
    # Rounding between the two levels can put `rest` past the block's own sum: then its last token with any
    # mass.
    last = width - 1 - (inside.cpu().flip(-1) > 0).int().argmax(dim=-1)
    return (block * width + torch.minimum(within, last)).to(probabilities.device)


def accept(entropy: Tensor, entropy_bound: float) -> Tensor:
    """The accepted positions [C]: those of lowest entropy, as long as the entropies before them sum to the
    bound.
    """
    ordered, order = torch.sort(entropy, dim=-1, descending=False, stable=True)
    chosen = torch.cumsum(ordered, dim=-1) - ordered <= entropy_bound
    return torch.scatter(torch.zeros_like(chosen), dim=-1, index=order, src=chosen)


def choose(scaled_logits: Tensor, uniforms: Tensor, renoise: Tensor, entropy_bound: float) -> StepChoice:
    """One step of the sampler.

    scaled_logits: [C, V] float32, divided by the temperature. uniforms: [C] float64 in (0, 1).
    renoise: [C] int64, the ids for positions that are not accepted.
    """
    sampled = sample(torch.softmax(scaled_logits, dim=-1, dtype=torch.float32), uniforms)
    entropy, log_probabilities = token_entropy(scaled_logits)
    accepted = accept(entropy, entropy_bound)
    top = torch.topk(scaled_logits, 2, dim=-1).values  # [C, 2]
    chosen = log_probabilities.gather(1, sampled[:, None]).squeeze(1)
    return StepChoice(
        after=torch.where(accepted, sampled, renoise),
        argmax=torch.argmax(scaled_logits, dim=-1),
        accepted=accepted,
        sampled=sampled,
        entropy=entropy,
        fingerprint=torch.stack([entropy, chosen, top[:, 0] - top[:, 1]], dim=-1).to(torch.float16),
    )


def is_confident(entropy: Tensor, confidence_threshold: float) -> bool:
    """Whether the mean entropy over the canvas, in nats, is below the threshold."""
    return bool(torch.mean(entropy, dim=-1) < confidence_threshold)
