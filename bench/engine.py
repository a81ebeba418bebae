"""The engine beside transformers' `generate` on the same checkpoint, requests and threads, in one
run.

    python -m bench.engine --against transformers --checkpoint tiny --json
    python -m bench.engine --against transformers --checkpoint mid --json

Per number of concurrent streams: useful tokens per second of ours, of `generate` one request at a
time and in padded batches of 8, and the ratio of ours to the better of the two. Also what the
engine costs around the forward pass, and peak memory beyond the weights.

A shared machine is faster in one minute than in the next. So the three ways take turns, `--repeat`
times, each turn in another order. Of each way the best, the median and the spread of its runs are
reported. The ratio compares best runs, which noise disturbs least. Beside it are the least, the
median and the greatest of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from bench import baseline
from bench.baseline import BaselineServed
from bench.report import environment, percentile
from bench.workload import GAP_STEPS, Checkpoint, Streams, checkpoint, workload
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.machine.probe import use_threads
from piecework_model.requests import CanvasEvent, FailedEvent, GenerationRequest

STREAMS: Final = (1, 8, 32)
REQUESTS: Final = {1: 8, 8: 16, 32: 32}
MEMORY_SAMPLE_S: Final = 0.01
TRIAL_STEPS: Final = 30


@dataclass(slots=True)
class Way:
    """One way to serve, over all repetitions."""

    serve: Callable[[LoadedModel, Streams], BaselineServed]
    runs: list[BaselineServed] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Of each turn, in their order."""
        return [run.rate for run in self.runs]

    def report(self) -> dict[str, Any]:
        delays = [delay for run in self.runs for delay in run.delays_s or []]
        sequence_steps, steps = (
            sum(run.sequence_steps for run in self.runs),
            sum(run.steps for run in self.runs),
        )
        return {
            **summary(self.rates),
            "p50_s": round(percentile(delays, 0.5), 2),
            "last_s": round(max(delays), 2),
            "peak_mib": round(max(self.peaks) / 2**20),
            **({"rows_a_step": round(sequence_steps / steps, 1)} if steps else {}),
        }


def ours(loaded: LoadedModel, streams: Streams, sequences: int) -> BaselineServed:
    """Everybody through one engine with as many sequences as there are streams."""
    engine = Engine(loaded, max_sequences=sequences, max_queued=sequences)
    served, delays, came = BaselineServed(), [], dict[str, float]()
    start = time.perf_counter()
    while not streams.empty or engine.sequences:
        now = time.perf_counter() - start
        for arrival in streams.due(now, sequences):
            engine.submit(arrival.request)
            came[arrival.request.request_id] = arrival.at_s
        if not engine.has_runnable:
            baseline.idle(streams.next_s - now)
            continue
        served.sequence_steps += engine.sequences
        served.steps += 1
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"the engine failed: {event.message}")
            if isinstance(event, CanvasEvent):
                served.tokens += len(event.charged_ids)
                if event.finish:
                    done = time.perf_counter() - start
                    delays.append(done - came[event.request_id])
                    streams.answered(done)
    served.seconds, served.delays_s = time.perf_counter() - start, delays
    return served


@contextmanager
def peak_memory(peaks: list[int]) -> Iterator[None]:
    """Appends by how many bytes the process grew at most."""
    process, over, highest = psutil.Process(), threading.Event(), 0
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what the way before left free would hide what this one takes
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
    loaded: LoadedModel,
    requests: list[GenerationRequest],
    streams: int,
    repeat: int,
    gap_s: float,
) -> dict[str, Any]:
    """One number of streams: all ways in turn, `repeat` times."""
    setting = baseline.best_setting(loaded, requests[0])
    ways = {
        "ours": Way(lambda model, given: ours(model, given, streams)),
        "generate_one": Way(lambda model, given: baseline.serve(model, given, 1, setting)),
        "generate_padded": Way(
            lambda model, given: baseline.serve(model, given, baseline.BATCH, setting)
        ),
    }
    for turn in range(repeat):
        order = list(ways.values())
        for way in order[turn % 3 :] + order[: turn % 3]:
            with peak_memory(way.peaks):
                way.runs.append(way.serve(loaded, Streams(requests, streams, gap_s)))
    ratio, turns = ratios(
        ways["ours"].rates, ways["generate_one"].rates, ways["generate_padded"].rates
    )
    return {
        "requests": len(requests),
        "generate_setting": asdict(setting),
        **{name: way.report() for name, way in ways.items()},
        "ratio": round(ratio, 2),
        "ratio_turns": [round(share, 2) for share in turns],
    }


