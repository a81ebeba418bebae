"""The training loop: denoising loss on every canvas of a sample at once, plus the causal half's
next-token loss.

The first steps learn to answer questions and nothing else. Beside stories it is not learnt: their
gradients are so much larger that nothing of the questions' is left in a step.

After them, the model learns from truth and uniform noise. At the end it also learns from what the
sampler itself makes of that: tokens that the model drew and accepted, right and wrong. So it learns
to repair its own mistakes, which noise alone never shows it. That is for canvases that were mostly
right. Where little is known, the model's draw is as good as the sample's word, and the loss would
teach it to distrust a fair draw (docs/LOG.md).

B = rows, C = canvas length, K = canvases of the batch, L = context length, V = vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.sampling.sampler import accept
from piecework_model.training import batches, skills
from piecework_model.training.network import Network

_MOSTLY_RIGHT: Final = 0.5
"""At most so much of a canvas is noise where the sampler's own states are shown."""
FIRST_STEPS: Final = skills.FIRST_MIXTURES[-1][0]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a run depends on, besides the code. The same settings give the same weights.

    decay_steps: the last steps, in which the rate falls to its end. Before them it stays at the
        peak, so that a run may still be made longer or shorter (Haegele et al. 2024, "Scaling Laws
        and Compute-Optimal Training Beyond Fixed Training Durations").
    own_states_steps, own_states_share: the last steps, and how many of their batches show the
        sampler's own states.
    reads_first: whether the first steps read and do nothing else, at `first_rate` times the peaks.
    """

    seed: int = 20261122
    steps: int = 2200
    decay_steps: int = 1200
    adam_rate: float = 3e-3
    muon_rate: float = 1.5e-2
    warmup_steps: int = 60
    encoder_weight: float = 0.5
    reading_weight: float = 3.0
    reads_first: bool = True
    first_rate: float = 1 / 3
    self_conditioning_share: float = 0.35
    own_states_steps: int = 150
    own_states_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean cross-entropy in nats a token, None where a step has no such batch. `reading` is of the
    answers to questions, `encoder` of the next tokens of stories.
    """

    telling: float | None
    serving: float | None
    reading: float | None
    encoder: float | None


class Pass:
    """One encoder pass over a batch. The denoiser may run over it any number of times."""

    def __init__(self, network: Network, batch: batches.Batch) -> None:
        """Run the encoder."""
        self._network, self._batch = network, batch
        self._encoded = network.encode(batch.context)

    def denoise(self, noisy: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        """Compute logits [B, K * C, V] for canvases [B, K * C].

        previous: the logits of the step before, divided by its temperature, or None at step 0.
        """
        return self._network.logits(self._hidden(noisy, previous))

    def denoising_loss(self, noisy: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        """Compute the weighted mean cross-entropy of the denoiser. Arguments as of `denoise`."""
        batch = self._batch
        chosen = batch.weights > 0
        logits = self._network.logits(self._hidden(noisy, previous)[chosen])
        return _weighted(logits, batch.target[chosen], batch.weights[chosen])

    def encoder_loss(self) -> torch.Tensor:
        """Compute the weighted next-token cross-entropy of the canvases that the encoder has
        read.
        """
        batch, hidden = self._batch, self._encoded.hidden
        span = batch.target.shape[1] - skills.CANVAS
        if span == 0:
            return hidden.new_zeros(())
        # The token at position p is predicted at p - 1.
        places = batch.prompt_lengths[:, None] + torch.arange(span) - 1
        inside = places < batch.context.shape[1] - 1
        weights = batch.weights[:, :span] * inside
        chosen = weights > 0
        rows = torch.arange(len(places))[:, None].expand_as(places)
        logits = self._network.logits(hidden[rows[chosen], places[chosen]])
        return _weighted(logits, batch.target[:, :span][chosen], weights[chosen])

    def _hidden(self, noisy: torch.Tensor, previous: torch.Tensor | None) -> torch.Tensor:
        return self._network.denoise(self._encoded, noisy, self._batch.starts, previous)


def _weighted(logits: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the weighted mean cross-entropy of [N, V] logits."""
    each = cross_entropy(logits, target, reduction="none")
    return (each * weights).sum() / weights.sum().clamp(min=1e-6)


def sampler_step(
    logits: torch.Tensor,
    batch: batches.Batch,
    entropy_bound: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Make the canvases [B, K * C] that the sampler would show the model next.

    As the product does: sample, accept by the entropy bound canvas by canvas, hold pinned positions
    outside the sum, make the rest noise. The logits are divided by the temperature already.
    """
    probabilities = torch.softmax(logits, dim=-1)
    ids = torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1)
    entropy = entropy.masked_fill(batch.pinned, 0.0).view(-1, skills.CANVAS)
    bounds = torch.full((len(entropy),), entropy_bound)
    kept = accept(entropy, bounds).view(batch.target.shape)
    vocab_size = logits.shape[-1]
    return batches.renoise(batch, kept, ids.view(kept.shape), vocab_size, generator)


def _rate(step: int, settings: TrainingSettings) -> float:
    """Compute the rate: linear warm-up to that of the first steps, linear warm-up to the peak, and
    at last a line down to 2 % of it.
    """
    warmup, first = settings.warmup_steps, FIRST_STEPS if settings.reads_first else 0
    if step < first:
        return settings.first_rate * min(1.0, (step + 1) / warmup)
    if step < first + warmup:
        return settings.first_rate + (1 - settings.first_rate) * (step + 1 - first) / warmup
    left = min(1.0, (settings.steps - step) / max(1, settings.decay_steps))
    return 0.02 + 0.98 * left


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
        self._optimizers: dict[str, torch.optim.Optimizer] = {
            "adam": self._adam,
            "muon": self._muon,
        }

    def set_gradient(self, gradients: list[list[torch.Tensor | None]]) -> None:
        """Take the sum of gradients, in their order."""
        for weight, *parts in zip(self.weights, *gradients, strict=True):
            present = [part for part in parts if part is not None]
            weight.grad = torch.stack(present).sum(0) if present else None

    def step(self, rate: float) -> None:
        """Clip the gradient to norm 1, step at `rate` times the peak learning rates, and clear the
        gradient.
        """
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._adam.param_groups[0]["lr"] = self._settings.adam_rate * rate
        self._muon.param_groups[0]["lr"] = self._settings.muon_rate * rate
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what `load` needs to go on."""
        return {
            f"{name}.{index}.{key}": value
            for name, optimizer in self._optimizers.items()
            for index, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
        }

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state."""
        found: dict[str, dict[int, dict[str, torch.Tensor]]] = {n: {} for n in self._optimizers}
        for path, value in state.items():
            name, index, key = path.split(".")
            found[name].setdefault(int(index), {})[key] = value
        for name, optimizer in self._optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": found[name], "param_groups": groups})


def step_samples(settings: TrainingSettings, step: int) -> list[list[skills.TrainingSample]]:
    """Draw the samples of one step, one list a mixture. They depend on the arguments alone."""
    rng = random.Random(f"samples {settings.seed} {step}")  # noqa: S311 (no secret)
    first = skills.FIRST_MIXTURES if settings.reads_first else ()
    found = (mixtures for until, mixtures in first if step < until)
    usual = skills.MIXTURES[step % len(skills.MIXTURES)]
    return [mixture.draw(rng) for mixture in next(found, usual)]


@dataclass(frozen=True, slots=True)
class _Part:
    """Samples of one batch that are alike in length.

    batch: its index in the step. number: of the part, in the step. share: of the batch's loss.
    """

    batch: int
    number: int
    samples: list[skills.TrainingSample]
    share: float

    @property
    def work(self) -> int:
        """About how long it takes: the tokens, with padding."""
        longest = max(len(sample.prompt) + len(sample.target) for sample in self.samples)
        return len(self.samples) * longest


def _parts(step: list[list[skills.TrainingSample]]) -> list[_Part]:
    """Split batches into a short and a long half, which have less padding than the whole, and begin
    with what takes longest. So all workers end at about the same time.
    """
    parts: list[_Part] = []
    for batch, samples in enumerate(step):
        ordered = sorted(samples, key=lambda one: len(one.prompt) + len(one.target))
        middle = len(ordered) // 2
        whole = sum(sum(sample.weights) for sample in samples)
        for half in filter(None, (ordered[:middle], ordered[middle:])):
            share = sum(sum(sample.weights) for sample in half) / whole
            parts.append(_Part(batch, len(parts), half, share))
    return sorted(parts, key=lambda part: -part.work)


class Noise:
    """What the denoiser is shown in one step of training: canvases, and the logits of the step
    before, or None at the first one.
    """

    def __init__(self, settings: TrainingSettings, step: int, index: int, vocab_size: int) -> None:
        """Depend on the arguments alone. `index` is that of the part in its step."""
        self._settings, self._vocab_size = settings, vocab_size
        seed = f"noise {settings.seed} {step} {index}"
        self._rng = random.Random(seed)  # noqa: S311 (no secret)
        self._generator = torch.Generator().manual_seed(self._rng.getrandbits(63))
        own = self._rng.random() < settings.own_states_share
        self._own_states = own and step >= settings.steps - settings.own_states_steps

    def answering(self, batch: batches.Batch) -> tuple[torch.Tensor, None]:
        """Show questions, which are answered in one step: all that is free is noise."""
        nothing = torch.zeros_like(batch.pinned)
        return self._renoise(batch, nothing, batch.target), None

    def writing(self, once: Pass, batch: batches.Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Show the truth with noise, or what the sampler makes of it in one or two steps."""
        most = _MOSTLY_RIGHT if self._own_states else 1.0
        noisy = batches.corrupt(batch, self._vocab_size, self._generator, most)
        previous = None
        if not self._own_states:
            if self._rng.random() < self._settings.self_conditioning_share:
                previous = once.denoise(noisy, None)
            return noisy, previous
        # From the published schedule to the demo's, with the entropy bound of either.
        temperature = 0.4 + 0.6 * self._rng.random()
        bound = self._rng.choice((0.005, 0.1))
        for _ in range(self._rng.choice((1, 2))):
            previous = once.denoise(noisy, previous) / temperature
            noisy = sampler_step(previous, batch, bound, self._generator)
        return noisy, previous

    def _renoise(self, batch: batches.Batch, kept: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return batches.renoise(batch, kept, ids, self._vocab_size, self._generator)


def _losses(samples: list[list[skills.TrainingSample]], found: list[tuple[float, float]]) -> Losses:
    """Name the denoising and encoder losses of a step's batches."""
    reading = [each for batch, (each, _) in zip(samples, found, strict=True) if batch[0].reads]
    writing = [pair for batch, pair in zip(samples, found, strict=True) if not batch[0].reads]
    answered = sum(reading) / len(reading) if reading else None
    if not writing:
        return Losses(None, None, answered, None)
    (told, causal), (served, _), *_ = writing
    return Losses(told, served, answered, causal)


class Trainer:
    """A run of training, which may be saved and resumed between any two steps.

    The parts of a step are computed beside each other, each in one thread, and their gradients are
    added in one order. So the number of workers changes nothing but the time.
    """

    def __init__(
        self,
        model: DiffusionGemmaForBlockDiffusion,
        settings: TrainingSettings,
        workers: int = 1,
        products: torch.dtype = torch.bfloat16,
    ) -> None:
        """Begin at step 0. Matrix products are computed in `products`."""
        self.model, self.settings = model, settings
        self.step = 0
        self._workers = workers
        self._network = Network(model, products)
        self._optimizer = Optimizer(model, settings)
        self._vocab_size = model.config.text_config.vocab_size

    def run(self, report: Callable[[int, Losses], None]) -> None:
        """Train to the end. `report(step, losses)` is called after every step."""
        self.model.train()
        with ThreadPoolExecutor(self._workers) as pool:
            while self.step < self.settings.steps:
                losses = self._learn(pool)
                self.step += 1
                report(self.step - 1, losses)
        self.model.eval()

    def _learn(self, pool: ThreadPoolExecutor) -> Losses:
        samples = step_samples(self.settings, self.step)
        parts = _parts(samples)
        found = list(pool.map(self._gradient, parts))
        self._optimizer.set_gradient([gradient for gradient, *_ in found])
        self._optimizer.step(_rate(self.step, self.settings))
        means = [[0.0, 0.0] for _ in samples]
        for part, (_, *losses) in zip(parts, found, strict=True):
            for at, loss in enumerate(losses):
                means[part.batch][at] += part.share * loss
        return _losses(samples, [(denoising, causal) for denoising, causal in means])

    def _gradient(self, part: _Part) -> tuple[list[torch.Tensor | None], float, float]:
        """Compute the gradient of a part's loss, its denoising loss and its encoder loss."""
        settings = self.settings
        noise = Noise(settings, self.step, part.number, self._vocab_size)
        batch = batches.pack(part.samples)
        reading = part.samples[0].reads
        once = Pass(self._network, batch)
        with torch.no_grad():
            state = noise.answering(batch) if reading else noise.writing(once, batch)
        denoising, causal = once.denoising_loss(*state), once.encoder_loss()
        weight = part.share * (settings.reading_weight if reading else 1.0)
        loss = weight * (denoising + settings.encoder_weight * causal)
        gradient = torch.autograd.grad(loss, self._optimizer.weights, allow_unused=True)
        return list(gradient), denoising.item(), causal.item()

    def save(self, path: Path) -> None:
        """Write the state of the run, whole or not at all."""
        tensors = {f"model.{name}": weight for name, weight in self.model.named_parameters()}
        tensors |= {f"optimizer.{name}": value for name, value in self._optimizer.state().items()}
        told = {"settings": _shown(self.settings), "step": str(self.step)}
        new = path.with_name(f"{path.name}.new")
        save_file({name: value.contiguous() for name, value in tensors.items()}, new, told)
        new.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Go on where `save` was called.

        Raises:
            ValueError: The state is of a run with other settings, or it is of a shorter or longer
                run and the rate falls already.
        """
        with safe_open(path, framework="pt") as state:
            told = state.metadata()
            if not self._goes_on(json.loads(told["settings"]), int(told["step"])):
                raise ValueError(f"{path} is of a run with other settings: {told['settings']}")
            for name, weight in self.model.named_parameters():
                weight.copy_(state.get_tensor(f"model.{name}"))
            lead = "optimizer."
            self._optimizer.load(
                {
                    name.removeprefix(lead): state.get_tensor(name)
                    for name in state.keys()  # noqa: SIM118  it is no mapping
                    if name.startswith(lead)
                }
            )
        self.step = int(told["step"])

    def _goes_on(self, settings: dict[str, object], step: int) -> bool:
        """Whether the steps so far are those of this run too."""
        own = dataclasses.asdict(self.settings)
        longest = min(own["steps"], settings["steps"])
        last = max(own["decay_steps"], own["own_states_steps"])
        return settings == own or (
            settings | {"steps": 0} == own | {"steps": 0} and step <= longest - last
        )


def _shown(settings: TrainingSettings) -> str:
    return json.dumps(dataclasses.asdict(settings))
