"""`piecework models plan` as a person types it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from tests.support.system.commands import piecework

pytestmark = pytest.mark.process


async def test_the_released_model_is_planned_for_cards_before_it_is_here() -> None:
    said = (
        await piecework("models", "plan", "--card", "12", "--card", "80", "--rows", "2", "--json")
    ).json()
    assert {row["precision"] for row in said["table"]} == {"bfloat16", "fp8", "int4"}
    assert {row["context"] for row in said["table"]} == {8192, 32_768}
    for row in said["table"]:
        assert row["device_bytes"] == row["weights_bytes"] + row["kv_bytes"] + row["work_bytes"]
    small, large = said["devices"]
    assert (small["precision"], small["offloaded"]) == ("int4", True)
    assert (large["precision"], large["offloaded"]) == ("bfloat16", False)
    assert "experts in host memory" in small["reason"]


async def test_a_checkpoint_is_planned_for_this_machine(tmp_path: Path) -> None:
    shutil.copytree(bundled_checkpoint_path(), tmp_path / "mine")
    said = await piecework("models", "plan", str(tmp_path / "mine"), "--rows", "1")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("mine on ")
    assert any(line.split()[:3] == ["int4", "1,024", "1"] for line in lines), (
        "never beyond the model's context"
    )
    assert "for 1 sequence of 1,024 tokens" in lines[-1]


async def test_a_card_that_is_too_small_is_told_so() -> None:
    said = (await piecework("models", "plan", "--card", "4", "--json")).json()
    assert said["devices"][0]["precision"] is None
    assert "does not fit" in said["devices"][0]["reason"]


async def test_a_damaged_configuration_is_one_clear_line(tmp_path: Path) -> None:
    shutil.copytree(bundled_checkpoint_path(), tmp_path / "bad")
    (tmp_path / "bad" / "config.json").write_text("{")
    assert (
        "config.json: is not JSON"
        in (await piecework("models", "plan", str(tmp_path / "bad"))).line()
    )
