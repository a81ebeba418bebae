"""The committed artifacts of the contracts are of the sources beside them. No compiler is needed to
see that."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
TOOL = runpy.run_path(str(CONTRACTS / "tools" / "export_artifacts.py"))


@pytest.mark.parametrize("name", TOOL["CONTRACTS"])
def test_an_artifact_carries_the_hash_of_the_sources_and_settings(name: str) -> None:
    artifact = json.loads((CONTRACTS / "artifacts" / f"{name}.json").read_text())
    assert artifact["sourceHash"] == TOOL["source_hash"](), (
        "run `make contracts`, then contracts/tools/export_artifacts.py"
    )


def test_the_hash_is_of_every_source_and_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "src" / "inner").mkdir(parents=True)
    files = [tmp_path / "src" / "inner" / "A.sol", *(tmp_path / n for n in TOOL["SETTINGS"])]
    for file in files:
        file.write_text("one")
    before = TOOL["source_hash"](tmp_path)
    for file in files:
        file.write_text("two")
        assert TOOL["source_hash"](tmp_path) != before
        file.write_text("one")
    assert TOOL["source_hash"](tmp_path) == before
