"""`piecework client audit` on an evidence file: outcomes, exit codes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework_protocol.evidence.file import write_evidence
from tests.support.protocol.evidence import Story, evidence
from tests.support.system.commands import piecework

pytestmark = pytest.mark.process


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "evidence.json"
    path.write_bytes(write_evidence(evidence(Story(steps=(3, 5)))))
    return str(path)


async def test_a_passed_canvas_is_exit_code_zero(file: str) -> None:
    said = await piecework("client", "audit", "--evidence", file, "--level", "rules", "--json")
    assert said.json()["outcome"] == "pass"
    assert said.json()["canvas"] in (0, 1)


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
    assert "this is no openings file" in said.err


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
