"""Which worker gets a request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.client.jobs.requests import Filters, Generation, TextRequest, job_parameters
from piecework.client.jobs.selection import (
    AFTER_REFUSAL,
    BUSY_REASONS,
    Choice,
    Next,
    Ranking,
    rank,
    resolve,
)
from piecework.client.journal.learning import learn, learn_broken, reliability
from piecework.client.journal.records import Experience
from piecework.client.limits import EXPERIENCE_HALF_LIFE_S
from piecework_protocol.client_session import TEMPLATE_TOKENS
from piecework_protocol.content import decode_prompt
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.objects import Parameters, Service
from piecework_protocol.pricing import worst_case
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
    to_hex,
)
from tests.support.client_side import ask
from tests.support.fake_chain import TOKEN_INFO
from tests.support.offers import model, offer, operator

NOW = 1_800_000_000


def choose(*offers: Any, memories: Any = (), request: Any = None, **filters: Any) -> Ranking:
    known = {m.operator: m for m in memories}
    return rank(request or ask(), offers, known, Filters(now=NOW, token=TOKEN_INFO, **filters))


def signed_for(choice: Choice, seed: int) -> Parameters:
    return job_parameters(choice.model, choice.generation, seed)


def names(ranking: Ranking) -> list[Address]:
    return [choice.operator for choice in ranking.choices]


def memory(name: str, **values: Any) -> Experience:
    return Experience(operator(name).address, updated_at=Timestamp(NOW), **values)


def test_the_cheaper_of_two_equal_workers_is_first() -> None:
    dear = offer("dear", models=(model(price_per_million_output_tokens=Amount(3_000_000)),))
    cheap = offer("cheap", models=(model(price_per_million_output_tokens=Amount(1_000_000)),))
    assert names(choose(dear, cheap))[0] == operator("cheap").address


def test_waiting_is_worth_money() -> None:
    slow = offer("slow", models=(model(tokens_per_second=Uint32(10)),))
    price = Amount(2_500_000)
    fast = offer(
        "fast",
        models=(model(tokens_per_second=Uint32(1000), price_per_million_output_tokens=price),),
    )
    assert names(choose(slow, fast, second_is_worth=100))[0] == operator("fast").address
    assert names(choose(slow, fast, second_is_worth=0))[0] == operator("slow").address


def test_failures_count_against_a_worker_and_fade() -> None:
    bad, good = (
        offer("bad"),
        offer("good", models=(model(price_per_million_output_tokens=Amount(2_200_000)),)),
    )
    failures = memory("bad", failures=10.0)
    assert names(choose(bad, good, memories=[failures]))[0] == operator("good").address
    long_ago = Experience(
        operator("bad").address, failures=10.0, updated_at=Timestamp(NOW - 30 * 86400)
    )
    assert names(choose(bad, good, memories=[long_ago]))[0] == operator("bad").address


def test_experience_halves_with_its_half_life() -> None:
    first = learn(Experience(operator("a").address), Timestamp(NOW), success=True)
    later = learn(first, Timestamp(NOW + EXPERIENCE_HALF_LIFE_S), success=False)
    assert (later.successes, later.failures) == (0.5, 1.0)
    assert 0 < reliability(later, Timestamp(NOW)) < reliability(first, Timestamp(NOW)) < 1


def test_a_worker_that_broke_a_clause_is_left_alone_for_a_while() -> None:
    broken = learn_broken(Experience(operator("worker").address), Timestamp(NOW - 60), "4.4")
    ranking = choose(offer(), memories=[broken])
    assert ranking.choices == ()
    assert "broke clause 4.4 before" in ranking.unfit[0]
    old = learn_broken(Experience(operator("worker").address), Timestamp(NOW - 30 * 86400), "4.4")
    assert len(choose(offer(), memories=[old]).choices) == 1


def test_a_full_worker_comes_last_and_not_never() -> None:
    full = offer("full", slots_free=Uint32(0), queue_free=Uint32(0), models=(model(),))
    free = offer("free", models=(model(price_per_million_output_tokens=Amount(9_000_000)),))
    assert names(choose(full, free)) == [operator("free").address, operator("full").address]


@pytest.mark.parametrize(
    ("changes", "request_changes", "filters", "why"),
    [
        ({"expires_at": Timestamp(NOW)}, {}, {}, "expired"),
        ({"tokens": (Address(bytes(20)),)}, {}, {}, "does not take the client's token"),
        ({"min_withdrawal_delay": 40 * 86400}, {}, {}, "withdrawal delay"),
        ({}, {"max_tokens": 5000}, {}, "writes at most 4096 tokens"),
        ({}, {"max_steps": 49}, {}, "at most 48 denoising steps"),
        ({}, {"max_price": Amount(10)}, {}, "the limit is 0.00001 tUSDC"),
        ({}, {}, {"max_job_price": Amount(20)}, "the limit is 0.00002 tUSDC"),
        ({}, {}, {"max_price_per_million_output": Amount(5)}, "the limit is 0.000005 tUSDC"),
    ],
)
def test_who_does_not_fit_is_told_why(
    changes: dict[str, Any], request_changes: dict[str, Any], filters: dict[str, Any], why: str
) -> None:
    ranking = choose(offer(**changes), request=ask(**request_changes), **filters)
    assert ranking.choices == ()
    assert why in ranking.unfit[0]
    assert to_hex(operator("worker").address) in ranking.unfit[0]


def test_a_model_is_found_by_name_or_digest() -> None:
    digest = to_hex(Digest(keccak256(b"tale-1")))
    for wanted in ("tale-1", digest, digest.upper().replace("0X", "0x"), None):
        assert len(choose(offer(), request=ask(model=wanted)).choices) == 1
    missing = choose(offer(), request=ask(model="epic"))
    assert not missing.model_known
    assert missing.choices == ()


def test_the_ceiling_covers_whatever_an_honest_worker_may_charge() -> None:
    request = ask("x" * 1000, max_tokens=700)
    (choice,) = choose(offer(), request=request).choices
    prompt_tokens = len(request.prompt) + TEMPLATE_TOKENS
    assert choice.ceiling == worst_case(choice.model, signed_for(choice, 0), prompt_tokens)
    assert choice.expected <= choice.ceiling


def test_open_parameters_are_taken_from_the_model() -> None:
    small = model(max_output=Uint32(100), max_steps=Uint32(16))
    resolved = resolve(Generation(), small)
    assert (resolved.max_tokens, resolved.max_steps) == (100, 16)
    assert resolve(Generation(max_tokens=7, max_steps=3), small) == Generation(
        max_tokens=7, max_steps=3
    )


def test_ranking_does_not_depend_on_the_order_of_the_offers() -> None:
    offers = [offer(f"w{i}") for i in range(6)]
    assert names(choose(*offers)) == names(choose(*reversed(offers)))


def test_every_refusal_has_an_answer_and_being_busy_is_not_held_against_anyone() -> None:
    assert set(AFTER_REFUSAL) == set(Reason)
    assert {AFTER_REFUSAL[reason] for reason in BUSY_REASONS} == {Next.TRY_OTHER}


LOOSE: dict[str, Any] = {
    "service": Service.BEST_EFFORT,
    "max_steps": Uint32(0),
    "price_per_thousand_steps": Amount(0),
}


def test_a_client_asks_for_replayable_unless_it_says_otherwise() -> None:
    ranking = choose(offer("loose", models=(model(**LOOSE),)), offer("exact"))
    assert names(ranking) == [operator("exact").address]
    assert "best effort" in ranking.unfit[0]


def test_a_client_that_allows_best_effort_takes_the_better_of_both() -> None:
    cheap = model(price_per_million_output_tokens=Amount(10), **LOOSE)
    ranking = choose(offer("loose", models=(cheap,)), offer("exact"), request=ask(best_effort=True))
    assert names(ranking) == [operator("loose").address, operator("exact").address]
    first, second = ranking.choices
    assert signed_for(first, 7) == best_effort_parameters(Uint32(first.generation.max_tokens or 0))
    assert (signed_for(second, 7).seed, signed_for(second, 7).service) == (7, Service.REPLAYABLE)
    assert first.ceiling == worst_case(
        cheap, signed_for(first, 7), TEMPLATE_TOKENS + len(ask().prompt)
    )


@pytest.mark.parametrize(
    "given", [{"seed": 0}, {"max_steps": 8}, {"temperature_end": 400_000}, {"stability_steps": 1}]
)
def test_a_request_that_sets_what_best_effort_cannot_honour_goes_to_replayable_only(
    given: dict[str, Any],
) -> None:
    loose = offer("loose", models=(model(**LOOSE),))
    ranking = choose(loose, offer("exact"), request=ask(best_effort=True, **given))
    assert names(ranking) == [operator("exact").address]
    assert next(iter(given)) in ranking.unfit[0]


def test_a_prompt_is_encoded_as_the_request_is_made() -> None:
    request = ask("a fox")
    assert decode_prompt(request.prompt) == request.messages
    with pytest.raises(MalformedInput):
        TextRequest(())


@given(
    given=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1, 4096),
            "max_steps": st.integers(1, 48),
            "temperature_start": st.integers(0, 2_000_000),
            "temperature_end": st.integers(0, 2_000_000),
            "entropy_bound": st.integers(0, 10**6),
            "confidence_threshold": st.integers(0, 10**6),
            "stability_steps": st.integers(0, 9),
        },
    ),
    seed=st.integers(0, 2**64 - 1),
)
def test_what_is_given_is_signed_as_given_and_the_rest_is_the_default(
    given: dict[str, int], seed: int
) -> None:
    served = model()
    signed = job_parameters(served, resolve(Generation(**given), served), seed)  # type: ignore[arg-type]
    defaults = job_parameters(served, resolve(Generation(), served), 0)
    for name in ("max_tokens", "max_steps", *[n for n in given if not n.startswith("max")]):
        assert getattr(signed, name) == given.get(name, getattr(defaults, name))
    assert (signed.seed, signed.service) == (seed, Service.REPLAYABLE)
    assert signed.replace(seed=Uint64(0), **given) == defaults.replace(**given)
