"""The judgement of forced audits: tails, thresholds, what decides, and pairs without a row."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from piecework_model.audit.judgement import (
    AVERAGED,
    LEAST_THRESHOLDS,
    SUSPECTS,
    TESTS,
    Pairing,
    Tail,
    dump_table,
    fit_tail,
    judge,
    load_table,
    threshold,
)
from piecework_model.errors import AuditError
from piecework_model.precision import precision_name

PAIR = Pairing("00" * 32, "text", "bfloat16", "float32")
TAIL = Tail(start=0.0, share=0.1, scale=0.1, shape=0.0)
TAILS = dict.fromkeys(TESTS, TAIL)


@dataclass(frozen=True)
class Scored:
    logits: float | None = 1.0
    soft: float | None = 1.0
    argmax: float | None = 0.0
    sampling: float | None = 0.0


def test_the_tail_of_an_exponential_is_found_again() -> None:
    draw = random.Random(1)
    tail = fit_tail("argmax", [draw.expovariate(10) for _ in range(20_000)])
    assert tail.shape < 0.15
    assert tail.quantile(1e-4) == pytest.approx(math.log(1e4) / 10, rel=0.15)
    assert tail.quantile(0.1) == pytest.approx(math.log(10) / 10, rel=0.05)


def test_a_heavy_tail_is_extrapolated_further() -> None:
    draw = random.Random(2)
    heavy = fit_tail("argmax", [draw.paretovariate(3) for _ in range(20_000)])
    assert heavy.shape == pytest.approx(1 / 3, abs=0.12)
    assert heavy.quantile(1e-5) > heavy.quantile(1e-4) > heavy.quantile(1e-3)


@pytest.mark.parametrize("shape", [0.0, 0.3])
def test_what_lies_beyond_a_quantile_is_its_share(shape: float) -> None:
    tail = Tail(start=1.0, share=0.1, scale=0.2, shape=shape)
    for share in (0.1, 0.01, 1e-5):
        assert tail.beyond(tail.quantile(share)) == pytest.approx(share)
    assert tail.beyond(0.0) == 0.1


def test_nothing_lies_beyond_scores_that_are_all_the_same() -> None:
    tail = fit_tail("argmax", [0.05] * 100)
    assert (tail.beyond(0.05), tail.beyond(0.04)) == (0.0, 0.1)


def test_a_short_tail_promises_no_largest_value() -> None:
    draw = random.Random(3)
    tail = fit_tail("argmax", [draw.random() for _ in range(5000)])
    assert tail.shape == 0.0
    assert tail.quantile(1e-6) > 1.0


def test_few_canvases_show_no_tail() -> None:
    with pytest.raises(ValueError, match="19 canvases"):
        fit_tail("logits", [1.0] * 19)


@pytest.mark.parametrize("test", TESTS)
def test_a_score_fails_exactly_above_its_threshold(test: str) -> None:
    limit = threshold(test, TAIL)
    assert judge(Scored(**{test: limit * 0.999}), TAILS).passed
    judged = judge(Scored(**{test: limit * 1.001}), TAILS)
    (failure,) = judged.failures
    assert (failure.test, failure.threshold) == (test, limit)
    assert judged.decides is (test not in AVERAGED)


def test_a_canvas_with_a_changed_token_is_decided_whatever_else_it_shows() -> None:
    far = Scored(logits=9.0, soft=9.0, argmax=11.0)
    assert judge(far, TAILS).decides
    assert not judge(replace(far, argmax=0.0), TAILS).decides
    assert not judge(Scored(), TAILS).decides


def test_one_position_may_move_far_before_a_canvas_fails() -> None:
    """An engine that takes another expert moves it more than any tail of some hundred canvases."""
    for test, least in LEAST_THRESHOLDS.items():
        none = fit_tail(test, [0.0] * 100)
        assert judge(Scored(**{test: least}), {test: none}).passed
        assert not judge(Scored(**{test: least + 0.01}), {test: none}).passed


def test_what_has_no_score_or_no_tail_is_not_judged() -> None:
    nothing = Scored(logits=None, soft=None, argmax=None, sampling=None)
    assert judge(nothing, TAILS).passed
    assert judge(Scored(argmax=99.0), {}).passed


def test_honest_canvases_look_wrong_as_rarely_as_promised() -> None:
    draw = random.Random(4)

    def logits() -> float:
        return math.exp(draw.gauss(0, 0.1))

    tails = {"logits": fit_tail("logits", [logits() for _ in range(2000)])}
    failed = sum(not judge(Scored(logits=logits()), tails).passed for _ in range(20_000))
    assert failed <= 4 * SUSPECTS * 20_000


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text(dump_table({PAIR: TAILS}, "python -m bench.audit"))
    assert load_table(file) == {PAIR: TAILS}
    assert json.loads(file.read_text())["source"] == "python -m bench.audit"


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other", "rows": []}'])
def test_another_file_is_no_table(tmp_path: Path, text: str) -> None:
    file = tmp_path / "thresholds.json"
    file.write_text(text)
    with pytest.raises(AuditError, match=r"thresholds\.json"):
        load_table(file)


def test_the_table_of_the_package_can_be_read() -> None:
    for pairing, tails in load_table().items():
        assert len(bytes.fromhex(pairing.model)) == 32
        assert set(tails) <= set(TESTS)


def test_a_precision_has_one_name() -> None:
    assert precision_name("bfloat16", "none") == "bfloat16"
    assert precision_name("bfloat16", "fp8") == "bfloat16+fp8"
