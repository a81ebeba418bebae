"""Which worker gets a request."""

from __future__ import annotations

import json
from dataclasses import replace
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
    affordable,
    ceiling_of,
    rank,
    within_cap,
)
from piecework.client.journal.learning import learn, learn_broken, reliability
from piecework.client.journal.records import (
    AnswerLength,
    Experience,
    Measured,
    Memories,
    PaidTariff,
)
from piecework.client.limits import EXPERIENCE_HALF_LIFE_S
from piecework_protocol.conversation import most_prompt_tokens
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.limits import MIN_TEMPERATURE_MICROS
from piecework_protocol.objects import Kind, Parameters, Service
from piecework_protocol.pricing import worst_case
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    Micros,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
    to_hex,
)
from piecework_protocol.usual import MEMBER, Source, UsualJobs
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.client.client_side import ask
from tests.support.market.offers import model, offer, operator

NOW = 1_800_000_000


def choose(*offers: Any, memories: Any = (), request: Any = None, **filters: Any) -> Ranking:
    known = {m.operator: m for m in memories}
    return rank(
        request or ask(), offers, Memories(known), Filters(now=NOW, token=TOKEN_INFO, **filters)
    )


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


def test_the_fee_for_an_opening_is_shown_and_counts_as_far_as_the_job_uses_the_deposit() -> None:
    asks = offer("asks", open_fee=Amount(40_000))
    free = offer("free", models=(model(price_per_million_output_tokens=Amount(2_100_000)),))
    (first, second) = choose(asks, free).choices
    assert (first.operator, first.fee) == (operator("free").address, 0)
    assert (second.operator, second.fee) == (operator("asks").address, 40_000)
    # Over a deposit of many jobs the fee of one opening is next to nothing.
    assert names(choose(asks, free, deposit=Amount(10**15)))[0] == operator("asks").address


def test_where_a_channel_is_open_no_opening_is_paid_for() -> None:
    asks = offer("asks", open_fee=Amount(40_000), top_up_fee=Amount(50_000))
    opened = Memories(opened=frozenset({operator("asks").address}))
    known = Filters(now=NOW, token=TOKEN_INFO, max_fee=Amount(50_000))
    (choice,) = rank(ask(), [asks], opened, known).choices
    assert choice.fee == 0
    less = Filters(now=NOW, token=TOKEN_INFO, max_fee=Amount(49_999))
    (why,) = rank(ask(), [asks], opened, less).unfit
    assert "topping up a channel, the limit max_fee is 0.049999" in why


def test_a_worker_that_asks_too_much_for_an_opening_is_left_out() -> None:
    asks = offer("asks", open_fee=Amount(500_001))
    (why,) = choose(asks, max_fee=Amount(500_000)).unfit
    assert "asks 0.500001 tUSDC for opening a channel, the limit max_fee is 0.50 tUSDC" in why
    assert choose(asks, max_fee=Amount(500_001)).choices


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


FULL: Any = {"slots_free": Uint32(0), "queue_free": Uint32(0)}


def priced(name: str, factor: int, **changes: Any) -> Any:
    """An offer whose three prices are a multiple of a base."""
    tariff = model(
        price_per_million_prompt_tokens=Amount(50_000 * factor),
        price_per_million_output_tokens=Amount(200_000 * factor),
        price_per_thousand_steps=Amount(1_000 * factor),
    )
    place = {"endpoint": f"{name}.example:7000"}
    return offer(name, models=(tariff,), **(place | changes))


def capped(*offers: Any, memories: Memories | None = None, **changes: Any) -> Ranking:
    """What is left of offers whose workers all answered a dial."""
    known, answered = memories or Memories(), {o.offer.operator for o in offers}
    filters = Filters(now=NOW, token=TOKEN_INFO, price_cap=3.0, **changes)
    return within_cap(rank(ask(), offers, known, filters), answered, known, filters)


def test_a_full_worker_costs_waiting_time_and_is_no_reason_to_pay_any_price() -> None:
    full, same, dear = priced("full", 10, **FULL), priced("same", 10), priced("dear", 50_000)
    assert names(choose(full, same)) == [operator("same").address, operator("full").address]
    assert names(choose(full, dear)) == [operator("full").address, operator("dear").address]


def test_an_entry_that_is_full_counts_as_full_though_its_worker_has_free_slots() -> None:
    model = offer("cards").offer.models[0]
    lines = (model, model.replace(profile="another profile"))
    places = [
        {"slots": 1, "slots_free": 0, "queue_free": 0},
        {"slots": 1, "slots_free": 1, "queue_free": 1},
    ]
    cards = offer("cards", models=lines, details=json.dumps({"capacity": places}))
    assert cards.offer.slots_free > 0
    full = {choice.model.profile: choice.full for choice in choose(cards).choices}
    assert full == {model.profile: True, "another profile": False}


