"""transformers' own `generate` as a server would run it: one request at a time, or padded batches.

A batch is what waits when the one before it is done, at most BATCH requests, prompts padded on the left.
`generate` has one limit of steps and of tokens a call, so a batch runs to the largest of its requests; what
a request did not ask for does not count as its tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from bench.workload import Arrival
from model.loading import LoadedModel
from model.requests import GenerationRequest

BATCH: Final = 8


@dataclass(slots=True)
class Served:
    """What one way of serving did: useful tokens, seconds until the last answer, and each answer's delay."""

    tokens: int = 0
    seconds: float = 0.0
    delays_s: list[float] | None = None

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def idle(seconds: float) -> None:
    """Nothing to do until the next request comes."""
    threading.Event().wait(max(0.0, seconds))


def serve(loaded: LoadedModel, requests: Sequence[Arrival], batch: int) -> Served:
    """Answers all requests in the order of their arrival, `batch` at most at a time."""
    served, delays = Served(), []
    start, waiting = time.perf_counter(), list(requests)
    while waiting:
        idle(waiting[0].at_s - (time.perf_counter() - start))
        now = time.perf_counter() - start
        group = [arrival for arrival in waiting[:batch] if arrival.at_s <= now]
        del waiting[: len(group)]
        served.tokens += _generate(loaded, [arrival.request for arrival in group])
        done = time.perf_counter() - start
        delays += [done - arrival.at_s for arrival in group]
    served.seconds, served.delays_s = time.perf_counter() - start, delays
    return served


def _generate(loaded: LoadedModel, group: Sequence[GenerationRequest]) -> int:
    """One call; the tokens that its requests asked for and got."""
    width = max(len(request.prompt_ids) for request in group)
    ids = torch.zeros((len(group), width), dtype=torch.int64)
    mask = torch.zeros((len(group), width), dtype=torch.bool)
    for row, request in enumerate(group):
        ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
        mask[row, width - len(request.prompt_ids) :] = True
    sampling: Any = loaded.model.generation_config.sampler_config
    output = loaded.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max(request.max_tokens for request in group),
        max_denoising_steps=max(request.max_steps for request in group),
        sampler_config=sampling,
        t_max=group[0].temperature_start,
        t_min=group[0].temperature_end,
        stability_threshold=group[0].stability_steps,
        confidence_threshold=group[0].confidence_threshold,
        eos_token_id=sorted(loaded.eos_ids),
        pad_token_id=0,
    )
    return sum(
        _useful(loaded, output.sequences[row, width:].tolist(), request.max_tokens)
        for row, request in enumerate(group)
    )


def _useful(loaded: LoadedModel, ids: list[int], wanted: int) -> int:
    """Tokens up to the end of the text, within what was asked for."""
    end = next((index for index, token in enumerate(ids) if token in loaded.eos_ids), len(ids))
    return min(end, wanted)
