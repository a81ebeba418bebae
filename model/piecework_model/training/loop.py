"""The training loop: denoising loss on every canvas of a story at once, plus the causal half's
next-token loss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from piecework_model.training import batches, vocabulary


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a run depends on, besides the code. The same settings and thread count give the same
    weights.
    """

    seed: int = 20261122
    steps: int = 1800
    rows: int = 16
    adam_rate: float = 4e-3
    muon_rate: float = 2e-2
    warmup_steps: int = 60
    encoder_weight: float = 0.5
    self_conditioning_share: float = 0.35


def run_model(
    model: DiffusionGemmaForBlockDiffusion,
    batch: batches.Batch,
    noisy: torch.Tensor,
    conditioned: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute encoder hidden states [rows, L, H] and denoising logits [rows, K, V].

    The cache is made without a config, so that it keeps every position of sliding layers too, and
    the masks do the windowing. So all canvases of a story share one pass.
    """
    config = model.config
    window, canvas = config.text_config.sliding_window, config.canvas_length
    rows, length = batch.context.shape
    cache = DynamicCache()
    encoder_positions = torch.arange(length)[None].expand(rows, -1)
    hidden = model.model.encoder.language_model(
        input_ids=batch.context,
        attention_mask=batches.encoder_masks(length, window),
        position_ids=encoder_positions,
        past_key_values=cache,
    ).last_hidden_state
    arguments = {
        "past_key_values": cache,
        "decoder_input_ids": noisy,
        "decoder_position_ids": batch.prompt_lengths[:, None] + torch.arange(noisy.shape[1])[None],
        "decoder_attention_mask": batches.decoder_masks(
            batch.prompt_lengths, length, canvas, window
        ),
    }
    previous = None
    if conditioned:
        with torch.no_grad():
            previous = model(**arguments).logits
    return hidden, model(self_conditioning_logits=previous, **arguments).logits


def losses(
    model: DiffusionGemmaForBlockDiffusion,
    batch: batches.Batch,
    noisy: torch.Tensor,
    conditioned: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean cross-entropy in nats per token: of the denoiser on all canvas positions, of
    the encoder on the story.
    """
    hidden, logits = run_model(model, batch, noisy, conditioned)
    flat = cross_entropy(logits.flatten(0, 1), batch.canvases.flatten(), reduction="none")
    denoising = (flat * batch.weights.flatten()).sum() / batch.weights.sum()
    length = batch.context.shape[1]
    positions = torch.arange(1, length)[None]
    story = (positions >= batch.prompt_lengths[:, None]) & (batch.context[:, 1:] != vocabulary.PAD)
    cap = model.final_logit_softcapping
    next_logits = torch.tanh(model.lm_head(hidden[:, :-1][story]) / cap) * cap
    return denoising, cross_entropy(next_logits, batch.context[:, 1:][story])


def _rate(step: int, settings: TrainingSettings) -> float:
    """Compute the rate: linear warm-up, then a cosine down to 2 % of the peak."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """Muon (Jordan et al. 2024) for the matrices inside the layers, AdamW for embeddings, routers,
    experts and gains.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion, settings: TrainingSettings) -> None:
        named = [
            (name, weight) for name, weight in model.named_parameters() if "vision" not in name
        ]
        self.weights = [weight for _, weight in named]
        inner = [
            w for name, w in named if w.ndim == 2 and "embed" not in name and "router" not in name
        ]
        chosen = {id(weight) for weight in inner}
        rest = [weight for weight in self.weights if id(weight) not in chosen]
        self._settings = settings
        self._adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        self._muon = torch.optim.Muon(inner, lr=0.0, weight_decay=0.0)

    def step(self, rate: float) -> None:
        """Clip the gradient to norm 1, step at `rate` times the peak learning rates, and clear the
        gradient.
        """
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._adam.param_groups[0]["lr"] = self._settings.adam_rate * rate
        self._muon.param_groups[0]["lr"] = self._settings.muon_rate * rate
        for optimizer in (self._adam, self._muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def train(
    model: DiffusionGemmaForBlockDiffusion,
    tokenizer: Tokenizer,
    settings: TrainingSettings,
    report: Callable[[int, float, float], None],
) -> None:
    """Train `model` in place. `report(step, denoising loss, encoder loss)` is called after every
    step.
    """
    rng = random.Random(settings.seed)  # noqa: S311 (training data, no secret)
    generator = torch.Generator().manual_seed(settings.seed)
    canvas, vocab_size = model.config.canvas_length, model.config.text_config.vocab_size
    optimizer = Optimizer(model, settings)
    model.train()
    for step in range(settings.steps):
        batch = batches.pack(batches.draw_examples(tokenizer, rng, settings.rows, canvas), canvas)
        noisy = batches.corrupt(batch.canvases, canvas, vocab_size, generator)
        conditioned = rng.random() < settings.self_conditioning_share
        denoising, encoder = losses(model, batch, noisy, conditioned)
        torch.autograd.backward(denoising + settings.encoder_weight * encoder)
        optimizer.step(_rate(step, settings))
        report(step, denoising.item(), encoder.item())
    model.eval()


def training_stories(tokenizer: Tokenizer, settings: TrainingSettings, canvas: int) -> set[str]:
    """List every story that a run with these settings sees, by replaying its random draws."""
    rng = random.Random(settings.seed)  # noqa: S311 (training data, no secret)
    seen: set[str] = set()
    for _ in range(settings.steps):
        for _, story in batches.draw_examples(tokenizer, rng, settings.rows, canvas):
            seen.add(tokenizer.decode(story))
        rng.random()
    return seen
