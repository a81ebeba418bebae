"""The engine's benchmark: the same requests for every way, clients that wait for their answers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import baseline
from bench.baseline import BaselineSetting
from bench.engine import ours, overhead
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
