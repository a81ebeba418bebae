"""The catalogue gives the same pages as sorting all live offers at each request would."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.client.limits import MAX_INDEX_BYTES
from piecework.market.catalogue import Catalogue
from piecework.market.history import MarketSample
from piecework.market.limits import MAX_PAGE_BYTES
from piecework.market.listing import (
    Entry,
    Listed,
    Query,
    Sort,
    blended_price,
    matches,
    offer_json,
)
from piecework_protocol.index_pages import parse_page
from piecework_protocol.limits import MAX_OFFER_MODELS
from piecework_protocol.objects import Offer
from piecework_protocol.types import Address, Amount, Timestamp, Uint32, to_hex
from piecework_protocol.wire import encode_offer
from tests.support.market.offers import model, offer, operator

NAMES = ("a", "b", "c", "d", "e")
A_WORKER = 100
"""From the price or the speed of one worker to that of the next."""
START = 1_800_000_000
ORDERS: dict[Sort, Callable[[Entry], int]] = {
    Sort.PRICE: lambda e: blended_price(e.model),
    Sort.SPEED: lambda e: -e.model.tokens_per_second,
    Sort.FIRST: lambda e: e.model.first_canvas_ms,
    Sort.FREE: lambda e: -e.listed.signed.offer.slots_free,
    Sort.STAKE: lambda e: -e.listed.stake,
}


def listed(name: str, prices: tuple[int, ...], life: int, speed: int, stake: int) -> Listed:
    models = tuple(
        model(
            f"model-{i % 2}",
            price_per_million_output_tokens=Amount(price),
            tokens_per_second=Uint32(speed + i),
            first_canvas_ms=Uint32(1000 - speed),
        )
        for i, price in enumerate(prices)
    )
    free = Uint32(speed % 3)
    signed = offer(name, models=models, expires_at=Timestamp(START + life), slots_free=free)
    return Listed(signed, encode_offer(signed), Amount(stake), Timestamp(START))


def spread(offers: Sequence[Offer], sort: Sort) -> list[int | None]:
    """The five numbers, where somebody offers each. A model counts by its share of its offer."""
    rows = [
        (blended_price(m) if sort is Sort.PRICE else -m.tokens_per_second, o.operator, place, o)
        for o in offers
        for place, m in enumerate(o.models)
    ]
    rows.sort(key=lambda row: row[:3])
    if sort is Sort.SPEED:  # kept from the fastest on, and counted from the slowest on
        rows = [(-speed, key, place, o) for speed, key, place, o in reversed(rows)]
    if not rows:
        return [None] * 5
    shares = [Fraction(1, len(offer.models)) for *_, offer in rows]
    before = [sum(shares[:place]) for place in range(len(rows))]
    return [
        max(row[0] for row, at in zip(rows, before, strict=True) if at <= before[-1] * part / 4)
        for part in range(5)
    ]


def priced(name: str, *prices: int) -> Listed:
    """An offer of models that have their prices for names."""
    models = tuple(
        model(
            f"model of {price}",
            price_per_million_output_tokens=Amount(price),
            price_per_thousand_steps=Amount(0),
            price_per_million_prompt_tokens=Amount(0),
            tokens_per_second=Uint32(price),
        )
        for price in prices
    )
    signed = offer(name, models=models, expires_at=Timestamp(START + 9))
    return Listed(signed, encode_offer(signed), Amount(1), Timestamp(START))


@pytest.mark.parametrize("invented", [range(1, 65), range(10**6, 10**6 + 64), range(397, 461)])
def test_a_worker_moves_the_bands_no_further_with_many_invented_models_than_with_one(
    invented: range,
) -> None:
    samples = []
    for models in (invented, invented[:1]):
        catalogue = Catalogue()
        for number in range(1, 17):
            catalogue.put(priced(f"worker {number}", 100 * number))
        catalogue.put(priced("inventor", *models))
        samples.append(catalogue.sample(Timestamp(START)))
    many, one = samples
    assert many.models > one.models == 17
    for found, fair in ((many.speeds, one.speeds), (many.prices, one.prices)):
        for moved, still in zip(found[1:4], fair[1:4], strict=True):
            assert moved is not None and still is not None and abs(moved - still) <= A_WORKER


def test_a_figure_of_a_large_market_is_that_of_its_second() -> None:
    catalogue = Catalogue(exact=1)
    for number in (1, 2):
        catalogue.put(priced(f"worker {number}", number))
    assert catalogue.sample(Timestamp(START)).speeds[-1] == 2
    catalogue.put(priced("worker 3", 3))
    assert catalogue.sample(Timestamp(START)).workers == 3
    assert catalogue.sample(Timestamp(START)).speeds[-1] == 2
    assert catalogue.sample(Timestamp(START + 1)).speeds[-1] == 3


def test_large_offers_make_more_pages_and_none_is_larger_than_a_client_reads() -> None:
    catalogue, total = Catalogue(), 2 * MAX_PAGE_BYTES // 70_000
    for number in range(total):
        catalogue.put(listed(f"worker {number}", tuple(range(MAX_OFFER_MODELS)), 9, 1, 1))
    seen, pages = list[str](), 0
    while len(seen) < total:
        text = catalogue.offers_text(Query(limit=1000, offset=len(seen)), Timestamp(START))
        assert len(text) < MAX_INDEX_BYTES
        offers, entries, said = parse_page(text.encode(), 1000)
        assert entries == len(offers) > 0 and said == total
        seen += [to_hex(signed.offer.operator) for signed in offers]
        pages += 1
    assert pages > 1 and len(set(seen)) == total


puts = st.builds(
    listed,
    st.sampled_from(NAMES),
    st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(0, 2),
)
queries = st.builds(
    Query,
    model=st.sampled_from((None, "model-0")),
    max_price=st.sampled_from((None, 50_000)),
    min_speed=st.sampled_from((None, 3)),
    sort=st.sampled_from(Sort),
    limit=st.integers(0, 4),
    offset=st.integers(0, 3),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(puts, max_size=12), queries, st.integers(0, 9))
def test_a_page_is_that_of_a_sort_of_all(offers: list[Listed], query: Query, passed: int) -> None:
    catalogue, known = Catalogue(), dict[Address, Listed]()
    for one in offers:
        catalogue.put(one)
        known[one.signed.offer.operator] = one
        catalogue.offers_text(query, Timestamp(START))  # what was shown before must not stay
    now = Timestamp(START + passed)
    entries = [
        Entry(x, m)
        for x in known.values()
        if x.signed.offer.expires_at > now
        for m in x.signed.offer.models
    ]
    entries = [entry for entry in entries if matches(entry, query)]
    entries.sort(key=lambda e: (ORDERS[query.sort](e), e.listed.signed.offer.operator))
    found = catalogue.find(query, now)
    assert found.total == len(entries)
    assert found.entries == tuple(entries[query.offset : query.offset + query.limit])
    unique = list({e.listed.signed.offer.operator: e.listed for e in reversed(entries)})
    first = [
        e.listed for i, e in enumerate(entries) if e.listed not in [x.listed for x in entries[:i]]
    ]
    answer: dict[str, Any] = json.loads(catalogue.offers_text(query, now))
    page = first[query.offset : query.offset + query.limit]
    assert answer["total"] == len(unique)
    assert answer["offers"] == json.loads(json.dumps([offer_json(one) for one in page]))
    live = [x for x in known.values() if x.signed.offer.expires_at > now]
    assert list(catalogue.live(now)) == sorted(x.signed.offer.operator for x in live)
    assert catalogue.expire(now) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(puts, max_size=12), st.integers(0, 9))
def test_the_sums_are_those_of_a_look_through_all(offers: list[Listed], passed: int) -> None:
    catalogue, known = Catalogue(), dict[Address, Listed]()
    for one in offers:
        catalogue.put(one)
        known[one.signed.offer.operator] = one
    now = Timestamp(START + passed)
    live = [x.signed.offer for x in known.values() if x.signed.offer.expires_at > now]
    models = [m for o in live for m in o.models]
    assert catalogue.sample(now) == MarketSample(
        now,
        len(live),
        len({m.digest for m in models}),
        sum(o.slots for o in live),
        sum(o.slots_free for o in live),
        *spread(live, Sort.PRICE),
        *spread(live, Sort.SPEED),
    )
    expected = []
    for digest in {m.digest for m in models}:
        of_it = [m for m in models if m.digest == digest]
        serving = [o for o in live if any(m.digest == digest for m in o.models)]
        expected.append(
            {
                "digest": to_hex(digest),
                "names": sorted({m.name for m in of_it}),
                "services": ["replayable"],
                "workers": len(serving),
                "slots_free": sum(o.slots_free for o in serving),
                "lowest_blended_price_per_million_output_tokens": min(map(blended_price, of_it)),
                "fastest_tokens_per_second": max(m.tokens_per_second for m in of_it),
                "max_context": max(m.max_context for m in of_it),
            }
        )
    expected.sort(key=lambda row: (-int(str(row["workers"])), str(row["digest"])))
    assert catalogue.models(now, 1000) == {"models": expected, "total": len(expected)}
    pages = [catalogue.models(now, 1, at)["models"] for at in range(len(expected) + 1)]
    assert [row for page in pages for row in page] == expected


def test_in_a_large_market_a_filter_shows_a_new_offer_a_second_later_and_no_withdrawn_one() -> None:
    catalogue, everything = Catalogue(exact=0), Query(min_speed=0)
    catalogue.put(listed("a", (1,), 9, 1, 0))
    first = Timestamp(START)
    assert catalogue.find(everything, first).total == 1
    catalogue.put(listed("b", (1,), 9, 1, 0))
    assert catalogue.find(everything, first).total == 1
    catalogue.remove(operator("a").address)
    assert json.loads(catalogue.offers_text(everything, first))["offers"] == []
    later = Timestamp(START + 1)
    shown = json.loads(catalogue.offers_text(everything, later))
    assert [one["operator"] for one in shown["offers"]] == [to_hex(operator("b").address)]
    catalogue.put(listed("c", (1,), 9, 1, 0))
    assert catalogue.find(Query(), later).total == 2


def test_a_worker_with_two_entries_of_one_model_counts_once() -> None:
    catalogue = Catalogue()
    catalogue.put(listed("a", (1, 2, 3), 9, 1, 0))
    rows = catalogue.models(Timestamp(START), 10)["models"]
    assert [row["workers"] for row in rows] == [1, 1]
    assert [row["slots_free"] for row in rows] == [1, 1]


def test_free_slots_of_a_model_are_those_of_its_entries_and_leave_with_the_offer() -> None:
    catalogue, now = Catalogue(), Timestamp(START)
    places = [{"slots": 2, "slots_free": free, "queue_free": 0} for free in (2, 0, 1)]
    models = tuple(
        model(f"model-{at % 2}", price_per_million_output_tokens=Amount(at)) for at in (0, 1, 2)
    )
    signed = offer(
        "a", START, models=models, slots_free=Uint32(4), details=json.dumps({"capacity": places})
    )
    other = listed("b", (1,), 9, 1, 0)
    catalogue.put(Listed(signed, encode_offer(signed), Amount(0), now))
    catalogue.put(other)
    rows = {row["names"][0]: row["slots_free"] for row in catalogue.models(now, 10)["models"]}
    assert rows == {"model-0": 3 + 1, "model-1": 0}
    catalogue.remove(operator("a").address)
    (row,) = catalogue.models(now, 10)["models"]
    assert (row["names"], row["slots_free"]) == (["model-0"], 1)


def test_workers_come_by_operator_and_page_by_page_to_the_end() -> None:
    catalogue = Catalogue()
    for name in NAMES:
        catalogue.put(listed(name, (1,), 9, 1, 0))
    pages = [catalogue.workers(Query(limit=2, offset=at), Timestamp(START)) for at in (0, 2, 4, 6)]
    assert {page["total"] for page in pages} == {len(NAMES)}
    shown = [row["operator"] for page in pages for row in page["workers"]]
    assert shown == sorted(to_hex(operator(name).address) for name in NAMES)