def test_a_worker_that_asks_5000_times_as_much_gets_no_job_though_the_cheap_one_is_full() -> None:
    ranking = capped(priced("cheap", 1, **FULL), priced("dear", 5_000))
    assert names(ranking) == [operator("cheap").address]
    assert "more than 3 times what others ask" in ranking.unfit[0]


def test_the_cap_is_a_multiple_of_the_median_of_those_that_answer() -> None:
    market = [priced(f"w{factor}", factor) for factor in (100, 120, 150, 290, 310, 900)]
    assert {operator("w310").address, operator("w290").address} <= set(names(capped(*market)))
    assert operator("w900").address not in names(capped(*market))


def test_offers_that_share_an_endpoint_count_once_for_the_median() -> None:
    crowd = [priced(f"crowd{n}", 5_000, endpoint="crowd.example:1") for n in range(20)]
    honest = [priced("ada", 1), priced("bob", 2)]
    kept = names(capped(*crowd, *honest))
    assert set(kept) == {operator("ada").address, operator("bob").address}


def test_those_that_do_not_answer_or_rest_set_no_cap() -> None:
    silent = Experience(operator("cheap").address, silences=1.0, silent_at=Timestamp(NOW))
    memories = Memories({silent.operator: silent})
    offers = [priced("cheap", 1), priced("honest", 1_000)]
    assert names(capped(*offers, memories=memories))[0] == operator("honest").address
    filters = Filters(now=NOW, token=TOKEN_INFO, price_cap=3.0)
    ranking = rank(ask(), offers, Memories(), filters)
    kept = within_cap(ranking, {operator("honest").address}, Memories(), filters)
    assert operator("honest").address in names(kept)


def test_what_was_paid_last_is_never_too_much() -> None:
    cheap, known = priced("cheap", 1), priced("known", 10)
    digest = known.offer.models[0].digest
    paid = PaidTariff(digest, Amount(500_000), Amount(2_000_000), Amount(10_000))
    assert len(capped(cheap, known).choices) == 1
    assert len(capped(cheap, known, memories=Memories(tariffs={digest: paid})).choices) == 2


def test_a_worker_that_was_silent_comes_last_and_not_never() -> None:
    silent = Experience(operator("cheap").address, silences=1.0, silent_at=Timestamp(NOW))
    ranking = choose(priced("cheap", 1), priced("other", 2), memories=[silent])
    assert names(ranking) == [operator("other").address, operator("cheap").address]


def measured(jobs: float, *, slow: float = 1.0, steps: float = 1.0) -> Memories:
    """Own jobs that took so many times what was claimed."""
    address, digest = operator("worker").address, Digest(keccak256(b"tale-1"))
    row = Measured(
        address,
        digest,
        jobs=jobs,
        seconds=jobs * 5 * slow,
        claimed_seconds=jobs * 5,
        steps=jobs * 100 * steps,
        usual_steps=jobs * 100,
        updated_at=Timestamp(NOW),
    )
    return Memories(measured={(address, digest): row})


def only(memories: Memories) -> Choice:
    (choice,) = rank(ask(), [offer()], memories, Filters(now=NOW, token=TOKEN_INFO)).choices
    return choice


def test_a_claim_fades_out_over_twenty_jobs_of_the_clients_own() -> None:
    claimed = only(Memories())
    for jobs, weight in ((0, 0.0), (5, 0.25), (20, 1.0), (200, 1.0)):
        slow = only(measured(jobs, slow=3.0))
        assert slow.seconds == pytest.approx(claimed.seconds * (1 + 2 * weight))
        frugal = only(measured(jobs, steps=0.5))
        assert frugal.usage.denoising_steps == round(
            claimed.usage.denoising_steps * (1 - weight / 2)
        )
        assert frugal.expected <= claimed.expected


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"max_tokens": 5000}, "max_tokens_too_large", "max_tokens"),
        ({"max_steps": 49}, "max_steps_too_large", "piecework.max_steps"),
        ({"max_price": Amount(1)}, "max_price_too_low", "piecework.max_price"),
    ],
)
def test_what_no_worker_can_give_is_the_callers_mistake(
    changes: dict[str, Any], code: str, param: str
) -> None:
    large = model(max_output=Uint32(6000), max_steps=Uint32(64))
    ranking = choose(offer("ada"), offer("bob"), request=ask(**changes))
    assert ranking.mistake is not None
    assert (ranking.mistake.code, ranking.mistake.param) == (code, param)
    # Another worker could, and merely cannot be used now.
    expired = offer("eve", models=(large,), expires_at=Timestamp(NOW))
    if code != "max_price_too_low":
        assert choose(offer("ada"), expired, request=ask(**changes)).mistake is None


