"""What audits find: `python -m bench.audit [--honest 2000] [--cheats 300] [--write]`.

Workers answer the same requests, honestly on several numerics and in several dishonest ways
(`bench/audit_workers.py`). Every canvas is audited at every level. The figures of each worker go
into a file of their own, one line a request, as soon as they are known. So a run that is cut off
goes on where it was, and `--honest` can be raised later.

`--write` makes of these figures the thresholds of `piecework_model.audit`, the table in
docs/audits.md and its plot. Thresholds come from requests of even numbers. All else is counted on
requests of odd numbers.

"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from bench import audit_table
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
from bench.report import ROOT, environment
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.judgement import precision_name
from piecework_model.audit.replay import Replayer, first_difference
from piecework_model.audit.scores import scores
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.errors import ModelError, OpeningError

RAW: Final = ROOT / "docs" / "audits"
BATCH: Final = 8
"""Requests that a worker answers together, and that are lost at most when a run is cut off."""
OTHER_REPLAYS: Final = 100
"""Canvases of an honest worker of another profile that are replayed, to show that it says nothing.
"""
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
    replays, None for none. cheat: whether he is to be found. make: loads and builds him.
    """

    name: str
    claimed: Numerics
    auditors: tuple[Numerics, ...]
    replayer: Numerics | None
    cheat: bool
    make: Callable[[Models], Run]


class Models:
    """The bundled checkpoint in every form that is needed, each loaded once."""

    def __init__(self, device: str, older: Path | None) -> None:
        self.device, self.older = device, older
        self._loaded: dict[Numerics, LoadedModel] = {}
        self._forced: dict[Numerics, ForcedPass] = {}
        self._replayers: dict[Numerics, Replayer] = {}

    def load(self, numerics: Numerics, folder: Path | None = None) -> LoadedModel:
        """Load it once more."""
        return load(
            folder,
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
    name: str, claimed: Numerics, auditors: tuple[Numerics, ...], runs: Numerics
) -> TrialWorker:
    return TrialWorker(name, claimed, auditors, claimed, cheat=False, make=_honest(runs))


CONDITIONS: Final = (
    _honest_worker("bfloat16", BFLOAT16, (FLOAT32, BFLOAT16), BFLOAT16),
    _honest_worker("two-threads", BFLOAT16, (FLOAT32,), TWO_THREADS),
    _honest_worker("other-chunks", BFLOAT16, (FLOAT32, BFLOAT16), OTHER_CHUNKS),
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
    if replay and condition.replayer is not None:
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


# Running


class WorkerFigures:
    """The figures of one worker: a file with one line a request, after one that says whose."""

    def __init__(self, file: Path, model: str) -> None:
        """Take up what is there.

        Raises:
            ModelError: The file is of another model.
        """
        self._file, self.rows = file, dict[int, list[dict[str, Any]]]()
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        if whole and whole[0].get("model") != model:
            raise ModelError(f"{file} has figures of another checkpoint. Move the folder away")
        for line in whole[1:]:
            self.rows[line["request"]] = line["canvases"]
        file.parent.mkdir(parents=True, exist_ok=True)
        # A line that was cut off with the run before is left out.
        body = whole or [{"model": model, **environment("torch", "transformers")}]
        file.write_text("".join(json.dumps(line) + "\n" for line in body), encoding="utf-8")

    @property
    def canvases(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows.values()))

    def add(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Keep a request's canvases."""
        self.rows[number] = rows
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"request": number, "canvases": rows}) + "\n")


def measure(models: Models, condition: TrialWorker, figures: WorkerFigures, wanted: int) -> None:
    """Let a worker answer requests until there are so many canvases."""
    if figures.canvases >= wanted:
        return
    run, first = condition.make(models), 0
    asked = models.of(BFLOAT16)
    while figures.canvases < wanted:
        numbers = [n for n in range(first, first + BATCH) if n not in figures.rows]
        first += BATCH
        if not numbers:
            continue
        started = time.perf_counter()
        shown = run([ask(asked, number) for number in numbers])
        job_s = (time.perf_counter() - started) / max(1, len(shown))
        always = condition.cheat or condition.name in audit_table.SAME_PROFILE
        for number in numbers:
            mine = [c for c in shown if c.request.request_id == f"request-{number}"]
            replay = always or figures.canvases < OTHER_REPLAYS
            rows = [audit(models, condition, canvas, replay=replay) for canvas in mine]
            figures.add(number, [{**row, "job_s": round(job_s, 4)} for row in rows])
        print(f"{condition.name:20} {figures.canvases:6} of {wanted} canvases", flush=True)


def earlier_edition(folder: Path) -> Path | None:
    """Take the edition of the bundled checkpoint before this one out of the repository's history.

    folder: where to write it. None if there is none with the same vocabulary and canvas.
    """
    place = bundled_checkpoint_path().relative_to(ROOT).as_posix()

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout

    commits = git("log", "--format=%H", "--", f"{place}/model.safetensors").decode().split()
    here = (ROOT / place / "model.safetensors").read_bytes()
    for commit in commits:
        if git("show", f"{commit}:{place}/model.safetensors") == here:
            continue
        names = git("ls-tree", "--name-only", commit, f"{place}/").decode().split()
        for name in names:
            (folder / Path(name).name).write_bytes(git("show", f"{commit}:{name}"))
        return folder
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write if told so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--honest", type=int, default=2000, help="canvases of each honest worker")
    parser.add_argument("--cheats", type=int, default=300, help="canvases of each cheat")
    parser.add_argument("--raw", type=Path, default=RAW, help="folder of the figures")
    parser.add_argument("--only", nargs="*", default=[], help="these workers alone")
    parser.add_argument("--older", type=Path, help="folder of an older checkpoint")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--write", action="store_true", help="thresholds, table and plot")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        older = wanted.older or earlier_edition(Path(place))
        models = Models(wanted.device, older)
        digest = models.of(BFLOAT16).digest.hex()
        for condition in _chosen(wanted.only):
            if condition.name == "older-checkpoint" and older is None:
                print("older-checkpoint     left out: there is no earlier edition")
                continue
            figures = WorkerFigures(wanted.raw / f"{condition.name}.jsonl", digest)
            count = wanted.cheats if condition.cheat else wanted.honest
            measure(models, condition, figures, count)
    if wanted.write:
        audit_table.write(
            wanted.raw,
            digest,
            f"python -m bench.audit --honest {wanted.honest} --cheats {wanted.cheats} --write",
        )


def _chosen(names: Iterable[str]) -> list[TrialWorker]:
    wanted = set(names)
    unknown = wanted - {condition.name for condition in CONDITIONS}
    if unknown:
        raise SystemExit(f"no such worker: {', '.join(sorted(unknown))}")
    return [c for c in CONDITIONS if not wanted or c.name in wanted]


if __name__ == "__main__":
    main()
