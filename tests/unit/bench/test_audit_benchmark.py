"""The audit benchmark: bounds, resuming, and a table that counts the other half."""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import audit_page, audit_table
from bench.audit import MeasuringRun, Plan, main
from bench.audit_figures import MeasuredSetting, WorkerFigures, alone, asked_alike, setting
from bench.audit_measure import BFLOAT16, CONDITIONS, Measuring, Models
from bench.audit_page import SAME_PROFILE, Places, counts, plot
from bench.audit_shown import machine_of, read_shown, shown_count, shown_file, write_shown
from bench.audit_table import (
    WORKERS,
    Share,
    clopper_pearson,
    count,
    fit,
    read,
)
from bench.audit_workers import ask, serve
from piecework.client.audits.suspicion import chance_of_verdict
from piecework_model.audit.judgement import TESTS, Pairing, load_table
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.errors import ModelError
from tests.support.waiting import until

MODEL = "ab" * 32
SETTING = MeasuredSetting(MODEL, "", "cpu", "cd" * 32, {"torch": "2"})


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
    figures = WorkerFigures(folder / f"{name}.jsonl")
    figures.begin(SETTING)
    for number, one in enumerate(rows):
        figures.add(block(number, [{"request": number, **one}]))


def block(number: int, rows: list[dict[str, Any]], seconds: float = 2.0) -> dict[str, Any]:
    return {"worker": "any", "block": number, "seconds": seconds, "canvases": rows}


def test_a_worker_of_another_profile_is_replayed_a_little() -> None:
    replayed = {one.name for one in CONDITIONS if not one.cheat and one.replayed is None}
    assert replayed == set(SAME_PROFILE)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "bfloat16.jsonl"
    first = WorkerFigures(file)
    first.begin(SETTING)
    first.add(block(3, [row(0.03), row(0.04)]))
    file.write_text(file.read_text() + '{"block": 4, "canv')
    again = WorkerFigures(file)
    assert (again.canvases, list(again.blocks), again.seconds) == (2, [3], 2.0)
    again.begin(SETTING)
    again.add(block(4, [row(0.05)]))
    assert WorkerFigures(file).canvases == 3
    with pytest.raises(ModelError, match="another checkpoint"):
        again.begin(replace(SETTING, model="cd" * 32))


def test_figures_are_kept_by_what_they_were_measured_with(tmp_path: Path) -> None:
    here = setting("cpu", None, None)
    assert here == setting("cpu", None, None)
    others = (
        replace(here, model=MODEL),
        replace(here, older=MODEL),
        replace(here, device="cuda"),
        replace(here, code=MODEL),
        replace(here, libraries={"torch": "1"}),
    )
    assert len({one.key for one in (here, *others)}) == 6
    with (
        alone(tmp_path),
        pytest.raises(ModelError, match="another process measures"),
        alone(tmp_path),
    ):
        pass


def test_an_older_checkpoint_must_take_the_same_ids(tmp_path: Path) -> None:
    bundled = bundled_checkpoint_path()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((bundled / name).read_bytes())
    assert asked_alike(tmp_path, bundled)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not asked_alike(tmp_path, bundled)
    with pytest.raises(SystemExit, match="another tokenizer"):
        main(["--older", str(tmp_path), "--raw", str(tmp_path), "--no-measure"])


class ScriptedMeasurer:
    """Measures what it is told, and dies at a block if told so."""

    def __init__(self, canvases: int = 2, dies_at: int = 99) -> None:
        self.canvases, self.dies_at = canvases, dies_at
        self.closed = False

    def measure(self, name: str, number: int) -> dict[str, Any]:
        if number == self.dies_at:
            raise ModelError("it died")
        rows = [{"request": number, **row(0.03)}] * self.canvases
        return {**block(number, rows), "worker": name}

    def close(self) -> None:
        self.closed = True


def plan(folder: Path, **wanted: int) -> Plan:
    figures = {name: WorkerFigures(folder / f"{name}.jsonl") for name in wanted}
    for one in figures.values():
        one.begin(SETTING)
    return Plan(figures, wanted)


