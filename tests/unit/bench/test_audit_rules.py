"""What the rules find of the benchmark's workers: nothing of an honest one."""

from __future__ import annotations

from dataclasses import fields

import pytest

from bench.audit_measure import BFLOAT16, OTHER_CHUNKS, Measuring, Models
from bench.audit_rules import found

pytestmark = pytest.mark.model
CANVASES = 16


@pytest.fixture(scope="module")
def models() -> Models:
    return Models("cpu", None, None)


def test_another_cut_changes_nothing_but_the_cut(models: Models) -> None:
    asked, cut = models.of(BFLOAT16).limits, models.of(OTHER_CHUNKS).limits
    assert [getattr(asked, f.name) for f in fields(asked)] == [
        getattr(cut, f.name) for f in fields(asked)
    ]
    assert asked.chunk_tokens == 2 * cut.chunk_tokens


@pytest.mark.parametrize(
    ("worker", "least", "most"),
    [
        ("bfloat16", 0, 0),
        ("other-chunks", 0, 0),
        # An answer with a form may have a canvas without a free position.
        ("other-seed", CANVASES - 5, CANVASES),
        ("cached", CANVASES, CANVASES),
        ("edited", CANVASES, CANVASES),
        ("invented", CANVASES, CANVASES),
    ],
)
def test_the_rules_find_what_was_not_computed_and_blame_no_honest_worker(
    models: Models, worker: str, least: int, most: int
) -> None:
    row = found(models, Measuring(models), worker, CANVASES)
    assert row["canvases"] == CANVASES
    assert least <= row["break_a_rule"] <= most, row
