"""The engine beside transformers' `generate` on the same checkpoint, requests and threads, in one run.

    python -m bench.engine --against transformers --checkpoint tiny --json
    python -m bench.engine --against transformers --checkpoint mid --json

Per number of concurrent streams: useful tokens per second of ours, of `generate` one request at a time and in
padded batches of 8, and the ratio of ours to the better of the two. Also what the engine costs around the
forward pass, and peak memory beyond the weights. Medians of `--repeat` runs, the three ways taking turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from bench import baseline
from bench.baseline import Served
from bench.report import environment, percentile
from bench.workload import GAP_STEPS, Arrival, Checkpoint, arrivals, checkpoint
from model.batched import BatchedExecutor
from model.engine import Engine
from model.loading import LoadedModel
from model.requests import CanvasEvent, FailedEvent
from model.threads import use_threads

STREAMS: Final = (1, 8, 32)
REQUESTS: Final = {1: 8, 8: 16, 32: 32}
MEMORY_SAMPLE_S: Final = 0.01
TRIAL_STEPS: Final = 30


@dataclass(slots=True)
class Way:
    """One way to serve, over all repetitions."""

    serve: Callable[[LoadedModel, Sequence[Arrival], int], Served]
    runs: list[Served] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(run.rate for run in self.runs)

    def report(self) -> dict[str, Any]:
        delays = [delay for run in self.runs for delay in run.delays_s or []]
        return {
            "tokens_per_second": round(self.rate, 1),
            "p50_s": round(percentile(delays, 0.5), 2),
            "last_s": round(max(delays), 2),
            "peak_mib": round(max(self.peaks) / 2**20),
        }


def ours(loaded: LoadedModel, requests: Sequence[Arrival], streams: int) -> Served:
    """All requests through one engine with as many rows as there are streams."""
    engine = Engine(loaded, max_rows=streams, max_queued=len(requests))
    served, delays = Served(), []
    due = {arrival.request.request_id: arrival.at_s for arrival in requests}
    start, waiting = time.perf_counter(), list(requests)
    while waiting or engine.rows:
        now = time.perf_counter() - start
        while waiting and waiting[0].at_s <= now:
            engine.submit(waiting.pop(0).request)
        if not engine.has_runnable:
            baseline.idle(waiting[0].at_s - now)
            continue
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"the engine failed: {event.message}")
            if isinstance(event, CanvasEvent):
                served.tokens += len(event.charged_ids)
                if event.finish:
                    delays.append(time.perf_counter() - start - due[event.request_id])
    served.seconds, served.delays_s = time.perf_counter() - start, delays
    return served


@contextmanager
def peak_memory(peaks: list[int]) -> Iterator[None]:
    """Appends by how many bytes the process grew at most."""
    process, over, highest = psutil.Process(), threading.Event(), 0
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not over.wait(MEMORY_SAMPLE_S):
            highest = max(highest, process.memory_info().rss - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        peaks.append(highest)


def compare(
    loaded: LoadedModel, which: Checkpoint, streams: int, repeat: int, gap_s: float
) -> dict[str, Any]:
    """One number of streams: all ways in turn, `repeat` times."""
    requests = arrivals(loaded, which, REQUESTS[streams], gap_s)
    ways = {
        "ours": Way(ours),
        "generate_one": Way(lambda model, given, _: baseline.serve(model, given, 1)),
        "generate_padded": Way(lambda model, given, _: baseline.serve(model, given, baseline.BATCH)),
    }
    for _ in range(repeat):
        for way in ways.values():
            with peak_memory(way.peaks):
                way.runs.append(way.serve(loaded, requests, streams))
    best = max(ways["generate_one"].rate, ways["generate_padded"].rate)
    return {
        "requests": len(requests),
        **{name: way.report() for name, way in ways.items()},
        "ratio": round(ways["ours"].rate / best, 2),
    }


def overhead(loaded: LoadedModel, which: Checkpoint) -> dict[str, float]:
    """Where a step of one row goes: the forward pass, or what the engine does around it.

    The forward pass is what transformers' is: the stack, the last layer, its cap, and the soft embedding with
    its softmax. The engine caps and softens inside its sampler, so these two are measured on their own.
    """
    (arrival,) = arrivals(loaded, which, 1, 0.0)
    executor = _Timed(loaded)
    engine = Engine(loaded, max_rows=1, executor=executor)
    engine.submit(arrival.request)
    engine.step()  # prefill
    executor.inside_s, steps, start = 0.0, 0, time.perf_counter()
    while engine.has_runnable and steps < TRIAL_STEPS:
        engine.step()
        steps += 1
    total_ms = 1000 * (time.perf_counter() - start) / steps
    forward_ms = 1000 * executor.inside_s / steps + _cap_and_softmax_ms(loaded)
    return {
        "step_ms": round(total_ms, 3),
        "forward_ms": round(forward_ms, 3),
        "around_share": round(1 - forward_ms / total_ms, 4),
    }


def _cap_and_softmax_ms(loaded: LoadedModel) -> float:
    """The cap of the logits and the softmax of the soft embedding, for one canvas."""
    shape = (loaded.limits.canvas_size, loaded.limits.vocab_size)
    dtype = loaded.model.dtype
    raw = torch.randn(shape).to(dtype)
    start = time.perf_counter()
    for _ in range(TRIAL_STEPS):
        logits = raw.to(torch.float32, copy=True).div_(30.0).tanh_().mul_(30.0)
        logits.to(dtype).softmax(dim=-1, dtype=torch.float32).to(dtype)
    return 1000 * (time.perf_counter() - start) / TRIAL_STEPS


class _Timed(BatchedExecutor):
    """Adds up the time inside the model: the stack, the last layer, the product of the soft embedding."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.model, loaded.limits)
        self.inside_s = 0.0
        self._head = self._timed(self._head)
        self._soft_product = self._timed(self._soft_product)

    def _states(self, *arguments: Any) -> torch.Tensor:
        states: torch.Tensor = self._timed(super()._states)(*arguments)
        return states

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.inside_s += time.perf_counter() - start
            return result

        return run


