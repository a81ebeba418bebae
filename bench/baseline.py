"""transformers' own `generate` as a server would run it: one request at a time, or padded batches.

A batch is what waits when the one before it is done, at most BATCH requests, prompts padded on the
left. `generate` has one limit of steps and of tokens a call, so a batch runs to the largest of its
requests; what a request did not ask for does not count as its tokens.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from bench.workload import Streams
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.requests import GenerationRequest

BATCH: Final = 8
EXPERTS: Final = ("eager", "grouped_mm")
THREADS: Final = (1, os.cpu_count() or 1)
TRIAL_STEPS: Final = 8


@dataclass(slots=True)
class BaselineServed:
    """What one way of serving did: useful tokens, seconds until the last answer, and each answer's
    delay; of ours also how many sequences its steps had."""

    tokens: int = 0
    steps: int = 0
    sequence_steps: int = 0
    seconds: float = 0.0
    delays_s: list[float] | None = None

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class BaselineSetting:
    """How `generate` is run: which of transformers' implementations of the experts, and how many
    threads."""

    experts: str
    threads: int


@contextmanager
def applied(loaded: LoadedModel, setting: BaselineSetting) -> Iterator[None]:
    """Sets it, and puts back what was."""
    threads = torch.get_num_threads()
    loaded.model.set_experts_implementation(setting.experts)
    torch.set_num_threads(setting.threads)
    try:
        yield
    finally:
        loaded.model.set_experts_implementation("eager")
        torch.set_num_threads(threads)


def best_setting(loaded: LoadedModel, request: GenerationRequest) -> BaselineSetting:
    """The setting that answers one request fastest here. It also warms up."""
    times: dict[BaselineSetting, float] = {}
    short = replace(request, max_steps=TRIAL_STEPS, max_tokens=loaded.limits.canvas_size)
    for setting in (
        BaselineSetting(experts, threads) for experts in EXPERTS for threads in THREADS
    ):
        with applied(loaded, setting):
            _generate(loaded, [short])
            start = time.perf_counter()
            _generate(loaded, [short])
            times[setting] = time.perf_counter() - start
    return min(times, key=lambda setting: times[setting])


def idle(seconds: float) -> None:
    """Nothing to do until the next request comes."""
    threading.Event().wait(max(0.0, seconds))


def serve(
    loaded: LoadedModel, streams: Streams, batch: int, setting: BaselineSetting
) -> BaselineServed:
    """Answers everybody in the order of arrival, `batch` at most at a time."""
    with applied(loaded, setting):
        return _serve(loaded, streams, batch)


def _serve(loaded: LoadedModel, streams: Streams, batch: int) -> BaselineServed:
    served, delays, start = BaselineServed(), [], time.perf_counter()
    while not streams.empty:
        idle(streams.next_s - (time.perf_counter() - start))
        group = streams.due(time.perf_counter() - start, batch)
        if group:
            served.tokens += _generate(loaded, [arrival.request for arrival in group])
        done = time.perf_counter() - start
        for arrival in group:
            delays.append(done - arrival.at_s)
            streams.answered(done)
    served.seconds, served.delays_s = time.perf_counter() - start, delays
    return served


def _generate(loaded: LoadedModel, group: Sequence[GenerationRequest]) -> int:
    """One call; the tokens that its requests asked for and got. Seeded, so that every run does the
    same work."""
    torch.manual_seed(group[0].seed)
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
