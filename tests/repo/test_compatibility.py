"""The table of what the gateway speaks names a test in each of its cells."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.source_facts import facts_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "apps" / "compatibility.md"


def names() -> set[str]:
    """The names of all tests."""
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for _, name, _ in facts_of(path).functions
    }


def test_each_feature_of_the_table_names_a_test_that_exists() -> None:
    table = PAGE.read_text().split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    known = names()
    for row in rows:
        ours = row.split("|")[2]
        named = re.findall(r"`(test_\w+)`", ours)
        assert named, row
        assert set(named) <= known, row