def test_the_default_leaves_room_for_the_prompt() -> None:
    small = model(max_context=Uint32(1024), max_output=Uint32(992), canvas_size=Uint32(32))
    assert ask("x" * 1196).resolved(small).max_tokens == 704
    assert ask("x" * 8000).resolved(small).max_tokens == 32
    large = model(max_context=Uint32(1 << 18), max_output=Uint32(1 << 17))
    assert ask().resolved(large).max_tokens == 4096
    assert ask().resolved(large, 100_000).max_tokens == 100_000


@given(limit=st.integers(0, 60_000), tokens=st.integers(1, 4096), words=st.integers(1, 3000))
def test_what_is_shortened_to_a_limit_is_the_longest_answer_within_it(
    limit: int, tokens: int, words: int
) -> None:
    served, request = model(), ask("x" * words)
    whole = Generation(max_tokens=tokens, max_steps=48)
    short = affordable(request, whole, served, Amount(limit))
    chosen, canvas = short.max_tokens or 0, served.canvas_size
    assert 0 < chosen <= tokens and (chosen % canvas == 0 or chosen == tokens)
    assert ceiling_of(request, short, served) <= limit or chosen == min(tokens, canvas)
    if chosen < tokens:
        longer = Generation(max_tokens=min(tokens, chosen + canvas), max_steps=48)
        assert ceiling_of(request, longer, served) > limit


def test_without_max_tokens_the_answer_is_as_long_as_every_limit_can_pay() -> None:
    (whole,) = choose(offer()).choices
    half = Amount(whole.ceiling // 2)
    for limits in ({"max_job_price": half}, {"left": half}):
        (choice,) = choose(offer(), **limits).choices
        assert 0 < (choice.generation.max_tokens or 0) < (whole.generation.max_tokens or 0)
        assert choice.ceiling <= half
    (own,) = choose(offer(), request=ask(max_price=half)).choices
    assert own.ceiling <= half


def test_a_length_that_a_price_limit_forbids_is_the_requests_mistake() -> None:
    ranking = choose(offer(), request=ask(max_tokens=1000), max_job_price=Amount(10))
    assert ranking.choices == () and ranking.mistake is not None
    assert (ranking.mistake.code, ranking.mistake.param) == ("over_price_limit", "max_tokens")


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
    most = most_prompt_tokens(request.conversation)
    assert choice.ceiling == worst_case(choice.model, Kind.TEXT, signed_for(choice, 0), most)
    assert choice.expected <= choice.ceiling


def test_open_parameters_are_taken_from_the_model() -> None:
    small = model(max_output=Uint32(100), max_steps=Uint32(16))
    resolved = ask().resolved(small)
    assert (resolved.max_tokens, resolved.max_steps) == (100, 16)
    assert ask(max_tokens=7, max_steps=3).resolved(small) == Generation(max_tokens=7, max_steps=3)


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
        cheap, Kind.TEXT, signed_for(first, 7), most_prompt_tokens(ask().conversation)
    )


@pytest.mark.parametrize("temperature", [0, 0.0, 0.001])
def test_a_temperature_of_zero_is_the_least_that_a_model_takes(temperature: float) -> None:
    served = model()
    request = TextRequest.of("a fox", temperature=temperature)
    given = job_parameters(served, request.resolved(served), 0)
    assert given.temperature_start == given.temperature_end == MIN_TEMPERATURE_MICROS
    own = Generation(temperature_start=Micros(0), temperature_end=Micros(0))
    signed = job_parameters(served, replace(own, max_tokens=1, max_steps=1), 0)
    assert signed.temperature_start == signed.temperature_end == MIN_TEMPERATURE_MICROS


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
    assert TextContent.decode(request.prompt) == request.content
    with pytest.raises(MalformedInput):
        TextRequest.of([])


