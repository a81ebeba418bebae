"""The audit benchmark: bounds, resuming, and a table that counts the other half."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench import audit_table
from bench.audit import CONDITIONS, WorkerFigures
from bench.audit_table import WORKERS, Share, clopper_pearson, count, fit, plot, read
from piecework_model.audit.judgement import Pairing
from piecework_model.errors import ModelError

MODEL = "ab" * 32


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 100, 0.0, 0.03622), (5, 100, 0.01643, 0.11284), (100, 100, 0.96378, 1.0)],
)
def test_the_bounds_are_those_of_clopper_and_pearson(
    hits: int, of: int, low: float, high: float
) -> None:
    assert clopper_pearson(hits, of) == pytest.approx((low, high), abs=1e-4)
    assert str(Share(0, 100)) == "0 of 100 (below 0.036)"


def test_every_worker_of_the_benchmark_has_a_line_in_the_table() -> None:
    assert [condition.name for condition in CONDITIONS] == list(WORKERS)


def row(logits: float, **more: Any) -> dict[str, Any]:
    scores = {"logits": logits, "soft": 0.01, "argmax": 0.05, "sampling": 0.0, "steps": 20}
    return {"canvas": 0, "kind": "text", "steps": 20, "forced float32": scores, **more}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    figures = WorkerFigures(folder / f"{name}.jsonl", MODEL)
    for number, one in enumerate(rows):
        figures.add(number, [one])


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "bfloat16.jsonl"
    WorkerFigures(file, MODEL).add(3, [row(0.03), row(0.04)])
    file.write_text(file.read_text() + '{"request": 4, "canv')
    again = WorkerFigures(file, MODEL)
    assert (again.canvases, list(again.rows)) == (2, [3])
    again.add(4, [row(0.05)])
    assert WorkerFigures(file, MODEL).canvases == 3
    with pytest.raises(ModelError, match="another checkpoint"):
        WorkerFigures(file, "cd" * 32)


@pytest.fixture
def measured(tmp_path: Path) -> dict[str, list[audit_table.Canvas]]:
    draw = random.Random(1)
    honest = [row(0.034 * draw.lognormvariate(0, 0.08), differs_at=None) for _ in range(400)]
    cheats = [row(0.09 * draw.lognormvariate(0, 0.08), differs_at=0) for _ in range(60)]
    write(tmp_path, "bfloat16", honest)
    write(tmp_path, "int4", cheats)
    return read(tmp_path, MODEL)


def test_thresholds_come_from_one_half_and_figures_from_the_other(
    measured: dict[str, list[audit_table.Canvas]],
) -> None:
    table = fit(measured, MODEL)
    assert set(table) == {Pairing(MODEL, "text", "bfloat16", "float32")}
    honest, cheat = count(measured, table, MODEL)
    assert (honest.found.hits, honest.found.of) == (0, 200)
    assert (cheat.found.hits, cheat.found.of) == (30, 30)
    assert cheat.found_ten.hits == cheat.found_ten.of
    assert cheat.missed_ten < 1e-6 < honest.missed_ten
    assert cheat.tests["logits"] == 30


def test_an_opening_that_is_impossible_counts_as_found(tmp_path: Path) -> None:
    draw = random.Random(2)
    honest = [row(0.034 * draw.lognormvariate(0, 0.08)) for _ in range(400)]
    write(tmp_path, "bfloat16", honest)
    refused = {"canvas": 0, "kind": "text", "forced float32": {"impossible": "an id"}}
    write(tmp_path, "invented", [refused] * 30)
    figures = read(tmp_path, MODEL)
    table = fit(figures, MODEL)
    found = {one.worker: one.found for one in count(figures, table, MODEL)}
    assert (found["invented"].hits, found["invented"].of) == (15, 15)


def test_the_page_and_the_plot_name_every_measured_worker(
    measured: dict[str, list[audit_table.Canvas]],
) -> None:
    table = fit(measured, MODEL)
    rows = list(count(measured, table, MODEL))
    page = "\n".join(audit_table.tables(measured, rows, MODEL, "python -m bench.audit"))
    assert "| int8 weights" not in page
    for name in ("bfloat16", "int4"):
        assert WORKERS[name] in page
        assert WORKERS[name] in plot(measured, table, MODEL)
    assert json.dumps(MODEL[:16])[1:-1] in page
