"""`piecework client audit` on an evidence file: outcomes, exit codes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from tests.support.market.reported import opened_canvas
from tests.support.protocol.evidence import Story, evidence
from tests.support.system.commands import piecework

pytestmark = pytest.mark.process


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "evidence.json"
    path.write_bytes(write_evidence(evidence(Story(steps=(3, 5)))))
    return str(path)


@pytest.fixture
def opened(tmp_path: Path) -> tuple[str, ...]:
    """The flags of a rules audit of a canvas whose worker opened every step."""
    return _flags(tmp_path, *opened_canvas(Story()))


def _flags(folder: Path, file: EvidenceFile, openings: dict[str, Any]) -> tuple[str, ...]:
    evidence_file, steps = folder / "opened.json", folder / "openings.json"
    evidence_file.write_bytes(write_evidence(file))
    steps.write_text(json.dumps(openings))
    return ("--evidence", str(evidence_file), "--level", "rules", "--openings", str(steps))


async def test_a_passed_canvas_is_exit_code_zero(opened: tuple[str, ...]) -> None:
    said = await piecework("client", "audit", *opened, "--json")
    assert (said.code, said.json()["outcome"], said.json()["canvas"]) == (0, "pass", 0)
    assert said.json()["evidence"] is None


async def test_rules_without_every_step_are_no_verdict_and_say_why(
    file: str, tmp_path: Path
) -> None:
    said = await piecework("client", "audit", "--evidence", file, "--level", "rules", "--json")
    told = json.loads(said.out)
    assert (said.code, told["outcome"]) == (3, "no_verdict")
    assert re.fullmatch("none of the canvas's [35] steps is opened", told["reason"])
    found, openings = opened_canvas(Story())
    flags = _flags(tmp_path, found, {**openings, "steps": openings["steps"][1:]})
    said = await piecework("client", "audit", *flags, "--report", str(tmp_path / "told"))
    assert said.code == 3
    assert "canvas 0, rules: no verdict" in said.out
    assert "1 of the canvas's 2 steps are not opened" in said.out
    assert not (tmp_path / "told").exists()


async def test_a_broken_rule_is_exit_code_one_and_names_the_evidence(tmp_path: Path) -> None:
    flags = _flags(tmp_path, *opened_canvas(Story(), noise=1))
    said = await piecework("client", "audit", *flags)
    assert said.code == 1
    assert "rule 12 (initial)" in said.out
    assert f"its evidence: {tmp_path / 'opened.json'}" in said.out
    # What was found is said first: telling others may fail.
    told = await piecework(
        *("client", "audit", *flags, "--report", str(tmp_path / "told")),
        *("--home", str(tmp_path / "nobody")),
    )
    assert told.code != 0 and "nobody" in told.err
    assert "rule 12 (initial)" in told.out


@pytest.mark.parametrize(("noise", "outcome", "code"), [(0, "pass", 0), (1, "fail", 1)])
async def test_a_report_that_cannot_be_made_does_not_hide_the_verdict(
    noise: int, outcome: str, code: int, tmp_path: Path
) -> None:
    flags = _flags(tmp_path, *opened_canvas(Story(), noise=noise))
    telling = ("--report", str(tmp_path / "told"), "--publish", "--home", str(tmp_path / "nobody"))
    said = await piecework("client", "audit", *flags, *telling, "--json")
    found = json.loads(said.out)
    assert (said.code, found["outcome"]) == (code, outcome)
    why = found["report"].pop("error")
    assert found["report"] == {"files": [], "feedback_hash": None, "indexes": {}}
    assert "nobody" in why and said.err == f"error: {why}\n"
    shown = await piecework("client", "audit", *flags, *telling)
    assert (shown.code, shown.err) == (code, said.err)


async def test_no_verdict_is_exit_code_three_and_says_why(file: str) -> None:
    said = await piecework("client", "audit", "--evidence", file, "--canvas", "1")
    assert said.code == 3
    assert "canvas 1, replay: no verdict" in said.out
    assert "the worker's profile names no precision: fake gpu" in said.out


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--level", "blood"), "--level is one of rules, replay, forced"),
        (("--by", "me"), "--by is self, market or the address of a worker"),
        (("--by", "0x12"), "--by is self, market or the address of a worker"),
        (("--by", "market"), "others audit a JOB of this client, not a file"),
        (("--level", "forced"), "--level forced needs --openings FILE"),
        (("--canvas", "9"), "the job has 2 canvases, and none of index 9"),
        (("0x12",), "give a JOB, or --evidence FILE"),
    ],
)
async def test_a_wrong_command_is_exit_code_two(file: str, more: tuple[str, ...], why: str) -> None:
    said = await piecework("client", "audit", "--evidence", file, *more)
    assert said.code == 2
    assert why in said.err


async def test_an_openings_file_of_another_form_is_one_line(file: str, tmp_path: Path) -> None:
    other = tmp_path / "openings.json"
    other.write_text("{}")
    command = ("client", "audit", "--evidence", file, "--level", "rules")
    said = await piecework(*command, "--openings", str(other))
    assert said.code == 3
    assert "this is not an openings file" in said.err


async def test_openings_of_another_canvas_are_one_line(tmp_path: Path) -> None:
    flags = _flags(tmp_path, *opened_canvas(Story()))
    several = tmp_path / "several.json"
    several.write_bytes(write_evidence(evidence(Story(steps=(3, 5)))))
    said = await piecework(
        *("client", "audit", *flags, "--evidence", str(several), "--canvas", "1")
    )
    assert said.code == 3
    assert "the openings are of canvas 0, and not of canvas 1" in said.err


async def test_what_cannot_be_read_or_does_not_hold_blames_no_worker(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    text = write_evidence(evidence(Story(steps=(3, 5)))).decode()
    damaged.write_text(text.replace('"steps":3', '"steps":4', 1))
    for path, why in (
        (damaged, "receipts[0].signature"),
        (tmp_path / "nothing.json", "nothing.json"),
    ):
        said = await piecework("client", "audit", "--evidence", str(path), "--level", "rules")
        assert said.code == 3, said.err
        assert why in said.err