def step_seconds(loaded: LoadedModel, which: Checkpoint) -> float:
    """About how long a step of a row alone takes here, for the gaps between arrivals."""
    return overhead(loaded, which)["step_ms"] / 1000


def measure(which: Checkpoint, streams: Sequence[int], repeat: int, threads: int) -> dict[str, Any]:
    """Everything about one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = checkpoint(which, Path(folder))
        used = use_threads(loaded, threads)
        gap_s = GAP_STEPS * step_seconds(loaded, which)
        results = {str(count): compare(loaded, which, count, repeat, gap_s) for count in streams}
        return {
            "benchmark": "engine",
            "checkpoint": which,
            "dtype": loaded.dtype,
            "parameters": loaded.parameters,
            "threads": used,
            "repeat": repeat,
            "environment": environment("torch", "transformers"),
            "streams": results,
            "ratio": {count: result["ratio"] for count, result in results.items()},
            "overhead": overhead(loaded, which),
        }


def show(report: dict[str, Any]) -> None:
    """The report for a person."""
    facts = f"{report['parameters']:,} parameters, {report['dtype']}, {report['threads']} threads"
    print(f"{report['checkpoint']}: {facts}")
    print(f"{'streams':>8} {'ours':>10} {'one':>10} {'padded 8':>10} {'ratio':>7}   tokens/s")
    for count, result in report["streams"].items():
        rates = [result[way]["tokens_per_second"] for way in ("ours", "generate_one", "generate_padded")]
        print(f"{count:>8} " + " ".join(f"{rate:>10}" for rate in rates) + f" {result['ratio']:>7}")
    around = report["overhead"]
    share = f"{100 * around['around_share']:.1f} %"
    print(f"a step of one row: {around['step_ms']} ms, {share} of it around the model")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--against", choices=["transformers"], default="transformers")
    parser.add_argument("--checkpoint", choices=["tiny", "mid"], default="tiny")
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: what the worker would take")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    streams = [int(count) for count in chosen.streams.split(",")]
    if not set(streams) <= REQUESTS.keys():
        parser.error(f"streams are among {', '.join(map(str, STREAMS))}")
    report = measure(chosen.checkpoint, streams, chosen.repeat, chosen.threads)
    print(json.dumps(report)) if chosen.json else show(report)
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main(sys.argv[1:]))
