"""Training batches: packed token ids, the attention masks of both halves of the model, and the
noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from piecework_model.training import grammar, vocabulary

MAX_CANVASES = 4  # a story that needs more is drawn again


@dataclass(frozen=True, slots=True)
class Batch:
    """`rows` stories of `MAX_CANVASES` canvases of C tokens. K = MAX_CANVASES * C, L = longest
    prompt + K - C.

    context: [rows, L] prompt, then all canvases but the last, then padding. The causal encoder
    reads it.
    prompt_lengths: [rows].
    canvases: [rows, K] the story, its end mark, then padding. It is to be predicted.
    weights: [rows, K] 0 for canvases that are wholly behind the end of the story, 1 elsewhere.
    """

    context: torch.Tensor
    prompt_lengths: torch.Tensor
    canvases: torch.Tensor
    weights: torch.Tensor


def prompt_ids(tokenizer: Tokenizer, content: str) -> list[int]:
    """Encode one user message, in three pieces as `text.chat` does. A test holds the two equal."""
    pieces = ("<bos><|turn>user\n", content, "<turn|>\n<|turn>model\n")
    return [token for piece in pieces for token in tokenizer.encode(piece).ids]


def draw_examples(
    tokenizer: Tokenizer, rng: random.Random, rows: int, canvas: int
) -> list[tuple[list[int], list[int]]]:
    """Draw `rows` pairs of prompt ids and story ids. With their end mark the stories fit
    `MAX_CANVASES` canvases.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < rows:
        example = grammar.example(rng)
        story = tokenizer.encode(example.story).ids
        if len(story) < MAX_CANVASES * canvas:
            pairs.append((prompt_ids(tokenizer, example.prompt), [*story, vocabulary.TURN_END]))
    return pairs


def pack(pairs: list[tuple[list[int], list[int]]], canvas: int) -> Batch:
    """Pack prompt and story ids into the tensors of one batch."""
    span = MAX_CANVASES * canvas
    longest = max(len(prompt) for prompt, _ in pairs) + span - canvas
    context = torch.full((len(pairs), longest), vocabulary.PAD)
    canvases = torch.full((len(pairs), span), vocabulary.PAD)
    weights = torch.zeros(len(pairs), span)
    for row, (prompt, story) in enumerate(pairs):
        canvases[row, : len(story)] = torch.tensor(story)
        weights[row, : -(-len(story) // canvas) * canvas] = 1.0
        context[row, : len(prompt)] = torch.tensor(prompt)
        context[row, len(prompt) : len(prompt) + span - canvas] = canvases[row, : span - canvas]
    return Batch(context, torch.tensor([len(prompt) for prompt, _ in pairs]), canvases, weights)


def encoder_masks(length: int, window: int) -> dict[str, torch.Tensor]:
    """Make causal masks [1, 1, length, length], True where a query (row) may look.

    Padding is behind every real token.
    """
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    causal = key <= query
    return {
        "full_attention": causal[None, None],
        "sliding_attention": (causal & (key > query - window))[None, None],
    }


def decoder_masks(
    prompt_lengths: torch.Tensor, length: int, canvas: int, window: int
) -> dict[str, torch.Tensor]:
    """Make the denoiser's masks [rows, 1, K, length + K] for all canvases at once.

    A position of canvas k sees the context before its canvas, and its own canvas in both
    directions. In sliding layers it sees only the last window - 1 tokens of the context, which is
    what the sliding KV cache keeps.
    """
    span = MAX_CANVASES * canvas
    block = torch.arange(span) // canvas
    start = prompt_lengths[:, None, None] + (block * canvas)[None, :, None]  # [rows, K, 1]
    key = torch.arange(length)[None, None, :]
    own = (block[:, None] == block[None, :]).expand(len(prompt_lengths), -1, -1)
    full = key < start
    sliding = full & (key >= start - (window - 1))
    return {
        "full_attention": torch.cat([full, own], dim=-1)[:, None],
        "sliding_attention": torch.cat([sliding, own], dim=-1)[:, None],
    }


def corrupt(
    canvases: torch.Tensor, canvas: int, vocab_size: int, generator: torch.Generator
) -> torch.Tensor:
    """Replace tokens by uniform random ids: a share t ~ U(0, 1) of each canvas, 15 % of the
    canvases wholly.
    """
    rows, span = canvases.shape
    share = torch.rand(rows, span // canvas, generator=generator)
    share[torch.rand(share.shape, generator=generator) < 0.15] = 1.0
    hit = torch.rand(rows, span, generator=generator) < share.repeat_interleave(canvas, dim=1)
    return torch.where(hit, torch.randint(vocab_size, (rows, span), generator=generator), canvases)
