"""Training batches: packed token ids, and the noise.

B = rows, C = canvas length, K = canvases of the batch, L = tokens of the longest context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piecework_model.training import vocabulary
from piecework_model.training.skills import CANVAS, TrainingSample


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of at most K canvases, padded.

    context: [B, L] prompt, then the first K - 1 canvases, then padding. The encoder reads it.
    prompt_lengths: [B].
    starts: [B, K] where each canvas stands, which is what it sees of its context too. The canvases
        of a read all stand right behind the prompt.
    target: [B, K * C] what is to be predicted. pinned: [B, K * C] what is given.
    weights: [B, K * C] of the loss. 0 where pinned.
    """

    context: torch.Tensor
    prompt_lengths: torch.Tensor
    starts: torch.Tensor
    target: torch.Tensor
    pinned: torch.Tensor
    weights: torch.Tensor


def pack(samples: list[TrainingSample]) -> Batch:
    """Pack samples into the tensors of one batch."""
    rows, most = len(samples), max(sample.canvases for sample in samples)
    span = most * CANVAS
    room = span - CANVAS
    longest = max(len(sample.prompt) + min(room, len(sample.target)) for sample in samples)
    context = torch.full((rows, longest), vocabulary.PAD)
    target = torch.full((rows, span), vocabulary.TURN_END)
    pinned = torch.ones((rows, span), dtype=torch.bool)
    weights = torch.zeros(rows, span)
    lengths = torch.tensor([len(sample.prompt) for sample in samples])
    starts = lengths[:, None] + torch.arange(most) * CANVAS
    for row, sample in enumerate(samples):
        ids = torch.tensor(sample.target)
        target[row, : len(ids)] = ids
        pinned[row, : len(ids)] = torch.tensor(sample.pinned)
        weights[row, : len(ids)] = torch.tensor(sample.weights)
        known = torch.cat([torch.tensor(sample.prompt), ids[:room]])
        context[row, : len(known)] = known
        if sample.reads:
            starts[row] = len(sample.prompt)
    starts = starts.clamp(max=longest)  # of the padding behind short samples
    return Batch(context, lengths, starts, target, pinned, weights)


def corrupt(
    batch: Batch, vocab_size: int, generator: torch.Generator, most: float = 1.0
) -> torch.Tensor:
    """Replace free tokens by uniform random ids: a share t ~ U(0, `most`) of each canvas, and
    `most` of 15 % of the canvases.
    """
    rows, span = batch.target.shape
    share = torch.rand(rows, span // CANVAS, generator=generator)
    share[torch.rand(share.shape, generator=generator) < 0.15] = 1.0
    share *= most
    hit = torch.rand(rows, span, generator=generator) < share.repeat_interleave(CANVAS, dim=1)
    return renoise(batch, ~hit, batch.target, vocab_size, generator)


def renoise(
    batch: Batch,
    kept: torch.Tensor,
    ids: torch.Tensor,
    vocab_size: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Keep `ids` where they are `kept`, pin what is pinned, and make all else noise. All are
    [B, K * C].
    """
    noise = torch.randint(vocab_size, ids.shape, generator=generator)
    return torch.where(batch.pinned, batch.target, torch.where(kept, ids, noise))