def summary(rates: Sequence[float]) -> dict[str, float]:
    """Describe the rates of one way: tokens a second of its best run, and at the median.

    spread: between the best and the worst run, as a share of the median.
    """
    median = statistics.median(rates)
    return {
        "tokens_per_second": round(max(rates), 1),
        "median_tokens_per_second": round(median, 1),
        "spread": round((max(rates) - min(rates)) / median, 3),
    }


def ratios(
    ours_rates: Sequence[float], *others: Sequence[float]
) -> tuple[float, tuple[float, float, float]]:
    """Compare the best runs of ours and of the best other way.

    Also the same within each turn: the least, the median and the greatest.
    """
    best = max(max(rates) for rates in others)
    turns = [mine / max(theirs) for mine, *theirs in zip(ours_rates, *others, strict=True)]
    return max(ours_rates) / best, (min(turns), statistics.median(turns), max(turns))


def best_threads(loaded: LoadedModel, which: Checkpoint) -> int:
    """With how many threads a sequence alone is fastest, as `generate` may choose its own too."""
    times = {}
    for threads in baseline.THREADS:
        torch.set_num_threads(threads)
        times[threads] = min(overhead(loaded, which)["step_ms"] for _ in range(2))
    return min(times, key=lambda threads: times[threads])


def overhead(loaded: LoadedModel, which: Checkpoint) -> dict[str, float]:
    """Where a step of one sequence goes: the forward pass, or what the engine does around it.

    The forward pass is what transformers' is: the stack, the last layer, its cap, and the soft
    embedding with its softmax. The engine caps and softens inside its sampler, so these two are
    measured on their own.
    """
    (request,) = workload(loaded, which, 1)
    executor = _Timed(loaded)
    engine = Engine(loaded, max_sequences=1, executor=executor)
    engine.submit(request)
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
    """Adds up the time inside the model: the stack, the last layer, the product of the soft
    embedding."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.model, loaded.limits)
        self.inside_s = 0.0
        self._head = self._timed(self._head)
        self._soft_product = self._timed(self._soft_product)
        stack: Any = self._backbone
        for name in ("embed", "condition", "run"):
            setattr(stack, name, self._timed(getattr(stack, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = call(*arguments)
            self.inside_s += time.perf_counter() - start
            return result

        return run


def step_seconds(loaded: LoadedModel, which: Checkpoint) -> float:
    """About how long a step of a sequence alone takes here, for the gaps between arrivals."""
    return overhead(loaded, which)["step_ms"] / 1000


def measure(
    which: Checkpoint, streams: Sequence[int], repeat: int, threads: int, *, bfloat16: bool
) -> dict[str, Any]:
    """Everything about one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = checkpoint(which, Path(folder), bfloat16=bfloat16)
        used = use_threads(loaded, threads or best_threads(loaded, which))
        gap_s = GAP_STEPS * step_seconds(loaded, which)
        results = {
            str(count): compare(
                loaded, workload(loaded, which, REQUESTS[count]), count, repeat, gap_s
            )
            for count in streams
        }
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
    print(f"tokens/s, best of {report['repeat']} runs and their spread; ratio, and in each turn")
    print(f"{'streams':>8} {'ours':>16} {'one':>16} {'padded 8':>16} {'ratio':>7}")
    for count, result in report["streams"].items():
        ways = [result[way] for way in ("ours", "generate_one", "generate_padded")]
        rates = [f"{way['tokens_per_second']:>10} {way['spread']:>5.0%}" for way in ways]
        low, middle, high = result["ratio_turns"]
        turns = f"   {low} to {high}, median {middle}"
        print(f"{count:>8} " + " ".join(rates) + f" {result['ratio']:>7}{turns}")
    around = report["overhead"]
    share = f"{100 * around['around_share']:.1f} %"
    print(f"a step of one sequence: {around['step_ms']} ms, {share} of it around the model")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--against", choices=["transformers"], default="transformers")
    parser.add_argument("--checkpoint", choices=["tiny", "mid"], default="tiny")
    parser.add_argument("--streams", default=",".join(map(str, STREAMS)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: what is fastest here")
    parser.add_argument(
        "--float32",
        action="store_true",
        help="mid in float32, for a processor without instructions for bfloat16",
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    streams = [int(count) for count in chosen.streams.split(",")]
    if not set(streams) <= REQUESTS.keys():
        parser.error(f"streams are among {', '.join(map(str, STREAMS))}")
    report = measure(
        chosen.checkpoint, streams, chosen.repeat, chosen.threads, bfloat16=not chosen.float32
    )
    print(json.dumps(report)) if chosen.json else show(report)
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main(sys.argv[1:]))
