"""Reads per second through the engine, at several numbers of reads in flight.

    python -m bench.reads --checkpoint tiny --json

A read asks two questions with two labels each, about a state of its own or one that all share. A
shared state is prefilled once and then copied (engine/prefix_cache.py). The numbers take turns in
each of `--repeat` rounds. Of the rounds the report has the least, the median and the largest rate.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from bench.report import environment, percentile
from bench.workload import Checkpoint, checkpoint
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.machine.probe import use_threads
from piecework_model.requests import HOLE, CanvasEvent, FailedEvent, GenerationRequest, ReadSlot

IN_FLIGHT: Final = (1, 8, 64)
READS: Final = 128
STATE_TOKENS: Final = 128
QUESTION_TOKENS: Final = 24
TEXT_SEQUENCES: Final = 8
SEED: Final = 20261128


@dataclass(slots=True)
class Rounds:
    """What was measured at one number in flight."""

    rates: list[float] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)

    def report(self) -> dict[str, float]:
        return {
            "reads_per_second_min": round(min(self.rates), 1),
            "reads_per_second": round(statistics.median(self.rates), 1),
            "reads_per_second_max": round(max(self.rates), 1),
            "p50_ms": round(1000 * percentile(self.delays_s, 0.5), 1),
            "p99_ms": round(1000 * percentile(self.delays_s, 0.99), 1),
        }


def reads(loaded: LoadedModel, count: int, *, shared: bool) -> list[GenerationRequest]:
    """`count` reads of one canvas. The same every time.

    shared: whether all have one state and are of one tenant.
    """
    draw = random.Random(SEED)  # noqa: S311  a workload, no secret
    states = [_ids(draw, STATE_TOKENS) for _ in range(1 if shared else count)]
    return [
        _read(loaded, number, (*states[number % len(states)], *_ids(draw, QUESTION_TOKENS)), shared)
        for number in range(count)
    ]


def _ids(draw: random.Random, count: int) -> tuple[int, ...]:
    return tuple(draw.randrange(6, 700) for _ in range(count))


def _read(
    loaded: LoadedModel, number: int, prompt_ids: tuple[int, ...], shared: bool
) -> GenerationRequest:
    defaults, size = loaded.defaults, loaded.limits.canvas_size
    canvas = list(_ids(random.Random(number), size))  # noqa: S311
    slots = tuple(ReadSlot(position, (10, 11)) for position in (4, 9))
    for slot in slots:
        canvas[slot.position] = HOLE
    return GenerationRequest(
        request_id=f"read-{number}",
        prompt_ids=prompt_ids,
        seed=number,
        max_tokens=size,
        max_steps=1,
        temperature_start=defaults.temperature_start,
        temperature_end=defaults.temperature_end,
        entropy_bound=defaults.entropy_bound,
        confidence_threshold=0.0,
        stability_steps=0,
        canvas_limit=1,
        draft_every=0,
        tenant="one" if shared else "",
        template=tuple(canvas),
        reads=(slots,),
    )


def serve(loaded: LoadedModel, requests: Sequence[GenerationRequest], in_flight: int) -> Rounds:
    """Answer all requests, `in_flight` at a time, in one round."""
    engine = Engine(loaded, max_sequences=TEXT_SEQUENCES, max_queued=in_flight)
    coming, came, done = list(reversed(requests)), dict[str, float](), Rounds()
    start = time.perf_counter()
    while coming or came:
        while coming and len(came) < in_flight:
            request = coming.pop()
            came[request.request_id] = time.perf_counter()
            engine.submit(request)
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"the engine failed: {event.message}")
            if isinstance(event, CanvasEvent):
                done.delays_s.append(time.perf_counter() - came.pop(event.request_id))
    done.rates.append(len(requests) / (time.perf_counter() - start))
    return done


def measure(
    which: Checkpoint, in_flight: Sequence[int], repeat: int, threads: int, count: int = READS
) -> dict[str, Any]:
    """Everything about one checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = checkpoint(which, Path(folder))
        used = use_threads(loaded, threads)
        states = {"own_state": False, "shared_state": True}
        work = {name: reads(loaded, count, shared=shared) for name, shared in states.items()}
        found = {name: {number: Rounds() for number in in_flight} for name in states}
        for _ in range(repeat):
            for number in in_flight:
                for name, rounds in found.items():
                    done = serve(loaded, work[name], number)
                    rounds[number].rates += done.rates
                    rounds[number].delays_s += done.delays_s
        return {
            "benchmark": "reads",
            "checkpoint": which,
            "dtype": loaded.dtype,
            "parameters": loaded.parameters,
            "threads": used,
            "repeat": repeat,
            "reads": count,
            "environment": environment("torch", "transformers"),
            **{
                name: {str(number): done.report() for number, done in rounds.items()}
                for name, rounds in found.items()
            },
        }


def show(report: dict[str, Any]) -> None:
    """The report for a person."""
    facts = f"{report['parameters']:,} parameters, {report['dtype']}, {report['threads']} threads"
    print(f"{report['checkpoint']}: {facts}")
    print(f"{'state':>14} {'in flight':>10} {'least':>8} {'median':>8} {'most':>8}   reads/s")
    for name in ("own_state", "shared_state"):
        for number, done in report[name].items():
            rates = " ".join(
                f"{done[key]:>8}"
                for key in (
                    "reads_per_second_min",
                    "reads_per_second",
                    "reads_per_second_max",
                )
            )
            print(f"{name:>14} {number:>10} {rates}   p50 {done['p50_ms']} ms")


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reads", description=__doc__)
    parser.add_argument("--checkpoint", choices=["tiny", "mid"], default="tiny")
    parser.add_argument("--in-flight", default=",".join(map(str, IN_FLIGHT)))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="0: the engine's own choice")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    in_flight = [int(number) for number in chosen.in_flight.split(",")]
    if min(in_flight) < 1:
        parser.error("at least one read is in flight")
    report = measure(chosen.checkpoint, in_flight, chosen.repeat, chosen.threads)
    print(json.dumps(report)) if chosen.json else show(report)
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main(sys.argv[1:]))
