"""The engine's benchmark: the same requests for every way, clients that wait for their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import baseline
from bench.baseline import BaselineSetting
from bench.engine import compare, ours, overhead, ratios, summary
from bench.workload import Streams, workload
from piecework_model.checkpoint.loading import LoadedModel, load


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load(device="cpu", dtype="float32")


def test_a_client_asks_again_only_when_it_has_its_answer(tiny: LoadedModel) -> None:
    requests = workload(tiny, "tiny", 5)
    streams = Streams(requests, 2, gap_s=1.0)
    assert [arrival.at_s for arrival in streams.due(0.5, 8)] == [0.0]
    assert [arrival.at_s for arrival in streams.due(9.0, 8)] == [1.0]
    assert streams.empty
    streams.answered(10.0)
    (third,) = streams.due(10.0, 8)
    assert (third.request, third.at_s) == (requests[2], 10.0)


def test_the_workload_is_the_same_every_time_and_mixed(tiny: LoadedModel) -> None:
    requests = workload(tiny, "tiny", 20)
    assert requests == workload(tiny, "tiny", 20)
    assert len({len(request.prompt_ids) for request in requests}) > 10


def test_both_ways_answer_every_request(tiny: LoadedModel) -> None:
    requests = [
        replace(request, max_tokens=32, max_steps=3) for request in workload(tiny, "tiny", 3)
    ]
    for served in (
        ours(tiny, Streams(requests, 2, 0.0), 2),
        baseline.serve(tiny, Streams(requests, 2, 0.0), 8, BaselineSetting("eager", 1)),
    ):
        assert len(served.delays_s or []) == 3
        assert 0 < served.tokens <= 96
        assert served.rate > 0


def test_a_step_is_divided_into_the_forward_pass_and_the_rest(tiny: LoadedModel) -> None:
    measured = overhead(tiny, "tiny")
    assert measured["forward_ms"] > 0
    rest = 1 - measured["forward_ms"] / measured["step_ms"]
    assert measured["around_share"] == pytest.approx(rest, abs=1e-3)


def test_runs_are_summed_up_by_the_best_the_median_and_their_spread() -> None:
    assert summary([100.0, 80.0, 90.0]) == {
        "tokens_per_second": 100.0,
        "median_tokens_per_second": 90.0,
        "spread": 0.222,
    }


def test_a_disturbed_turn_does_not_move_the_ratio() -> None:
    """The third turn was slow for everybody, and most of all for ours."""
    ratio, turns = ratios([150.0, 148.0, 30.0], [90.0, 100.0, 50.0], [80.0, 95.0, 60.0])
    assert ratio == 1.5
    assert list(turns) == pytest.approx([0.5, 1.48, 1.667], abs=1e-3)


def test_the_ways_take_turns(tiny: LoadedModel) -> None:
    requests = [replace(r, max_tokens=32, max_steps=3) for r in workload(tiny, "tiny", 2)]
    made = compare(tiny, requests, 1, 2, 0.0)
    assert made["requests"] == 2 and len(made["ratio_turns"]) == 3
    for way in ("ours", "generate_one", "generate_padded"):
        assert made[way]["tokens_per_second"] >= made[way]["median_tokens_per_second"] > 0
    assert made["ratio"] > 0
