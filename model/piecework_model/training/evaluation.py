"""What the trained checkpoint can do, measured through the engine that serves it."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.engine import Engine
from piecework_model.requests import CanvasEvent, CanvasFinish, FailedEvent, GenerationRequest
from piecework_model.text.chat import encode_prompt
from piecework_model.training import batches, grammar, loop, vocabulary
from piecework_protocol.conversation import Conversation, Message

_STORIES = 96  # asked for with known nouns
_FOREIGN = 32  # asked for with requests outside the grammar
_HELD_OUT_BATCHES = 8
_EVALUATION_SEED = 7  # other than any training seed
_MAX_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Story:
    """One generated story with the canvases it took."""

    example: grammar.Example
    text: str
    steps: tuple[int, ...]
    ended: bool


def request(
    loaded: LoadedModel, prompt: str, seed: int, max_tokens: int = _MAX_TOKENS
) -> GenerationRequest:
    """Make a request for one story with the checkpoint's own defaults."""
    defaults = loaded.defaults
    return GenerationRequest(
        request_id=f"story-{seed}",
        prompt_ids=encode_prompt(loaded, Conversation((Message("user", prompt),))),
        seed=seed,
        max_tokens=max_tokens,
        max_steps=defaults.max_steps,
        temperature_start=defaults.temperature_start,
        temperature_end=defaults.temperature_end,
        entropy_bound=defaults.entropy_bound,
        confidence_threshold=defaults.confidence_threshold,
        stability_steps=defaults.stability_steps,
        canvas_limit=max_tokens,
        draft_every=0,
    )


def tell(loaded: LoadedModel, example: grammar.Example, seed: int) -> Story:
    """Generate one story alone."""
    engine = Engine(loaded, max_sequences=1)
    engine.submit(request(loaded, example.prompt, seed))
    canvases: list[CanvasEvent] = []
    while engine.has_runnable:
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"evaluation failed: {event.message}")
            if isinstance(event, CanvasEvent):
                canvases.append(event)
    ended = canvases[-1].finish is CanvasFinish.END_OF_TEXT
    text = "".join(canvas.text for canvas in canvases)
    return Story(example, text, tuple(canvas.steps for canvas in canvases), ended)


def well_formed_share(stories: list[Story]) -> float:
    """Measure the share of characters in sentences which the grammar itself could have written."""
    pattern = grammar.sentence_patterns()
    total = sum(len(story.text) for story in stories)
    return sum(len(match[0]) for story in stories for match in pattern.finditer(story.text)) / max(
        1, total
    )


def followed(story: Story) -> list[bool]:
    """Say, for each noun that was asked for, whether the story has it."""
    words = set(story.text.lower().replace(",", " ").replace(".", " ").replace('"', " ").split())
    return [noun in words for noun in story.example.nouns]


def cross_entropy(loaded: LoadedModel, settings: loop.TrainingSettings) -> tuple[float, float]:
    """Measure held-out losses in nats per token: denoising (as in training) and next token."""
    rng = random.Random(_EVALUATION_SEED)  # noqa: S311 (evaluation data, no secret)
    generator = torch.Generator().manual_seed(_EVALUATION_SEED)
    tokenizer, canvas = vocabulary.build_tokenizer(), loaded.limits.canvas_size
    totals: list[tuple[float, float]] = []
    for _ in range(_HELD_OUT_BATCHES):
        batch = batches.pack(batches.draw_examples(tokenizer, rng, settings.rows, canvas), canvas)
        noisy = batches.corrupt(batch.canvases, canvas, loaded.limits.vocab_size, generator)
        with torch.no_grad():
            denoising, encoder = loop.losses(loaded.model, batch, noisy, conditioned=True)
        totals.append((denoising.item(), encoder.item()))
    return statistics.mean(d for d, _ in totals), statistics.mean(e for _, e in totals)


def report(
    folder: Path, settings: loop.TrainingSettings, clock: Callable[[], float] = time.monotonic
) -> str:
    """Write the evaluation as the lines of the model card, with a few stories to read."""
    loaded = load(folder, device="cpu", dtype="float32")
    rng = random.Random(_EVALUATION_SEED)  # noqa: S311 (evaluation data, no secret)
    asked: list[grammar.Example] = []
    while len(asked) < _STORIES:
        example = grammar.example(rng)
        if example.nouns:
            asked.append(example)
    unknown = [grammar.Example(grammar.foreign_request(rng), "", ()) for _ in range(_FOREIGN)]
    started = clock()
    stories = [tell(loaded, example, seed) for seed, example in enumerate(asked)]
    seconds = clock() - started
    foreign = [tell(loaded, example, seed) for seed, example in enumerate(unknown)]
    seen = loop.training_stories(vocabulary.build_tokenizer(), settings, loaded.limits.canvas_size)
    denoising, encoder = cross_entropy(loaded, settings)
    nouns = [hit for story in stories for hit in followed(story)]
    steps = [count for story in stories for count in story.steps]
    lines = [
        (
            f"held-out cross-entropy, nats a token: denoising {denoising:.3f}, next token "
            f"{encoder:.3f}"
        ),
        f"requested nouns in the story: {sum(nouns)} of {len(nouns)}",
        (
            f"stories with all requested nouns: {sum(all(followed(s)) for s in stories)} of "
            f"{len(stories)}"
        ),
        f"characters in well-formed sentences: {well_formed_share(stories):.1%}",
        f"the same for requests outside the grammar: {well_formed_share(foreign):.1%}",
        f"stories that end by themselves: {sum(s.ended for s in stories)} of {len(stories)}",
        f"canvases a story: mean {statistics.mean(len(s.steps) for s in stories):.2f}",
        (
            f"denoising steps a canvas: mean {statistics.mean(steps):.1f}, median "
            f"{statistics.median(steps)}, "
            f"at the cap of {loaded.defaults.max_steps}: "
            f"{sum(s == loaded.defaults.max_steps for s in steps)}"
        ),
        (
            f"verbatim copies of one of {len(seen)} training stories: "
            f"{sum(s.text in seen for s in stories)}"
        ),
        f"seconds a story, alone: {seconds / len(stories):.2f}",
    ]
    lines += [
        f"\n> {story.example.prompt}\n\n{story.text}" for story in [*stories[:3], *foreign[:2]]
    ]
    return "\n".join(lines) + "\n"
