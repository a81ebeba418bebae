"""The benchmark of reads: every read is answered, and what is reported was measured."""

from __future__ import annotations

import pytest

from bench.reads import measure, reads, serve
from piecework_model.checkpoint.loading import LoadedModel, load


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return load(device="cpu", dtype="float32")


def test_every_read_is_answered_at_any_number_in_flight(tiny: LoadedModel) -> None:
    for in_flight in (1, 5, 64):
        done = serve(tiny, reads(tiny, 6, shared=False), in_flight)
        assert len(done.delays_s) == 6
        assert done.rates[0] > 0


def test_a_shared_state_is_shared_and_others_are_not(tiny: LoadedModel) -> None:
    own, shared = (reads(tiny, 3, shared=shared) for shared in (False, True))
    assert len({request.prompt_ids[:128] for request in own}) == 3
    assert len({request.prompt_ids[:128] for request in shared}) == 1
    assert len({request.prompt_ids for request in shared}) == 3


def test_the_report_has_every_number_in_flight_with_its_spread() -> None:
    report = measure("tiny", (1, 2), repeat=2, threads=1, count=4)
    for state in ("own_state", "shared_state"):
        assert set(report[state]) == {"1", "2"}
        for done in report[state].values():
            assert (
                0
                < done["reads_per_second_min"]
                <= done["reads_per_second"]
                <= done["reads_per_second_max"]
            )
