"""What audits find: `python -m bench.audit [--honest 2000] [--cheats 300] [--write]`.

Workers answer the same requests, honestly on several numerics and in several dishonest ways
(`bench/audit_workers.py`). Every canvas is audited at every level. As many processes as there are
cores measure blocks of requests. Each block goes into a file as soon as it is known. So a run that
is cut off goes on where it was with the same command, and `--honest` can be raised later. All
workers advance together: the figures of a run that is cut off are fewer, of all of them.

`--write` makes of the figures the thresholds of `piecework_model.audit`, the table in
docs/audits.md and its plot, every ten minutes and at the end. `--no-measure --write` makes them of
what is there. Thresholds come from requests of even numbers. All else is counted on requests of odd
numbers.

On two machines, such as two cards: `--serve FOLDER` writes on one what its workers show, and
`--shown FOLDER` audits it on the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from bench import audit_page
from bench.audit_figures import (
    MeasuredSetting,
    WorkerFigures,
    alone,
    asked_alike,
    earlier_edition,
    setting,
)
from bench.audit_page import Places
from bench.audit_shown import machine_of, shown_count, shown_file, write_shown
from bench.audit_table import HONEST, WORKERS
from bench.report import ROOT, environment
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.errors import ModelError

FIGURES: Final = ROOT / "bench" / "figures" / "audits"
WRITE_EVERY_S: Final = 600.0
MOST_EMPTY: Final = 20
"""Blocks of a worker without a canvas, after which it has none."""
OLDER: Final = "older-checkpoint"


@dataclass(slots=True)
class Plan:
    """Which block is measured next, and how long the rest takes.

    figures: of each worker that is measured. wanted: canvases of each. exists: says whether there
    is such a block. ordered: blocks that are being measured.
    """

    figures: Mapping[str, WorkerFigures]
    wanted: Mapping[str, int]
    exists: Callable[[str, int], bool] = lambda worker, block: True
    ordered: set[tuple[str, int]] = field(default_factory=set)

    def next(self) -> tuple[str, int] | None:
        """Order a block of the worker that is furthest behind. None: all is measured or ordered.

        Raises:
            ModelError: A worker makes no canvas at all.
        """
        behind = {name: share for name in self.figures if (share := self._share(name)) < 1}
        if not behind:
            return None
        name = min(behind, key=lambda one: behind[one])
        if len(self.figures[name].blocks) >= MOST_EMPTY and not self.figures[name].canvases:
            raise ModelError(f"{name} makes no canvas with this checkpoint. Leave it out: --only")
        number = self._next_of(name)
        self.ordered.add((name, number))
        return name, number

    def _next_of(self, name: str) -> int:
        number, done = 0, self.figures[name].blocks
        while number in done or (name, number) in self.ordered:
            number += 1
        return number

    def take(self, name: str, block: dict[str, Any]) -> None:
        """Keep a block that was ordered."""
        self.ordered.discard((name, block["block"]))
        self.figures[name].add(block)

    @property
    def canvases(self) -> int:
        """How many of those that are wanted there are."""
        return sum(min(one.canvases, self.wanted[name]) for name, one in self.figures.items())

    @property
    def work_left_s(self) -> float | None:
        """Estimate the rest, for one process. A worker that was not seen yet is like the others."""
        seen = [one for one in self.figures.values() if one.canvases]
        if not seen:
            return None
        usual = sum(one.seconds for one in seen) / sum(one.canvases for one in seen)
        return sum(
            max(0, self.wanted[name] - one.canvases)
            * (one.seconds / one.canvases if one.canvases else usual)
            for name, one in self.figures.items()
        )

    def _share(self, name: str) -> float:
        one, wanted = self.figures[name], self.wanted[name]
        if not self.exists(name, self._next_of(name)):
            return 1.0
        usual = one.canvases / len(one.blocks) if one.blocks else 1.0
        ordered = sum(worker == name for worker, _ in self.ordered)
        return (one.canvases + usual * ordered) / wanted if wanted else 1.0


class BlockMeasurer(Protocol):
    """Measures blocks, one after the other."""

    def measure(self, name: str, number: int) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Measurer:
    """A process of `bench.audit_measure`. It ends with this one, however this one ends."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-P", "-m", "bench.audit_measure", *arguments]
        # Two threads of a worker beside another process: waiting must not take a core.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        self._child = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def measure(self, name: str, number: int) -> dict[str, Any]:
        """Measure a block.

        Raises:
            ModelError: The process ended. It has said why on its standard error.
        """
        assert self._child.stdin is not None and self._child.stdout is not None  # noqa: S101  pipes
        try:
            self._child.stdin.write(json.dumps({"worker": name, "block": number}) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            code = self._child.wait()
            raise ModelError(f"measuring {name}, block {number}, ended with exit code {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it. What it is measuring is lost."""
        self._child.kill()
        self._child.communicate()


class MeasuringRun:
    """Several processes that measure one plan, each driven by a thread."""

    def __init__(self, plan: Plan, note: Callable[[Plan], None]) -> None:
        """note: called after each block, by one thread at a time."""
        self._plan, self._note = plan, note
        self._lock = threading.Lock()
        self._failures: list[Exception] = []

    def run(self, measurers: Sequence[BlockMeasurer]) -> None:
        """Measure until nothing is left. The measurers are closed then.

        Raises:
            ModelError: A process failed. Blocks that were measured are kept.
        """
        threads = [
            threading.Thread(target=self._drive, args=(one,), daemon=True) for one in measurers
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for measurer in measurers:
                measurer.close()
        if self._failures:
            raise self._failures[0]

    def _drive(self, measurer: BlockMeasurer) -> None:
        try:
            while True:
                with self._lock:
                    order = None if self._failures else self._plan.next()
                if order is None:
                    return
                block = measurer.measure(*order)
                with self._lock:
                    self._plan.take(order[0], block)
                    self._note(self._plan)
        except Exception as error:  # noqa: BLE001  told by the thread that waits
            with self._lock:
                self._failures.append(error)


@dataclass(slots=True)
class RunProgress:
    """Lines about how far a run is. processes: that share the work."""

    processes: int
    write: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    _written: float = field(init=False)

    def __post_init__(self) -> None:
        self._written = self.clock()

    def __call__(self, plan: Plan) -> None:
        """Say how far it is, and write the page now and then."""
        wanted = sum(plan.wanted[name] for name in plan.figures)
        left = (plan.work_left_s or 0.0) / self.processes
        share = plan.canvases / max(1, wanted)
        print(
            f"{plan.canvases:6} of {wanted} canvases, {share:.1%}, {left / 60:.0f} minutes left",
            flush=True,
        )
        if self.clock() - self._written >= WRITE_EVERY_S:
            self._written = self.clock()
            self.write()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, say what is there, and write it if told so."""
    wanted = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        older = _older(wanted, Path(place))
        if wanted.serve:
            _serve(wanted, older, _chosen(wanted.only, with_older=older is not None))
            return
        by = machine_of(next(iter(sorted(wanted.shown.iterdir())))) if wanted.shown else ""
        measured = setting(wanted.device, wanted.model, older, by)
        folder = wanted.raw / (wanted.figures or measured.key)
        print(f"figures: {folder}")

        def write() -> None:
            if wanted.write:
                audit_page.write(folder, measured.model, Places.below(wanted.docs))

        if wanted.measure:
            chosen = _chosen(wanted.only, with_older=older is not None)
            _measure(wanted, measured, folder, older, chosen, write)
        write()
    for name in WORKERS:
        print(f"{name:20} {WorkerFigures(folder / f'{name}.jsonl').canvases:6} canvases")


def _measure(  # noqa: PLR0917  all of one run
    wanted: argparse.Namespace,
    measured: MeasuredSetting,
    folder: Path,
    older: Path | None,
    chosen: Sequence[str],
    write: Callable[[], None],
) -> None:
    with alone(folder):
        figures = {name: WorkerFigures(folder / f"{name}.jsonl") for name in chosen}
        counts = {n: wanted.honest if n in HONEST else wanted.cheats for n in chosen}
        for one in figures.values():
            one.begin(measured)
        options = ["--device", wanted.device]
        options += ["--model", str(wanted.model.resolve())] if wanted.model else []
        options += ["--older", str(older.resolve())] if older else []
        plan = Plan(figures, counts)
        if wanted.shown:
            options += ["--shown", str(wanted.shown.resolve())]
            plan.exists = lambda worker, block: shown_file(wanted.shown, worker, block).is_file()
        run = MeasuringRun(plan, RunProgress(wanted.processes, write))
        run.run([Measurer(options) for _ in range(wanted.processes)])


def _serve(wanted: argparse.Namespace, older: Path | None, chosen: Sequence[str]) -> None:
    """Write what workers show, and audit nothing. What is there is not made again."""
    import torch

    from bench.audit_measure import Measuring, Models

    torch.set_num_threads(1)

    said = environment("torch")
    card = torch.cuda.get_device_name() if wanted.device == "cuda" else said["cpu"]
    # The first word is what thresholds are told apart by.
    machine = f"{wanted.device} {card}, torch {said['torch']}"
    measuring = Measuring(Models(wanted.device, wanted.model, older))
    for name in chosen:
        canvases = block = 0
        while canvases < (wanted.honest if name in HONEST else wanted.cheats):
            file = shown_file(wanted.serve, name, block)
            if not file.is_file():
                write_shown(file, measuring.answers(name, block), machine)
            canvases += shown_count(file)
            block += 1
            print(f"{name:20} {canvases:6} canvases", flush=True)


def _older(wanted: argparse.Namespace, place: Path) -> Path | None:
    """Find the earlier edition: the one that was named, or of a bundled checkpoint the last one."""
    older: Path | None = wanted.older
    if older is None:
        return None if wanted.model else earlier_edition(place)
    if not asked_alike(older, wanted.model or bundled_checkpoint_path()):
        raise SystemExit(f"{older} has another tokenizer, vocabulary or canvas")
    return older


def _chosen(names: Iterable[str], *, with_older: bool) -> list[str]:
    chosen = set(names)
    unknown = chosen - set(WORKERS)
    if unknown:
        raise SystemExit(f"no such worker: {', '.join(sorted(unknown))}")
    if not with_older and (not chosen or OLDER in chosen):
        print(f"{OLDER} is left out: there is no earlier edition. Name one: --older FOLDER")
    usable = [name for name in WORKERS if not chosen or name in chosen]
    return [name for name in usable if name != OLDER or with_older]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--honest", type=int, default=2000, help="canvases of each honest worker")
    parser.add_argument("--cheats", type=int, default=300, help="canvases of each cheat")
    parser.add_argument("--raw", type=Path, default=FIGURES, help="where folders of figures are")
    parser.add_argument(
        "--figures",
        help="folder of --raw to go on with: of other code, if you know that it holds",
    )
    parser.add_argument("--only", nargs="*", default=[], help="these workers alone")
    parser.add_argument("--model", type=Path, help="folder of another checkpoint")
    parser.add_argument("--older", type=Path, help="folder of an older checkpoint")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--serve", type=Path, help="only write here what workers show")
    parser.add_argument("--shown", type=Path, help="audit what workers of another machine showed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-measure", dest="measure", action="store_false")
    parser.add_argument("--write", action="store_true", help="thresholds, table and plot")
    parser.add_argument("--docs", type=Path, help="folder for what is written, to try it out")
    return parser


if __name__ == "__main__":
    main()