def test_all_workers_advance_together(tmp_path: Path) -> None:
    made = plan(tmp_path, many=20, few=4)
    ordered = []
    while (order := made.next()) is not None:
        ordered.append(order)
        made.take(order[0], ScriptedMeasurer().measure(*order))
    assert [number for name, number in ordered if name == "many"] == list(range(10))
    assert [number for name, number in ordered if name == "few"] == [0, 1]
    # Both are half way when half of the work is done.
    assert ("few", 1) in ordered[5:8]


def test_what_is_ordered_is_not_ordered_again_and_the_time_left_is_of_the_rest(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path, many=20)
    assert made.work_left_s is None
    assert [made.next(), made.next()] == [("many", 0), ("many", 1)]
    made.take("many", block(1, [row(0.03)] * 5, seconds=10))
    assert made.canvases == 5
    assert made.work_left_s == pytest.approx(30)
    assert made.next() == ("many", 2)


def test_a_plan_ends_where_another_machine_has_shown_no_more(tmp_path: Path) -> None:
    made = plan(tmp_path, some=20, more=20)
    made.exists = lambda worker, block: block < (2 if worker == "some" else 3)
    ordered = []
    while (order := made.next()) is not None:
        ordered.append(order)
        made.take(order[0], ScriptedMeasurer(canvases=1).measure(*order))
    assert sorted(ordered) == [("more", 0), ("more", 1), ("more", 2), ("some", 0), ("some", 1)]


@pytest.mark.model
def test_what_a_worker_showed_is_audited_elsewhere_as_it_would_be_here(tmp_path: Path) -> None:
    models = Models("cpu", None, None)
    loaded = models.of(BFLOAT16)
    shown = serve(loaded, [ask(loaded, 0)])
    file = shown_file(tmp_path, "bfloat16", 0)
    write_shown(file, shown, "a card")
    assert (machine_of(file), shown_count(file)) == ("a card", len(shown))
    asks = partial(ask, loaded)
    for here, there in zip(shown, read_shown(file, asks, "cpu"), strict=True):
        assert (there.request, there.records) == (here.request, here.records)
        assert there.token_ids == here.token_ids
        assert all(map(torch.equal, there.softs, here.softs))
    key = setting("cpu", None, None).key
    assert setting("cpu", None, None, "a card").key != key


def test_several_processes_share_the_work_and_one_that_dies_ends_the_run(tmp_path: Path) -> None:
    two = [ScriptedMeasurer(), ScriptedMeasurer()]
    seen: list[int] = []
    MeasuringRun(plan(tmp_path, many=20), lambda one: seen.append(one.canvases)).run(two)
    assert seen == list(range(2, 22, 2))
    assert all(one.closed for one in two)
    more, dying = plan(tmp_path, many=60), ScriptedMeasurer(dies_at=15)
    with pytest.raises(ModelError, match="it died"):
        MeasuringRun(more, lambda _: None).run([dying])
    assert dying.closed
    assert WorkerFigures(tmp_path / "many.jsonl").canvases == 30


def test_a_worker_that_makes_nothing_ends_the_run(tmp_path: Path) -> None:
    made = plan(tmp_path, many=20)
    with pytest.raises(ModelError, match="no canvas"):
        MeasuringRun(made, lambda _: None).run([ScriptedMeasurer(canvases=0)])


