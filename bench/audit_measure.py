"""What `bench.audit` measures: workers, honest and not, whose canvases are audited at every level.

The work comes in blocks of requests. A block of a worker gives the same figures in every process,
so blocks can be computed in any order, by several processes, and in several runs. This module is
such a process, too: it reads orders from its standard input, one JSON object a line, and answers
each with a line. It ends when its input does.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TextIO

import torch

from bench.audit_shown import read_shown, shown_file
from bench.audit_workers import (
    Numerics,
    Run,
    ServedCanvas,
    ask,
    cached,
    claiming,
    cooler,
    cut_otherwise,
    edited,
    forged,
    half_the_steps,
    int8,
    invented,
    other_seed,
    serve,
    threads,
    without_a_layer,
)
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.replay import Replayer, first_difference
from piecework_model.audit.scores import scores
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.errors import ModelError, OpeningError
from piecework_model.precision import precision_name

BATCH: Final = 8
"""Requests of a block, which a worker answers together. So many are lost at most with a process."""
OTHER_REPLAYS: Final = 5
"""Blocks of an honest worker of another profile that are replayed, to show that it says nothing."""
BFLOAT16: Final = Numerics("bfloat16")
FLOAT32: Final = Numerics("float32")
FP8: Final = Numerics("bfloat16", "fp8")
FP8_IN_FLOAT32: Final = Numerics("float32", "fp8")
TWO_THREADS: Final = Numerics("bfloat16", threads=2)
OTHER_CHUNKS: Final = Numerics("bfloat16", chunk_canvases=1)


@dataclass(frozen=True, slots=True)
class TrialWorker:
    """A worker, and who audits him.

    name: of its file. claimed: what his offer says. auditors: of forced audits. replayer: of
    replays. replayed: so many blocks, None for all. cheat: whether he is to be found. make: loads
    and builds him.
    """

    name: str
    claimed: Numerics
    auditors: tuple[Numerics, ...]
    replayer: Numerics
    cheat: bool
    make: Callable[[Models], Run]
    replayed: int | None = None


class Models:
    """A checkpoint in every form that is needed, each loaded once.

    folder: of the checkpoint, None for the bundled one. older: of its earlier edition, if any.
    """

    def __init__(self, device: str, folder: Path | None, older: Path | None) -> None:
        self.device, self.folder, self.older = device, folder, older
        self._loaded: dict[Numerics, LoadedModel] = {}
        self._forced: dict[Numerics, ForcedPass] = {}
        self._replayers: dict[Numerics, Replayer] = {}

    def load(self, numerics: Numerics, folder: Path | None = None) -> LoadedModel:
        """Load it once more."""
        return load(
            folder or self.folder,
            device=self.device,  # type: ignore[arg-type]
            dtype=numerics.dtype,
            quantization=numerics.quantization,
        )

    def of(self, numerics: Numerics) -> LoadedModel:
        """The honest model in this form."""
        if numerics not in self._loaded:
            loaded = self.load(numerics)
            other = numerics.chunk_canvases == 1
            self._loaded[numerics] = cut_otherwise(loaded) if other else loaded
        return self._loaded[numerics]

    def forced(self, numerics: Numerics) -> ForcedPass:
        """An auditor of forced passes."""
        if numerics not in self._forced:
            self._forced[numerics] = ForcedPass(self.of(numerics))
        return self._forced[numerics]

    def replayer(self, numerics: Numerics) -> Replayer:
        """An auditor who replays."""
        if numerics not in self._replayers:
            self._replayers[numerics] = Replayer(self.of(numerics))
        return self._replayers[numerics]


def _honest(numerics: Numerics) -> Callable[[Models], Run]:
    def make(models: Models) -> Run:
        loaded = models.of(numerics)

        def run(requests: Sequence[Any]) -> list[ServedCanvas]:
            with threads(numerics.threads):
                return serve(loaded, requests)

        return run

    return make


def _weights(change: Callable[[LoadedModel], LoadedModel]) -> Callable[[Models], Run]:
    return lambda models: partial(serve, change(models.load(BFLOAT16)))


def _claiming(change: Callable[[Any], Any]) -> Callable[[Models], Run]:
    return lambda models: claiming(_honest(BFLOAT16)(models), change)


def _older(models: Models) -> Run:
    if models.older is None:
        raise ModelError("there is no earlier edition of the checkpoint. Name one: --older FOLDER")
    return partial(serve, models.load(BFLOAT16, models.older))


def _forged(models: Models) -> Run:
    cheap = partial(serve, models.of(Numerics("bfloat16", "int4")))
    return forged(cheap, models.of(BFLOAT16))


def _invented(models: Models) -> Run:
    loaded = models.of(BFLOAT16)
    width = loaded.model.config.text_config.hidden_size
    return invented(partial(serve, loaded), width, loaded.limits.vocab_size)


def _cheat(name: str, make: Callable[[Models], Run]) -> TrialWorker:
    return TrialWorker(name, BFLOAT16, (FLOAT32,), BFLOAT16, cheat=True, make=make)


def _honest_worker(
    name: str,
    claimed: Numerics,
    auditors: tuple[Numerics, ...],
    runs: Numerics,
    replayed: int | None = None,
) -> TrialWorker:
    make = _honest(runs)
    return TrialWorker(name, claimed, auditors, claimed, cheat=False, make=make, replayed=replayed)


CONDITIONS: Final = (
    _honest_worker("bfloat16", BFLOAT16, (FLOAT32, BFLOAT16), BFLOAT16),
    _honest_worker("two-threads", BFLOAT16, (FLOAT32,), TWO_THREADS, OTHER_REPLAYS),
    _honest_worker("other-chunks", BFLOAT16, (FLOAT32, BFLOAT16), OTHER_CHUNKS, OTHER_REPLAYS),
    _honest_worker("float32", FLOAT32, (BFLOAT16,), FLOAT32),
    _honest_worker("fp8", FP8, (FP8_IN_FLOAT32, FP8), FP8),
    _cheat("int8", _weights(int8)),
    _cheat("fp8-for-bfloat16", _honest(FP8)),
    _cheat("int4", _honest(Numerics("bfloat16", "int4"))),
    _cheat("half-the-steps", _claiming(half_the_steps)),
    _cheat("temperature", _claiming(cooler)),
    _cheat("older-checkpoint", _older),
    _cheat("a-layer-less", _weights(without_a_layer)),
    _cheat("cached", lambda models: cached(_honest(BFLOAT16)(models))),
    _cheat("other-seed", _claiming(other_seed)),
    _cheat("edited", lambda models: edited(_honest(BFLOAT16)(models))),
    _cheat("invented", _invented),
    _cheat("forged-numbers", _forged),
)

BY_NAME: Final = {condition.name: condition for condition in CONDITIONS}


def key(numerics: Numerics) -> str:
    """Name an auditor in the figures."""
    return precision_name(numerics.dtype, numerics.quantization)


def audit(
    models: Models, condition: TrialWorker, canvas: ServedCanvas, replay: bool
) -> dict[str, Any]:
    """Audit a canvas at every level. A score is None where there is nothing to score."""
    row: dict[str, Any] = {
        "canvas": len(canvas.request.committed),
        "kind": canvas.kind,
        "steps": len(canvas.records),
    }
    for auditor in condition.auditors:
        started = time.perf_counter()
        try:
            figures = models.forced(auditor).figures(
                canvas.request, canvas.opened(models.of(auditor).limits)
            )
            row[f"forced {key(auditor)}"] = _rounded(asdict(scores(figures)))
        except OpeningError as error:
            row[f"forced {key(auditor)}"] = {"impossible": str(error)}
        row["forced_s"] = round(time.perf_counter() - started, 4)
    if replay:
        started = time.perf_counter()
        replayed = models.replayer(condition.replayer).replay(
            canvas.request, steps=len(canvas.records)
        )
        row["differs_at"] = first_difference(replayed.leaves, canvas.leaves)
        row["replay_s"] = round(time.perf_counter() - started, 4)
    return row


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in numbers.items()
    }


# A process that measures


def request_number(canvas: ServedCanvas) -> int:
    """The number of the request that a canvas is shown for."""
    return int(canvas.request.request_id.rpartition("-")[2])


class Measuring:
    """A process that measures blocks. It builds a worker when the first block of it is ordered.

    shown: folder with the canvases of workers on another machine. Nothing of them is replayed.
    """

    def __init__(self, models: Models, shown: Path | None = None) -> None:
        self._models, self._shown = models, shown
        self._runs: dict[str, Run] = {}

    def answers(self, name: str, number: int) -> list[ServedCanvas]:
        """Let a worker answer a block of requests, and show all canvases of them in order."""
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = BY_NAME[name].make(self._models)
        asked = self._models.of(BFLOAT16)
        first = number * BATCH
        shown = run([ask(asked, one) for one in range(first, first + BATCH)])
        return sorted(shown, key=lambda one: (request_number(one), len(one.request.committed)))

    def block(self, name: str, number: int) -> list[dict[str, Any]]:
        """Audit every canvas of a block. One row a canvas."""
        condition = BY_NAME[name]
        started = time.perf_counter()
        if self._shown is None:
            shown = self.answers(name, number)
        else:
            asks = partial(ask, self._models.of(BFLOAT16))
            file = shown_file(self._shown, name, number)
            shown = read_shown(file, asks, self._models.device)
        job_s = round((time.perf_counter() - started) / max(1, len(shown)), 4)
        replay = condition.replayed is None or number < condition.replayed
        replay = replay and self._shown is None
        return [
            {
                "request": request_number(canvas),
                **audit(self._models, condition, canvas, replay=replay),
                "job_s": job_s,
            }
            for canvas in shown
        ]

    def serve(self, orders: Iterable[str], answers: TextIO) -> None:
        """Measure what is ordered, until nothing more comes."""
        for line in orders:
            order = json.loads(line)
            started = time.perf_counter()
            rows = self.block(order["worker"], order["block"])
            seconds = round(time.perf_counter() - started, 3)
            answers.write(json.dumps({**order, "seconds": seconds, "canvases": rows}) + "\n")
            answers.flush()


def lines_of_the_parent(parent: TextIO) -> Iterator[str]:
    """Yield its lines. When it is gone, this process ends at once: nobody waits for the block."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in parent:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def main() -> None:
    """Serve the process that has started this one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--older", type=Path)
    parser.add_argument("--shown", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    models = Models(wanted.device, wanted.model, wanted.older)
    Measuring(models, wanted.shown).serve(lines_of_the_parent(sys.stdin), answers)


if __name__ == "__main__":
    main()
