"""The table of `piecework bench` in a worker's home, and when an offer shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework_node.engine.benchmark_table import (
    MAX_FILE_BYTES,
    MAX_LINES,
    with_speeds,
    write_speeds,
)
from piecework_node.home import Home
from tests.support.node.fake_engine import FACTS

FOUND = replace(FACTS, details={"profile": "this-machine"})
LINE = {
    "rows": 8,
    "tokens_per_second": 812.34,
    "steps_per_second": 70.0,
    "steps_per_canvas": 22.5,
    "first_canvas_ms": 240.0,
    "canvases": 30,
}


def report(**changes: Any) -> dict[str, Any]:
    digest = "0x" + FOUND.digest.hex()
    return {"digest": digest, "profile": "this-machine", "measurements": [LINE], **changes}


def test_the_table_of_the_same_model_and_engine_is_shown(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_speeds(home, report())
    assert home.speeds.stat().st_mode & 0o777 == 0o600
    table = with_speeds(home, FOUND).details["benchmark"]
    assert table == [
        {
            "rows": 8,
            "tokens_per_second": 812.3,
            "steps_per_second": 70.0,
            "steps_per_canvas": 22.5,
            "first_canvas_ms": 240.0,
        }
    ]


@pytest.mark.parametrize(
    "changes", [{"digest": "0x00"}, {"profile": "another"}, {"measurements": "many"}]
)
def test_a_table_of_something_else_is_not_shown(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_speeds(Home(tmp_path), report(**changes))
    assert with_speeds(Home(tmp_path), FOUND) == FOUND


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"[" * 5000, b"{" + b" " * MAX_FILE_BYTES + b"}"]
)
def test_a_file_that_is_no_report_shows_nothing(tmp_path: Path, content: bytes) -> None:
    Home(tmp_path).speeds.write_bytes(content)
    assert with_speeds(Home(tmp_path), FOUND) == FOUND


def test_a_long_table_is_cut_and_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines = [{**LINE, "rows": "<script>"}] * (MAX_LINES + 5)
    Home(tmp_path).speeds.write_text(json.dumps(report(measurements=lines)))
    table = with_speeds(Home(tmp_path), FOUND).details["benchmark"]
    assert len(table) == MAX_LINES
    assert table[0]["rows"] is None


def test_a_worker_without_a_table_offers_what_it_knows(tmp_path: Path) -> None:
    assert with_speeds(Home(tmp_path), FOUND) == FOUND