def command(folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = ("--raw", str(folder), "--only", "bfloat16", "--processes", "1", *options)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bench.audit", *arguments],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def blocks_in(folder: Path) -> dict[int, list[dict[str, Any]]]:
    return {
        number: [{k: v for k, v in one.items() if not k.endswith("_s")} for one in rows]
        for file in folder.glob("*/bfloat16.jsonl")
        for number, rows in WorkerFigures(file).blocks.items()
    }


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.model
def test_a_run_that_is_killed_goes_on_with_the_same_command_and_has_the_same_figures(
    tmp_path: Path,
) -> None:
    cut = command(tmp_path, "--honest", "2000")
    try:
        asyncio.run(until(lambda: len(blocks_in(tmp_path)) >= 1, within_s=300, poll_s=0.2))
    finally:
        cut.kill()
        cut.communicate()
    before = blocks_in(tmp_path)
    wanted = sum(map(len, before.values())) + 1
    docs = tmp_path / "docs"
    again = command(tmp_path, "--honest", str(wanted), "--write", "--docs", str(docs))
    try:
        told, _ = again.communicate(timeout=600)
    finally:
        again.kill()
        again.communicate()
    after = blocks_in(tmp_path)
    assert again.returncode == 0
    assert before.items() < after.items()
    # It is what one process makes of the block, without a break.
    fresh = Measuring(Models("cpu", None, None)).block("bfloat16", 0)
    assert [{k: v for k, v in one.items() if not k.endswith("_s")} for one in fresh] == after[0]
    measured = sum(map(len, after.values()))
    assert f"{measured:6} canvases" in told
    page = (docs / "audits.md").read_text()
    assert f"\n{measured} honest canvases and 0 of cheats" in page
    assert "**It is not reached** by 17 of 17 workers." in page
    assert load_table(docs / "thresholds.json") == {}


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
    assert (honest.wrong.hits, honest.wrong.of) == (0, 200)
    assert (cheat.wrong.hits, cheat.wrong.of) == (30, 30)
    assert (cheat.decided.hits, cheat.found_ten, honest.found_ten) == (0, 1.0, 0.0)
    assert cheat.extrapolated < 1e-6 and honest.wrong_one < 1e-3
    # Ten from one: each canvas has the bounds of Clopper and Pearson, and an audit takes several.
    none, all_of = clopper_pearson(0, 200)[1], clopper_pearson(30, 30)[0]
    most = none + chance_of_verdict(none)
    assert honest.wrong_ten == pytest.approx((0.0, 1 - (1 - most) ** 10), rel=1e-6)
    assert cheat.wrong_ten == pytest.approx((0.0, (1 - chance_of_verdict(all_of)) ** 10), rel=1e-6)
    assert (honest.reached, cheat.reached) == (honest.extrapolated < 1e-4, True)
    assert cheat.tests["logits"] == 30


def test_a_pair_whose_honest_workers_fail_too_often_is_not_shipped() -> None:
    """Nobody is blamed by thresholds that miss their goal."""
    none = Share(0, 9)
    row_ = audit_table.AuditedRow(
        "bfloat16", "text", "float32", none, none, none, 0.0, 1e-5, 0.005, {}
    )
    pairing, other = row_.pairing(MODEL), Pairing(MODEL, "text", "bfloat16", "bfloat16")
    cheat = replace(row_, worker="int4", wrong_one=math.nan)
    table: dict[Pairing, Any] = {pairing: {}, other: {}}
    assert set(audit_page.shipped(table, [row_, cheat], MODEL)) == {pairing}
    too_often = replace(row_, worker="two-threads", wrong_one=0.02)
    unknown = replace(row_, worker="other-chunks", wrong_one=math.nan)
    counted = replace(row_, worker="two-threads", wrong=Share(1, 66))
    for worse in (too_often, unknown, counted):
        for rows in ([row_, worse], [worse, row_]):
            assert audit_page.shipped(table, rows, MODEL) == {}


def test_thresholds_are_of_the_kinds_of_device_that_were_measured(tmp_path: Path) -> None:
    pairing = Pairing(MODEL, "text", "bfloat16", "float32")
    for shown_by, device, names in (
        ("", "cpu", ("bfloat16", "float32")),
        ("", "cuda", ("bfloat16 on cuda", "float32 on cuda")),
        ("cuda A Card, torch 2", "cpu", ("bfloat16 on cuda", "float32")),
    ):
        folder = tmp_path / f"{device}{shown_by[:4]}"
        figures = WorkerFigures(folder / "bfloat16.jsonl")
        figures.begin(replace(SETTING, device=device, shown_by=shown_by))
        (placed,) = audit_page.placed({pairing: {}}, *audit_page.devices(folder))
        assert (placed.worker, placed.auditor) == names


def test_canvases_of_a_job_that_look_wrong_together_are_counted(tmp_path: Path) -> None:
    draw = random.Random(6)
    write(tmp_path, "bfloat16", [row(0.034 * draw.lognormvariate(0, 0.08)) for _ in range(400)])
    figures = WorkerFigures(tmp_path / "int4.jsonl")
    figures.begin(SETTING)
    for number in range(40):
        second = 0.09 if number % 4 == 1 else 0.034
        rows = [{"request": number, **row(0.09)}, {"request": number, **row(second)}]
        figures.add(block(number, rows))
    found = read(tmp_path, MODEL)
    _, cheat = count(found, fit(found, MODEL), MODEL)
    # Twenty jobs count. In each the first canvas looks wrong, and in ten the second one too.
    assert (cheat.wrong.hits, cheat.wrong.of) == (30, 40)
    assert (cheat.beside.hits, cheat.beside.of) == (20, 30)


def test_a_pair_of_one_precision_is_judged_no_finer_than_one_of_two(tmp_path: Path) -> None:
    """Hardly any of its canvases differs, so its own tail would take the first one for a cheat."""
    draw = random.Random(4)
    rows = [row(0.034 * draw.lognormvariate(0, 0.08)) for _ in range(400)]
    equal = dict.fromkeys(TESTS, 0.0)
    honest = [{**one, "forced bfloat16": equal} for one in rows]
    honest[-1]["forced bfloat16"] = honest[-1]["forced float32"]
    write(tmp_path, "bfloat16", honest)
    figures = read(tmp_path, MODEL)
    table = fit(figures, MODEL)
    same, other = (Pairing(MODEL, "text", "bfloat16", name) for name in ("bfloat16", "float32"))
    assert table[same] == table[other]
    assert [one.wrong.hits for one in count(figures, table, MODEL)] == [0, 0]


def test_an_opening_that_is_impossible_counts_as_found(tmp_path: Path) -> None:
    draw = random.Random(2)
    honest = [row(0.034 * draw.lognormvariate(0, 0.08)) for _ in range(400)]
    write(tmp_path, "bfloat16", honest)
    refused: dict[str, Any] = {
        "canvas": 0,
        "kind": "text",
        "forced float32": {"impossible": "an id"},
    }
    write(tmp_path, "invented", [refused] * 30)
    figures = read(tmp_path, MODEL)
    table = fit(figures, MODEL)
    found = {one.worker: one.decided for one in count(figures, table, MODEL)}
    assert (found["invented"].hits, found["invented"].of) == (15, 15)


def test_the_page_and_the_plot_name_every_measured_worker(
    measured: dict[str, list[audit_table.Canvas]],
) -> None:
    table = fit(measured, MODEL)
    rows = list(count(measured, table, MODEL))
    page = "\n".join(audit_page.tables(measured, rows))
    assert "| int8 weights" not in page
    for name in ("bfloat16", "int4"):
        assert WORKERS[name] in page
        assert WORKERS[name] in plot(measured, table, MODEL)


def test_the_page_says_how_many_there_are_and_what_is_missing(
    measured: dict[str, list[audit_table.Canvas]],
) -> None:
    page = "\n".join(counts(measured, MODEL, ["a machine"]))
    assert f"400 honest canvases and 60 of cheats, model `{MODEL[:16]}…`." in page
    assert "**It is not reached** by 17 of 17 workers." in page
    assert "| honest, bfloat16, one thread | 400 | 2000 | 400 | 200 | 200 |" in page
    assert "| int4 experts, fp8 linears | 60 | 300 | 60 | 0 | 30 |" in page
    assert "| int8 weights | 0 | 300 | 0 | 0 | 0 |" in page
    whole = {name: [audit_table.Canvas(0, row(0.03))] * 2000 for name in WORKERS}
    assert "not reached" not in "\n".join(counts(whole, MODEL, []))


def test_the_page_is_made_again_between_its_marks(tmp_path: Path) -> None:
    write(tmp_path / "figures", "bfloat16", [row(0.03)] * 100)
    places = Places.below(tmp_path / "docs")
    audit_page.write(tmp_path / "figures", MODEL, places)
    first = places.page.read_text()
    audit_page.write(tmp_path / "figures", MODEL, places)
    assert places.page.read_text() == first
    assert "100 honest canvases" in first
    assert "## What is not defended" in first
    assert len(load_table(places.thresholds)) == 1
