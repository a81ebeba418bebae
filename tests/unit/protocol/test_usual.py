"""What a worker says of its usual jobs, and what is believed of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_protocol.objects import Service
from piecework_protocol.pricing import Usage, price
from piecework_protocol.types import Amount, Uint32
from piecework_protocol.usual import (
    ENOUGH_JOBS,
    MEMBER,
    JobTotals,
    Source,
    UsualJobs,
    assumed,
    of_benchmark,
    of_receipts,
    price_with_steps,
    usual_jobs,
)
from tests.support.market.offers import model, offer

SAID = UsualJobs(600_000, 900_000, 213, 104, Source.RECEIPTS)


def believed(said: Any, **changes: Any) -> UsualJobs:
    """What is made of the member `usual` of an offer with one model."""
    served = model(**changes)
    signed = offer(models=(served,), details=json.dumps({MEMBER: said}))
    return usual_jobs(signed.offer, served)


def test_what_a_worker_says_of_its_receipts_is_read_back() -> None:
    assert believed([SAID.members()]) == SAID


def test_each_entry_of_an_offer_has_its_own_figures() -> None:
    models = (model("tale-1"), model("tale-2"), model("tale-3"))
    details = json.dumps({MEMBER: [None, SAID.members()]})
    made = offer(models=models, details=details).offer
    found = [usual_jobs(made, m).source for m in models]
    assert found == [Source.ASSUMED, Source.RECEIPTS, Source.ASSUMED]


@pytest.mark.parametrize(
    "said",
    [
        None,
        "much",
        [],
        [7],
        [{"jobs": 3}],
        [SAID.members() | {"jobs": True}],
        [SAID.members() | {"jobs": -1}],
        [SAID.members() | {"steps_per_million_output_tokens": {"p50": 1.5, "p90": 2}}],
        [SAID.members() | {"steps_per_million_output_tokens": {"p50": 900_000, "p90": 600_000}}],
        # Less than one step a canvas of 256 tokens, and more than 48 steps for one token.
        [SAID.members() | {"steps_per_million_output_tokens": {"p50": 3_905, "p90": 600_000}}],
        [SAID.members() | {"steps_per_million_output_tokens": {"p50": 1, "p90": 48_000_001}}],
    ],
)
def test_what_cannot_be_is_not_believed(said: Any) -> None:
    assert believed(said) == assumed(model())


def test_details_that_are_not_json_say_nothing() -> None:
    served = model()
    assert usual_jobs(offer(models=(served,), details="{").offer, served) == assumed(served)


def test_a_worker_that_counts_no_steps_may_say_so() -> None:
    none = UsualJobs(0, 0, 40, 80, Source.RECEIPTS)
    loose: dict[str, Any] = {
        "service": Service.BEST_EFFORT,
        "max_steps": Uint32(0),
        "price_per_thousand_steps": Amount(0),
    }
    assert believed([none.members()], **loose) == none
    assert price_with_steps(model(**loose), none.steps_p50) == 2_000_000


def test_too_few_jobs_give_no_figure() -> None:
    assert of_receipts([JobTotals(60, 100, ended=True)] * (ENOUGH_JOBS - 1)) is None


def test_figures_are_those_of_the_jobs_in_the_middle_and_at_nine_of_ten() -> None:
    jobs = [JobTotals(steps, 100, ended=True) for steps in range(1, 101)]
    found = of_receipts(jobs)
    assert found == UsualJobs(500_000, 900_000, 100, 100, Source.RECEIPTS)


def test_answers_that_a_limit_cut_say_nothing_of_the_length() -> None:
    cut = [JobTotals(10, 32, ended=False)] * 100
    whole = [JobTotals(50, 90, ended=True)] * ENOUGH_JOBS
    found, more = of_receipts(cut), of_receipts(cut + whole)
    assert found is not None and more is not None
    assert (found.output_tokens, more.output_tokens) == (None, 90)


def test_a_benchmark_is_named_as_what_it_is() -> None:
    found = of_benchmark(70, 100, 90)
    assert found == UsualJobs(700_000, 700_000, 0, 90, Source.BENCHMARK)
    assert of_benchmark(70, 0, None) is None


@given(steps=st.integers(1, 2_000), tokens=st.integers(1, 4_096), jobs=st.integers(20, 40))
def test_the_price_with_steps_is_what_a_job_of_that_kind_pays(
    steps: int, tokens: int, jobs: int
) -> None:
    served = model()
    found = of_receipts([JobTotals(steps, tokens, ended=True)] * jobs)
    assert found is not None
    paid = price(served, Usage(0, tokens, steps))
    foreseen = price_with_steps(served, found.steps_p50) * tokens / 1_000_000
    assert foreseen == pytest.approx(paid, abs=1.01 + tokens / 1_000_000)