@given(
    given=st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1, 4096),
            "max_steps": st.integers(1, 48),
            "temperature_start": st.integers(MIN_TEMPERATURE_MICROS, 2_000_000),
            "temperature_end": st.integers(MIN_TEMPERATURE_MICROS, 2_000_000),
            "entropy_bound": st.integers(0, 10**6),
            "confidence_threshold": st.integers(0, 10**6),
            "stability_steps": st.integers(0, 9),
        },
    ),
    seed=st.integers(0, 2**64 - 1),
)
def test_what_is_given_is_signed_as_given_and_the_rest_is_the_default(
    given: dict[str, Any], seed: int
) -> None:
    served = model()
    signed = job_parameters(served, ask(**given).resolved(served), seed)
    defaults = job_parameters(served, ask().resolved(served), 0)
    for name in ("max_tokens", "max_steps", *[n for n in given if not n.startswith("max")]):
        assert getattr(signed, name) == given.get(name, getattr(defaults, name))
    assert (signed.seed, signed.service) == (seed, Service.REPLAYABLE)
    assert signed.replace(seed=Uint64(0), **given) == defaults.replace(**given)


def claiming(
    name: str, steps: int, length: int | None = None, *, jobs: int = 100, **changes: Any
) -> SignedOffer:
    """A worker that says so of the steps for a million output tokens, and of its answers."""
    source = Source.RECEIPTS if jobs else Source.BENCHMARK
    said = UsualJobs(steps, 2 * steps, jobs, length, source)
    details = json.dumps({MEMBER: [said.members()]})
    return offer(name, models=(model(**changes),), details=details)


def test_what_a_worker_says_of_its_steps_moves_the_quote_and_fades_out() -> None:
    signed = claiming("worker", 150_000)
    assumed_steps = 27_000_000 // 256
    for jobs, weight in ((0, 0.0), (5, 0.25), (20, 1.0)):
        (choice,) = rank(
            ask(max_tokens=1024), [signed], measured(jobs), Filters(now=NOW, token=TOKEN_INFO)
        ).choices
        steps = (1 - weight) * 150_000 + weight * assumed_steps
        assert choice.usage.denoising_steps == pytest.approx(steps * 1.024 / 1_000, abs=1)
        assert choice.rate.expected == pytest.approx(2_000_000 + steps, rel=0.001)
        assert (choice.rate.claimed_p50, choice.rate.claimed_p90) == (2_150_000, 2_300_000)


def test_a_limit_of_the_price_of_output_counts_its_steps() -> None:
    cheap, dear = claiming("cheap", 100_000), claiming("dear", 900_000)
    ranking = choose(cheap, dear, max_price_per_million_output=Amount(2_500_000))
    assert names(ranking) == [operator("cheap").address]
    assert "2.90 tUSDC with their denoising steps" in ranking.unfit[0]


def test_nobody_looks_cheaper_by_claiming_short_answers() -> None:
    honest = [claiming(f"honest{n}", 200_000, 300) for n in range(3)]
    ranking = choose(claiming("short", 200_000, 1), *honest)
    assert {c.usage.output_tokens for c in ranking.choices} == {300}
    assert len({c.expected for c in ranking.choices}) == 1


def test_a_benchmark_says_how_long_answers_are_until_receipts_do() -> None:
    new = [claiming(f"new{n}", 200_000, 900, jobs=0) for n in range(3)]
    assert {c.usage.output_tokens for c in choose(*new).choices} == {900}
    known = claiming("known", 200_000, 300)
    assert {c.usage.output_tokens for c in choose(known, *new).choices} == {300}


@given(
    claims=st.lists(st.none() | st.integers(1, 4_000), max_size=5),
    jobs=st.floats(0, 40),
    own=st.integers(1, 4_000),
    limit=st.integers(1, 4_096),
)
def test_an_answer_is_expected_to_be_as_long_as_the_models_answers_are(
    claims: list[int | None], jobs: float, own: int, limit: int
) -> None:
    offers = [claiming(f"w{n}", 200_000, claim) for n, claim in enumerate(claims)] or [offer()]
    digest = offers[0].offer.models[0].digest
    length = AnswerLength(digest, jobs, jobs * own, Timestamp(NOW))
    known = Memories(lengths={digest: length} if jobs else {})
    filters = Filters(now=NOW, token=TOKEN_INFO)
    choices = rank(ask(max_tokens=limit), offers, known, filters).choices
    said = [c for c in claims if c is not None]
    figures = [*said, *([own] if jobs else [])]
    for choice in choices:
        tokens = choice.usage.output_tokens
        assert 1 <= tokens <= limit and choice.expected <= choice.ceiling
        if not figures:
            assert tokens == limit
        elif jobs >= 20:
            assert tokens == min(limit, own)
        else:
            assert min(limit, *figures) <= tokens <= max(figures)
