"""No market, and no crowd in it, makes a client pay a multiple of what others ask who answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piecework.client.jobs.requests import Filters
from piecework.client.jobs.selection import rank, within_cap
from piecework.client.journal.records import Experience, Memories, PaidTariff
from piecework_protocol.types import Amount, Timestamp, Uint32
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.client.client_side import ask
from tests.support.market.offers import model, offer, operator

NOW = 1_800_000_000
FACTOR = 3.0
WORKER = st.fixed_dictionaries(
    {
        "price": st.sampled_from([1, 2, 3, 5, 8, 100, 5_000]),
        "full": st.booleans(),
        "answers": st.booleans(),
        "resting": st.booleans(),
        "place": st.integers(0, 3),
    }
)


@given(st.lists(WORKER, min_size=1, max_size=10), st.sampled_from([None, 1, 100]))
def test_what_is_chosen_is_within_the_cap_of_those_that_answer(
    market: list[dict[str, int]], last_paid: int | None
) -> None:
    offers, memories, answered = [], {}, set()
    for number, worker in enumerate(market):
        name, scale = f"w{number}", worker["price"]
        tariff = model(
            price_per_million_prompt_tokens=Amount(50_000 * scale),
            price_per_million_output_tokens=Amount(200_000 * scale),
            price_per_thousand_steps=Amount(1_000 * scale),
        )
        free = Uint32(0 if worker["full"] else 2)
        offers.append(
            offer(
                name,
                models=(tariff,),
                slots_free=free,
                queue_free=free,
                endpoint=f"place{worker['place']}.example:7000",
            )
        )
        if worker["answers"]:
            answered.add(operator(name).address)
        if worker["resting"]:
            memory = Experience(operator(name).address, silences=1.0, silent_at=Timestamp(NOW))
            memories[memory.operator] = memory
    paid = {}
    if last_paid is not None:
        amounts = (Amount(n * last_paid) for n in (50_000, 200_000, 1_000))
        paid = {model().digest: PaidTariff(model().digest, *amounts)}
    known = Memories(memories, tariffs=paid)
    filters = Filters(now=NOW, token=TOKEN_INFO, price_cap=FACTOR)
    ranking = rank(ask(max_tokens=1024), offers, known, filters)
    kept = within_cap(ranking, answered, known, filters)
    scales = {operator(f"w{n}").address: w["price"] for n, w in enumerate(market)}
    cheapest: dict[int, int] = {}
    for worker in market:
        if worker["answers"] and not worker["resting"]:
            place = worker["place"]
            cheapest[place] = min(worker["price"], cheapest.get(place, worker["price"]))
    prices = sorted(cheapest.values())
    chosen = {scales[choice.operator] for choice in kept.choices}
    if not prices:
        assert kept.choices == ranking.choices
        return
    median = prices[(len(prices) - 1) // 2]
    allowed = {s for s in scales.values() if s <= FACTOR * median or s <= (last_paid or 0)}
    # Rounding to base units moves a price by a fraction of a percent.
    assert chosen == allowed
    assert min(prices) in chosen
