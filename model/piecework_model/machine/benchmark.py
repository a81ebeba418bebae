"""The start-up measurement: how fast this machine denoises a fixed prompt with the real engine."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from piecework_model import limits
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.engine.executor import Executor
from piecework_model.errors import BenchmarkError, DeviceError
from piecework_model.requests import CanvasEvent, CanvasFinish, FailedEvent, GenerationRequest
from piecework_model.text.chat import encode_prompt
from piecework_protocol.conversation import Conversation, Message

PROMPT = "Write a story about a fox, a lantern and a river."
_CANVASES_A_RUN = 6
"""Enough for most answers to end by themselves, which gives their length. Fewer are asked for where
the context or the memory for KV caches holds fewer.
"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured over `seconds` with `sequences` sequences at once.

    tokens_per_second: charged tokens of all sequences together.
    first_canvas_ms: from submission to the first canvas of a sequence alone, prefill included. The
    median over the runs.
    steps_per_second: steps of sequences, so that a batch of 8 counts eight a step.
    steps_per_canvas: the mean.
    answer_tokens: how long an answer is, at the median. None: fewer than half ended by themselves.
    """

    tokens_per_second: float
    first_canvas_ms: float
    steps_per_second: float
    steps_per_canvas: float
    canvases: int
    sequences: int
    seconds: float
    answer_tokens: int | None


@dataclass(slots=True)
class _Totals:
    tokens: int = 0
    steps: int = 0
    canvases: int = 0
    lengths: list[float] = field(default_factory=list)
    """Tokens of each answer, infinite where a limit cut it."""

    def add(self, other: _Totals) -> None:
        self.tokens += other.tokens
        self.steps += other.steps
        self.canvases += other.canvases
        self.lengths += other.lengths

    @property
    def answer_tokens(self) -> int | None:
        middle = statistics.median_high(self.lengths)
        return int(middle) if math.isfinite(middle) else None


def measure(
    loaded: LoadedModel,
    executor: Executor,
    *,
    seconds: float,
    sequences: int = 1,
    memory_bytes: int = limits.DEFAULT_CACHE_BYTES,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Denoise the fixed prompt again and again, with seeds 0, 1, 2 ..., until `seconds` have
    passed.

    One canvas warms up and is not counted. Single canvases follow for a third of the time, to
    measure the first canvas. Then `sequences` run at once for the rest, to measure the rates. At
    least one run of each is finished.

    memory_bytes: for the KV caches of all sequences.

    Raises:
        DeviceError: Context or memory hold no canvas behind the prompt.
        BenchmarkError: The engine fails on the prompt.
    """
    if not 0 < seconds <= limits.BENCHMARK_MAX_SECONDS:
        raise ValueError(f"seconds must be in (0, {limits.BENCHMARK_MAX_SECONDS}], got {seconds}")
    canvases = _canvases_that_fit(loaded, executor, memory_bytes)
    run = partial(_run, loaded, executor, memory_bytes=memory_bytes, clock=clock)
    run([0], 1)
    started = clock()
    first: list[float] = []
    while not first or clock() - started < seconds / 3:
        _, first_canvas = run([len(first)], 1)
        first.append(first_canvas)
    totals, counted_from, seed = _Totals(), clock(), 0
    while not totals.canvases or clock() - started < seconds:
        made, _ = run(list(range(seed, seed + sequences)), canvases)
        totals.add(made)
        seed += sequences
    elapsed = max(clock() - counted_from, 1e-9)
    return Measurement(
        tokens_per_second=totals.tokens / elapsed,
        first_canvas_ms=sorted(first)[len(first) // 2] * 1000,
        steps_per_second=totals.steps / elapsed,
        steps_per_canvas=totals.steps / totals.canvases,
        canvases=totals.canvases,
        sequences=sequences,
        seconds=elapsed,
        answer_tokens=totals.answer_tokens,
    )


def _canvases_that_fit(loaded: LoadedModel, executor: Executor, memory_bytes: int) -> int:
    """Return how many canvases a run has: no more than one sequence can ever hold."""
    for canvases in range(_CANVASES_A_RUN, 0, -1):
        request = _request(loaded, 0, canvases)
        fits = loaded.limits.sequence_tokens(request) <= loaded.limits.max_context
        if fits and executor.footprint(request) <= memory_bytes:
            return canvases
    raise DeviceError(
        f"a context of {loaded.limits.max_context} tokens and {memory_bytes} bytes for KV caches "
        "hold no canvas behind a short prompt. Plan a longer context"
    )


def _run(
    loaded: LoadedModel,
    executor: Executor,
    seeds: list[int],
    canvases: int,
    *,
    memory_bytes: int,
    clock: Callable[[], float],
) -> tuple[_Totals, float]:
    """Run one sequence per seed, of at most `canvases` canvases.

    Returns the totals and the seconds to the first canvas.
    """
    count = len(seeds)
    engine = Engine(
        loaded,
        max_sequences=count,
        max_queued=count,
        memory_bytes=memory_bytes,
        executor=executor,
    )
    started = clock()
    for seed in seeds:
        engine.submit(_request(loaded, seed, canvases))
    totals, first = _Totals(), 0.0
    lengths = Counter[str]()
    while engine.has_runnable:
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise BenchmarkError(
                    f"the engine failed on its own prompt: {event.kind}: {event.message}"
                )
            if isinstance(event, CanvasEvent):
                first = first or clock() - started
                totals.tokens += len(event.charged_ids)
                totals.steps += event.steps
                totals.canvases += 1
                lengths[event.request_id] += len(event.charged_ids)
                if event.finish is not CanvasFinish.MORE:
                    ended = event.finish is CanvasFinish.END_OF_TEXT
                    totals.lengths.append(lengths[event.request_id] if ended else math.inf)
    return totals, first


def _request(loaded: LoadedModel, seed: int, canvases: int) -> GenerationRequest:
    return loaded.defaults.request(
        f"benchmark-{seed}",
        encode_prompt(loaded, Conversation((Message("user", PROMPT),))),
        seed=seed,
        max_tokens=canvases * loaded.limits.canvas_size,
        canvas_limit=canvases,
        draft_every=0,
    )
