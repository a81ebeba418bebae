"""The same stream of requests for every engine that is measured: mixed prompts, mixed steps,
arriving over time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.checkpoints import write_mid
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.requests import GenerationRequest

Checkpoint = Literal["tiny", "mid"]

SEED: Final = 20261125
STEPS: Final = (10, 48)
"""Denoising steps a canvas takes on real prompts lie between (docs/model.md). *tiny* stops by
itself, *mid* has random weights and never would: its requests draw their cap from here."""
PROMPT_TOKENS: Final = {"tiny": (8, 120), "mid": (8, 200)}
CANVASES: Final = {"tiny": (2, 4), "mid": (1, 2)}
NEVER: Final = 1e-9
"""A threshold in nats that no entropy falls below; transformers takes no zero."""
GAP_STEPS: Final = 4
"""Between two arrivals passes the time of about so many steps of a sequence alone."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and when it came, in seconds from the start."""

    request: GenerationRequest
    at_s: float


class Streams:
    """So many clients: they begin one after the other, and each asks for its next text when it has
    one."""

    def __init__(self, requests: Sequence[GenerationRequest], streams: int, gap_s: float) -> None:
        """gap_s: between the first requests of two clients."""
        self._later = deque(requests[streams:])
        self._coming = deque(
            Arrival(request, number * gap_s) for number, request in enumerate(requests[:streams])
        )

    @property
    def empty(self) -> bool:
        """Whether no request is to come before another one is answered."""
        return not self._coming

    @property
    def next_s(self) -> float:
        """When the next request comes."""
        return self._coming[0].at_s

    def due(self, now_s: float, most: int) -> list[Arrival]:
        """Takes what has come, at most so many."""
        taken: list[Arrival] = []
        while len(taken) < most and self._coming and self._coming[0].at_s <= now_s:
            taken.append(self._coming.popleft())
        return taken

    def answered(self, now_s: float) -> None:
        """A client has its text, and asks for the next."""
        if self._later:
            self._coming.append(Arrival(self._later.popleft(), now_s))


def checkpoint(which: Checkpoint, scratch: Path, *, bfloat16: bool = True) -> LoadedModel:
    """The bundled checkpoint in float32, or *mid* in bfloat16.

    bfloat16: whether *mid* is. A processor without its instructions takes hours.
    """
    if which == "tiny":
        return load(device="cpu", dtype="float32")
    write_mid(scratch)
    return load(scratch, device="cpu", dtype="bfloat16" if bfloat16 else "float32")


def workload(loaded: LoadedModel, which: Checkpoint, count: int) -> list[GenerationRequest]:
    """`count` requests. The same every time."""
    draw = random.Random(SEED)  # noqa: S311  a workload, no secret
    return [_request(loaded, which, number, draw) for number in range(count)]


def _request(
    loaded: LoadedModel, which: Checkpoint, number: int, draw: random.Random
) -> GenerationRequest:
    defaults, size = loaded.defaults, loaded.limits.canvas_size
    length = draw.randint(*PROMPT_TOKENS[which])
    steps = draw.randint(*STEPS)
    return GenerationRequest(
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
