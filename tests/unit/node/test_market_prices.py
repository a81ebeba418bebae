"""What others ask: verified offers of the same model, each registered operator once."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from piecework.base.http import HttpUnreachable
from piecework.chain.errors import RpcUnavailable
from piecework_node.operations.joining import suggest_prices
from piecework_node.pricing.costs import (
    ENOUGH_CANVASES,
    ENOUGH_TOKENS,
    CostPart,
    Floor,
    PowerFacts,
    gas_cost,
    power_cost,
)
from piecework_node.pricing.market import PAGE_OFFERS, MarketReader, MarketView
from piecework_node.pricing.rule import AskedPrice
from piecework_node.pricing.state import PriceState
from piecework_protocol.objects import Service
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Amount, Timestamp, Uint32, Uint64, keccak256
from tests.support.chain.fake_chain import DOMAIN, TOKEN, FakeChain
from tests.support.clock import FakeClock
from tests.support.market.offers import model, offer, operator, receiver
from tests.support.market.pages import FOLLOWED, ME, NAMES, Pages, asks, chain_of

NOW = Timestamp(1_800_000_010)


async def look(pages: Pages, chain: FakeChain) -> MarketView:
    urls = [f"http://{host}" for host in pages.shown]
    reader = MarketReader(urls, pages, chain, DOMAIN, me=ME, token=TOKEN)
    return await reader.look(FOLLOWED, NOW)


async def test_a_look_asks_each_index_for_the_model_by_its_digest_most_stake_first() -> None:
    pages = Pages(one=[asks("ann", 5)], two=[asks("bob", 7)])
    view = await look(pages, chain_of(*NAMES))
    assert sorted(view.prices) == [5, 7]
    assert view.answered == ("one", "two") and not view.away
    for url in pages.urls:
        query = parse_qs(urlsplit(url).query)
        assert query == {
            "model": [model().digest.hex()],
            "sort": ["stake"],
            "limit": [str(PAGE_OFFERS)],
        }


async def test_an_operator_counts_once_however_many_offers_and_entries_it_has() -> None:
    cheap = model(
        profile="other gpu",
        price_per_million_output_tokens=Amount(3),
        price_per_thousand_steps=Amount(0),
    )
    dear = model(price_per_million_output_tokens=Amount(9), price_per_thousand_steps=Amount(0))
    many = [asks("ann", 1_000 + n, sequence=Uint64(n)) for n in range(1, 50)]
    pages = Pages(one=[*many, asks("bob", 7)], two=[offer("cai", models=(dear, cheap))])
    view = await look(pages, chain_of(*NAMES))
    assert sorted(view.prices) == [3, 7, 1_049]


async def test_only_registered_operators_with_an_active_stake_count() -> None:
    chain = chain_of("ann")
    chain.register(operator("bob").address, receiver("bob"), active=False)
    strangers = [asks(f"stranger {n}", 1) for n in range(30)]
    view = await look(Pages(one=[asks("ann", 5), asks("bob", 1), *strangers]), chain)
    assert view.prices == (5,)


async def test_what_is_not_signed_expired_of_another_market_or_ours_counts_nothing() -> None:
    chain = chain_of(*NAMES, "me")
    forger = LocalSigner(bytes(keccak256(b"forger")))
    old = Timestamp(1_700_000_000)
    shown = [
        asks("ann", 5),
        asks("bob", 1, signer=forger),
        asks("cai", 1, issued_at=old, expires_at=Timestamp(old + 300)),
        asks("dee", 1, receiver=receiver("ann")),
        asks("me", 1),
    ]
    assert (await look(Pages(one=shown), chain)).prices == (5,)


async def test_an_index_that_invents_a_newer_offer_hides_nobody() -> None:
    forger = LocalSigner(bytes(keccak256(b"forger")))
    invented = asks("ann", 1, signer=forger, sequence=Uint64(2**60))
    view = await look(Pages(one=[asks("ann", 5)], two=[invented]), chain_of(*NAMES))
    assert view.prices == (5,)


async def test_a_price_in_another_token_is_no_price_of_our_market() -> None:
    """Its base units may be worth nothing, or a thousand times as much."""
    other = receiver("another token")
    shown = [
        asks("ann", 5),
        asks("bob", 10**18, tokens=(other,)),
        asks("cai", 7, tokens=(other, TOKEN)),
    ]
    view = await look(Pages(one=shown), chain_of(*NAMES))
    assert sorted(view.prices) == [5, 7]
    suggested = await suggest_prices(
        ["http://one"], Pages(one=shown), chain_of(*NAMES), FakeClock(NOW), token=TOKEN
    )
    assert suggested is not None and suggested.output == 5 and "2 bonded" in suggested.why


async def test_a_newcomers_suggestion_reads_the_market_as_automatic_prices_do() -> None:
    """Most stake first, not cheapest first. The newest offer counts, whoever may sign it."""
    session = LocalSigner(bytes(keccak256(b"a session key")))
    chain = chain_of(*NAMES)
    chain.session_keys.add((operator("bob").address, session.address))
    shown = [
        asks("ann", 1),
        asks("ann", 9, sequence=Uint64(2)),
        asks("bob", 7, signer=session),
    ]
    pages = Pages(one=shown)
    suggested = await suggest_prices(["http://one"], pages, chain, FakeClock(NOW), token=TOKEN)
    assert suggested is not None and suggested.output == 7 and "2 bonded" in suggested.why
    query = parse_qs(urlsplit(pages.urls[0]).query)
    assert query == {"sort": ["stake"], "limit": [str(PAGE_OFFERS)]}


async def test_another_model_and_another_service_are_no_market_of_ours() -> None:
    best_effort = model(
        service=Service.BEST_EFFORT,
        price_per_thousand_steps=Amount(0),
        max_steps=Uint32(0),
    )
    shown = [
        offer("ann", models=(model("another"),)),
        offer("bob", models=(best_effort,)),
        asks("cai", 6),
    ]
    assert (await look(Pages(one=shown), chain_of(*NAMES))).prices == (6,)


async def test_what_a_worker_says_of_its_own_steps_does_not_make_it_cheaper() -> None:
    claim = {"usual": [{"steps_per_million_output_tokens": {"p50": 4000, "p90": 4000}, "jobs": 90}]}
    honest, boastful = offer("ann"), offer("bob", details=json.dumps(claim))
    prices = (await look(Pages(one=[honest, boastful]), chain_of(*NAMES))).prices
    assert prices[0] == prices[1]


async def test_an_index_that_is_away_or_answers_nonsense_is_named_and_the_others_count() -> None:
    pages = Pages(one=HttpUnreachable("one", "refused"), two=b"[" * 100_000, three=[asks("ann", 5)])
    view = await look(pages, chain_of(*NAMES))
    assert view.prices == (5,) and view.answered == ("three",)
    assert len(view.away) == 2 and view.away[1].startswith("two: ")


async def test_a_registry_that_is_away_is_no_market() -> None:
    chain = chain_of(*NAMES)
    chain.away = True
    with pytest.raises(RpcUnavailable):
        await look(Pages(one=[asks("ann", 5)]), chain)


async def test_a_page_with_more_offers_than_were_asked_for_is_cut() -> None:
    chain = FakeChain()
    crowd = [asks(f"worker {n}", 5) for n in range(PAGE_OFFERS + 20)]
    await look(Pages(one=crowd), chain)
    assert chain.reads == PAGE_OFFERS


# --- costs


def test_power_costs_the_measured_joules_at_the_owners_own_prices() -> None:
    facts = PowerFacts(0.36 * ENOUGH_TOKENS, ENOUGH_TOKENS, 0, 100)
    # 0.36 J a token are 0.1 kWh a million tokens.
    part = power_cost(facts, 0.30, 1.0, 6)
    assert part.units == pytest.approx(30_000, abs=1) and "NVML" in part.source


def test_without_nvml_the_owners_own_power_counts() -> None:
    part = power_cost(PowerFacts(None, 0, 360, 1_000), 0.30, 2.0, 6)
    assert part.units == pytest.approx(15_000, abs=1) and "busy_power_w" in part.source


@pytest.mark.parametrize(
    ("facts", "kwh", "usd", "word"),
    [
        (PowerFacts(None, 0, 0, 100), 0.3, 1.0, "set busy_power_w"),
        (PowerFacts(5.0, ENOUGH_TOKENS - 1, 0, 100), 0.3, 1.0, "fewer than 10,000 tokens"),
        (PowerFacts(None, 0, 360, 0), 0.3, 1.0, "set busy_power_w"),
        (PowerFacts(None, 0, 360, 100), None, 1.0, "usd_per_kwh"),
        (PowerFacts(None, 0, 360, 100), 0.3, None, "usd_per_token"),
        (PowerFacts(None, 0, 360, 100), 0.3, 1e-300, "no price"),
    ],
)
def test_what_is_not_known_is_no_floor_and_says_why(
    facts: PowerFacts, kwh: float | None, usd: float | None, word: str
) -> None:
    part = power_cost(facts, kwh, usd, 6)
    assert part.units is None and word in part.source


def test_gas_is_what_was_spent_less_fees_over_the_canvases() -> None:
    part = gas_cost(3_000, 1_000, ENOUGH_CANVASES, 200)
    assert part.units == 2_000 * 10**6 // (ENOUGH_CANVASES * 200)
    assert gas_cost(5, 9, ENOUGH_CANVASES, 200).units == 0, "fees that bring more are no income"
    assert gas_cost(5, 0, ENOUGH_CANVASES - 1, 200).units is None


def test_a_floor_is_the_sum_of_what_is_known() -> None:
    unknown = CostPart(None, "")
    assert Floor(CostPart(3, ""), CostPart(4, "")).units == 7
    assert Floor(unknown, CostPart(4, "")).units == 4
    assert Floor(unknown, unknown).units is None


# --- what is kept


def test_what_is_kept_is_read_as_it_was_written(tmp_path: Any) -> None:
    file = tmp_path / "prices.json"
    assert PriceState.load(file) == PriceState()
    for state in (
        PriceState(),
        PriceState(AskedPrice(2**90, 1_800_000_000), 12.5, 40),
    ):
        state.write(file)
        assert PriceState.load(file) == state
        assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"asked": {"blended": "-1", "moved_at": 0}, "joules": null, "tokens": 0}',
        '{"asked": {"blended": "1", "moved_at": 1e99}, "joules": null, "tokens": 0}',
        '{"asked": null, "joules": -1, "tokens": 0}',
        '{"asked": null, "joules": 1, "tokens": true}',
        '{"asked": 7, "joules": 1, "tokens": 0}',
        '{"asked": null, "joules": 1, "tokens": 1%s}' % ("0" * 400),
        '{"asked": null, "joules": 1%s, "tokens": 0}' % ("0" * 400),
        '{"asked": {"blended": "1%s", "moved_at": 0}, "joules": 1, "tokens": 0}' % ("0" * 400),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Any, text: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(text)
    with pytest.raises(ValueError):
        PriceState.load(file)
