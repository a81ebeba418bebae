"""The same stream of requests for every engine that is measured: mixed prompts, mixed steps, arriving over
time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.checkpoints import write_mid
from model.loading import LoadedModel, load
from model.requests import GenerationRequest

Checkpoint = Literal["tiny", "mid"]

SEED: Final = 20261125
STEPS: Final = (10, 48)
"""Denoising steps a canvas takes on real prompts lie between (docs/model.md). *tiny* stops by itself, *mid*
has random weights and never would: its requests draw their cap from here."""
PROMPT_TOKENS: Final = {"tiny": (8, 120), "mid": (8, 200)}
CANVASES: Final = {"tiny": (2, 4), "mid": (1, 1)}
NEVER: Final = 1e-9
"""A threshold in nats that no entropy falls below; transformers takes no zero."""
GAP_STEPS: Final = 4
"""Between two arrivals passes the time of about so many steps of a row alone."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it comes, in seconds from the start."""

    request: GenerationRequest
    at_s: float


def checkpoint(which: Checkpoint, scratch: Path) -> LoadedModel:
    """The bundled checkpoint in float32, or *mid* in bfloat16."""
    if which == "tiny":
        return load(device="cpu", dtype="float32")
    write_mid(scratch)
    return load(scratch, device="cpu", dtype="bfloat16")


def arrivals(loaded: LoadedModel, which: Checkpoint, count: int, gap_s: float) -> list[Arrival]:
    """`count` requests, `gap_s` seconds apart. The same every time."""
    draw = random.Random(SEED)  # noqa: S311  a workload, no secret
    defaults, size = loaded.defaults, loaded.limits.canvas_size
    made: list[Arrival] = []
    for number in range(count):
        length = draw.randint(*PROMPT_TOKENS[which])
        steps = draw.randint(*STEPS)
        request = GenerationRequest(
            request_id=f"request-{number}",
            prompt_ids=tuple(draw.randrange(6, 700) for _ in range(length)),
            seed=number,
            max_tokens=size * draw.randint(*CANVASES[which]),
            max_steps=defaults.max_steps if which == "tiny" else steps,
            temperature_start=defaults.temperature_start,
            temperature_end=defaults.temperature_end,
            entropy_bound=defaults.entropy_bound,
            confidence_threshold=defaults.confidence_threshold if which == "tiny" else NEVER,
            stability_steps=defaults.stability_steps,
            canvas_limit=2**31,
            draft_every=0,
        )
        made.append(Arrival(request, number * gap_s))
    return made
