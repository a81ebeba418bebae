"""What an index remembers: samples, uptime, and settled money from final blocks only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest

from piecework.chain.contracts.events import ChannelClosed, ChannelOpened, EscrowEvent, Log, Settled
from piecework.chain.contracts.records import Block
from piecework.chain.errors import RpcUnavailable
from piecework.market.catalogue import Catalogue
from piecework.market.history import DAY_S, MarketHistory, SettledDay, SettledSum
from piecework.market.limits import (
    EVENTS_AT_ONCE,
    HISTORY_DAYS,
    SAMPLE_INTERVAL_S,
    SETTLEMENTS_INTERVAL_S,
    SETTLEMENTS_KEPT,
)
from piecework.market.listing import Listed, blended_price
from piecework.market.offer_store import OfferStore
from piecework.market.settlements import catch_up, follow
from piecework.market.storage.database import open_database
from piecework.market.storage.postgres import DIALECT as POSTGRES
from piecework.market.storage.schema import STEPS
from piecework.market.storage.sqlite import DIALECT as SQLITE
from piecework_protocol.objects import Channel
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    Seconds,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import DOMAIN, TOKEN, FakeChain
from tests.support.market.databases import Cluster, an_offer_store
from tests.support.market.offers import model, offer, operator, receiver
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time

DAY = 20_834
START = DAY * DAY_S
NOW = Timestamp(START)
OTHER_TOKEN = Address(b"\x44" * 20)
CLIENT = Address(b"\x55" * 20)
OWNER = Address(b"\x66" * 20)


@pytest.fixture
async def store(place: Path | str) -> AsyncIterator[OfferStore]:
    opened = await an_offer_store(place, DOMAIN)
    yield opened
    await opened.close()


def listed(name: str, now: int) -> Listed:
    signed = offer(name, now)
    return Listed(signed, encode_offer(signed), Amount(5), Timestamp(now))


async def take(history: MarketHistory, offers: Sequence[Listed], now: int) -> None:
    """Take a sample of a market with these offers."""
    catalogue = Catalogue()
    for one in offers:
        catalogue.put(one)
    await history.take(catalogue.sample(Timestamp(now)), catalogue.live(Timestamp(now)))


def log(block: int, index: int = 0) -> Log:
    transaction = Bytes32(keccak256(f"{block}/{index}".encode()))
    return Log(DOMAIN.verifying_contract, (), b"", block, index, transaction)


def channel(
    name: str, number: int, token: Address = TOKEN, payer: Address = CLIENT, **changes: Any
) -> Channel:
    salt = Bytes32(keccak256(bytes([number])))
    worker = operator(name).address
    terms = Channel(payer, CLIENT, receiver(name), worker, token, Seconds(3600), salt)
    return replace(terms, **changes)


def opened(block: int, terms: Channel) -> ChannelOpened:
    return ChannelOpened(log(block), terms.id(DOMAIN), terms)


def settled(block: int, terms: Channel, amount: int, index: int = 1) -> Settled:
    paid, root = Amount(amount), Digest(bytes(32))
    at = log(block, index)
    return Settled(at, ChannelId(terms.id(DOMAIN)), terms.receiver, paid, paid, Uint64(1), root)


# --- samples


async def test_a_sample_has_the_market_of_the_moment_and_is_taken_once_an_interval(
    store: OfferStore,
) -> None:
    offers = store
    for name in ("worker", "other"):
        await offers.put(listed(name, START), Timestamp(START))
    for late in (0, 1, SAMPLE_INTERVAL_S - 1, SAMPLE_INTERVAL_S):
        await offers.record(Timestamp(START + late))
    first, second = await offers.history.samples(Timestamp(START))
    assert (first.at, second.at) == (START, START + SAMPLE_INTERVAL_S)
    assert (first.workers, first.models, first.slots, first.slots_free) == (2, 1, 4, 2)
    assert first.median_speed == first.highest_speed == 500
    assert first.lowest_price == first.median_price
    # The offers lived for 300 s.
    assert (second.workers, second.median_price) == (0, None)


async def test_a_sample_says_how_prices_and_speeds_are_spread(store: OfferStore) -> None:
    models = tuple(
        model(
            f"model-{number}",
            price_per_million_output_tokens=Amount(1_000 * number),
            price_per_thousand_steps=Amount(0),
            price_per_million_prompt_tokens=Amount(0),
            tokens_per_second=Uint32(10 * number),
        )
        for number in (9, 1, 7, 3, 5)
    )
    signed = offer(now=START, models=models)
    await take(store.history, [Listed(signed, encode_offer(signed), Amount(5), NOW)], START)
    (sample,) = await store.history.samples(NOW)
    per_token = sorted(blended_price(one) for one in models)
    assert sample.prices == tuple(per_token) and len(set(per_token)) == 5
    assert sample.speeds == (10, 30, 50, 70, 90)
    await take(store.history, [], START + SAMPLE_INTERVAL_S)
    assert (await store.history.samples(NOW))[1].prices == (None,) * 5


OF_BEFORE = "INSERT INTO samples VALUES ($1, 3, 1, 6, 2, 100, 200, 500, 900)"
"""A sample as the third schema kept it."""


async def at_schema_three(place: Path | str) -> None:
    """Make a database as a program of before has left it."""
    if isinstance(place, Path):
        with apsw.Connection(str(place)) as db:
            for step in STEPS[:3]:
                db.execute(SQLITE.words(step)).fetchall()
            db.execute(OF_BEFORE.replace("$1", "?"), (START,))
            db.execute("PRAGMA user_version = 3")
        return
    db = await asyncpg.connect(place)
    for step in STEPS[:3]:
        await db.execute(POSTGRES.words(step))
    await db.execute(OF_BEFORE, START)
    await db.execute("CREATE TABLE schema_version (version BIGINT NOT NULL)")
    await db.execute("INSERT INTO schema_version VALUES (3)")
    await db.close()


async def test_samples_of_before_keep_what_they_had_and_nothing_is_made_up(
    place: Path | str,
) -> None:
    await at_schema_three(place)
    store, later = await an_offer_store(place, DOMAIN), START + SAMPLE_INTERVAL_S
    await take(store.history, [listed("worker", later)], later)
    before, after = await store.history.samples(NOW)
    await store.close()
    assert (before.workers, before.models, before.slots, before.slots_free) == (3, 1, 6, 2)
    assert before.prices == (100, None, 200, None, None)
    assert before.speeds == (None, None, 500, None, 900)
    assert after.speeds == (500,) * 5


async def test_uptime_counts_from_the_first_sample_that_saw_the_worker(store: OfferStore) -> None:
    offers = store
    assert await offers.history.uptime(operator("worker").address) is None
    for number in range(8):
        now = START + number * SAMPLE_INTERVAL_S
        here = [listed("other", now)]
        # It comes with the third sample, and is away in the sixth.
        here += [listed("worker", now)] if number >= 2 and number != 5 else []
        await take(offers.history, here, now)
    up = await offers.history.uptime(operator("worker").address)
    assert up is not None
    assert (up.seen, up.samples) == (5, 6)
    other = await offers.history.uptime(operator("other").address)
    assert other is not None
    assert other.share == 1


async def test_what_is_too_old_is_forgotten(store: OfferStore) -> None:
    history = store.history
    await take(history, [listed("worker", START)], START)
    later = START + (HISTORY_DAYS + 1) * DAY_S
    await take(history, [], later)
    assert [one.at for one in await history.samples(Timestamp(0))] == [later]
    assert await history.uptime(operator("worker").address) is None


async def test_a_restart_forgets_nothing(place: Path | str) -> None:
    before = await an_offer_store(place, DOMAIN)
    await take(before.history, [listed("worker", START)], START)
    await before.close()
    after = await an_offer_store(place, DOMAIN)
    assert len(await after.history.samples(Timestamp(0))) == 1
    await after.close()


# --- settlements


async def test_payments_are_counted_by_worker_and_day_once_they_are_final(
    store: OfferStore,
) -> None:
    chain, history = FakeChain(), store.history
    mine, other = channel("worker", 1), channel("other", 2)
    chain.events = [
        opened(1, mine), opened(2, other), settled(3, mine, 70), settled(3, other, 5, 2),
        settled(4, mine, 30), settled(9, mine, 1),
    ]  # fmt: skip
    chain.final_block = 5
    assert await catch_up(history, chain) == 5
    assert await catch_up(history, chain) == 0
    worker = operator("worker").address
    (day,) = await history.settled(worker)
    assert day == SettledDay((1_800_000_000 + 3) // DAY_S, SettledSum(Amount(100), 2))
    assert [(one.block, one.amount) for one in await history.settlements(worker)] == [
        (4, 30),
        (3, 70),
    ]
    assert await history.settled() == (SettledDay(day.day, SettledSum(Amount(105), 3)),)
    chain.final_block = 9
    assert await catch_up(history, chain) == 1
    assert (await history.settled(worker))[0].settled.amount == 101


async def test_payments_in_another_token_are_not_added_up_with_the_markets(
    store: OfferStore,
) -> None:
    chain, history = FakeChain(), store.history
    foreign = channel("worker", 1, OTHER_TOKEN)
    chain.events, chain.final_block = [opened(1, foreign), settled(2, foreign, 10**30)], 2
    await catch_up(history, chain)
    assert await history.settled() == ()


async def test_amounts_above_63_bits_add_up_to_the_unit(store: OfferStore) -> None:
    chain, history, mine = FakeChain(), store.history, channel("worker", 1)
    large = 2**95 + 1
    chain.events = [opened(1, mine), settled(1, mine, large, 1), settled(1, mine, large, 2)]
    chain.final_block = 1
    await catch_up(history, chain)
    assert (await history.settled())[0].settled.amount == 2 * large


async def test_the_last_payments_are_kept_and_older_ones_only_in_the_sums(
    store: OfferStore,
) -> None:
    chain, history, mine = FakeChain(), store.history, channel("worker", 1)
    count = SETTLEMENTS_KEPT + 3
    chain.events = [opened(0, mine), *(settled(block, mine, 1) for block in range(1, count + 1))]
    chain.final_block = count
    await catch_up(history, chain)
    kept = await history.settlements(operator("worker").address)
    assert (len(kept), kept[0].block) == (SETTLEMENTS_KEPT, count)
    (day,) = await history.settled()
    assert day.settled.payments == (await history.settled_in_all()).payments == count


async def test_a_chain_that_goes_away_half_way_costs_nothing_that_was_read(
    store: OfferStore,
) -> None:
    chain, history, mine = FakeChain(), store.history, channel("worker", 1)
    chain.events = [opened(1, mine), settled(2, mine, 7)]
    chain.final_block, chain.away = 3, True
    with pytest.raises(RpcUnavailable):
        await catch_up(history, chain)
    assert await history.read_to() is None
    chain.away = False
    await catch_up(history, chain)
    assert await history.read_to() == 3
    assert (await history.settled())[0].settled.amount == 7


def closed(block: int, terms: Channel) -> ChannelClosed:
    nothing = Amount(0)
    return ChannelClosed(
        log(block, 9), ChannelId(terms.id(DOMAIN)), terms.payer, nothing, nothing, nothing
    )


@pytest.mark.parametrize(
    "own",
    [
        {"payer": operator("worker").address},
        {"payer": receiver("worker")},
        {"payer": OWNER},
        {"authorizer": operator("worker").address},
    ],
    ids=["operator", "payout", "owner", "authorizer"],
)
async def test_what_a_worker_pays_to_itself_is_not_among_its_earnings(
    store: OfferStore, own: dict[str, Any]
) -> None:
    chain, history, worker = FakeChain(), store.history, operator("worker").address
    chain.register(worker, receiver("worker"))
    chain.registered[worker] = replace(chain.registered[worker], owner=OWNER)
    mine, earned = channel("worker", 1, **own), channel("worker", 2)
    chain.events = [
        opened(1, mine), opened(1, earned), settled(2, mine, 10**9), settled(3, earned, 5),
    ]  # fmt: skip
    chain.final_block = 3
    await catch_up(history, chain)
    expected = SettledSum(Amount(5), 1, Amount(10**9), 1)
    assert await history.settled_in_all(worker) == await history.settled_in_all() == expected
    assert [day.settled for day in await history.settled()] == [expected]
    assert [one.own for one in await history.settlements(worker)] == [False, True]


async def test_a_channel_that_is_closed_is_kept_no_longer(store: OfferStore, place: Any) -> None:
    chain, mine = FakeChain(), channel("worker", 1)
    chain.events = [opened(1, mine), settled(2, mine, 7), closed(2, mine)]
    chain.final_block = 2
    await catch_up(store.history, chain)
    assert (await store.history.settled_in_all()).amount == 7
    database = await open_database(place)
    assert not await database.rows("SELECT channel FROM open_channels")
    await database.close()


async def test_sums_of_days_are_kept_as_long_as_samples_and_the_total_longer(
    store: OfferStore,
) -> None:
    chain, history, mine = FakeChain(), store.history, channel("worker", 1)
    chain.events, chain.final_block = [opened(1, mine), settled(2, mine, 7)], 2
    await catch_up(history, chain)
    await take(history, [], START + (HISTORY_DAYS + 1) * DAY_S)
    assert await history.settled() == ()
    assert (await history.settled_in_all()).amount == 7


class WideChain(FakeChain):
    """A chain that gives all of its events in one part. A block of it may be away."""

    lost = -1

    async def scan(
        self, names: Sequence[str], from_block: int | None = None, to_block: int | None = None
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]:
        parts = [part async for part in super().scan(names, from_block, to_block)]
        yield parts[-1][0], tuple(event for _, events in parts for event in events)

    async def block(self, number: int | str) -> Block:
        if number == self.lost:
            raise RpcUnavailable("no such block")
        return await super().block(number)


async def test_many_events_at_once_are_taken_over_in_whole_blocks(store: OfferStore) -> None:
    chain, history, mine = WideChain(), store.history, channel("worker", 1)
    second = [settled(2, mine, 1, index) for index in range(EVENTS_AT_ONCE)]
    chain.events = [opened(1, mine), *second, settled(3, mine, 1), settled(4, mine, 1)]
    chain.final_block, chain.lost = 5, 3
    with pytest.raises(RpcUnavailable):
        await catch_up(history, chain)
    assert await history.read_to() == 2
    chain.lost = -1
    assert await catch_up(history, chain) == 2
    assert await history.read_to() == 5
    assert (await history.settled_in_all()).payments == EVENTS_AT_ONCE + 2


class BrokenChain(FakeChain):
    """A chain with a part that cannot be read, for so many rounds. The error is not the chain's."""

    broken = 2

    async def scan(
        self, names: Sequence[str], from_block: int | None = None, to_block: int | None = None
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]:
        async for end, events in super().scan(names, from_block, to_block):
            if end == 3 and self.broken:
                self.broken -= 1
                raise KeyError("no such block")
            yield end, events


class KeptLog:
    """Keeps the fields of every warning."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


def test_an_error_of_any_kind_ends_its_round_and_the_next_round_goes_on(tmp_path: Path) -> None:
    chain, mine, log = BrokenChain(), channel("worker", 1), KeptLog()
    chain.events = [opened(1, mine), settled(2, mine, 7), settled(3, mine, 5)]
    chain.final_block = 3

    async def three_rounds() -> tuple[list[int | None], int]:
        # A file: time that is skipped cannot wait for a server.
        offers = await an_offer_store(tmp_path / "market.db", DOMAIN)
        history = offers.history
        following = asyncio.create_task(follow(history, chain, log))
        seen = []
        for _ in range(3):
            await pass_time(SETTLEMENTS_INTERVAL_S - 1)
            seen.append(await history.read_to())
            assert not following.done(), "the index goes on"
            await pass_time(1)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        paid = await history.settled_in_all(operator("worker").address)
        await offers.close()
        return seen, paid.amount

    assert simulate(three_rounds()) == ([2, 2, 3], 12)
    assert [line["error_class"] for line in log.lines] == ["KeyError"], "once, while it is the same"


# --- several instances


@pytest.mark.process
async def test_of_two_instances_one_counts_a_payment_and_writes_a_sample(
    postgres: Cluster,
) -> None:
    place = postgres.database()
    chain, mine = FakeChain(), channel("worker", 1)
    chain.events = [opened(1, mine), *(settled(block, mine, 1) for block in range(2, 40))]
    chain.final_block = 39
    both = [await an_offer_store(place, DOMAIN) for _ in range(2)]
    await asyncio.gather(*(catch_up(one.history, chain) for one in both))
    await asyncio.gather(*(take(one.history, [listed("worker", START)], START) for one in both))
    for one in both:
        await catch_up(one.history, chain)
        assert (await one.history.settled_in_all()).payments == 38
        up = await one.history.uptime(operator("worker").address)
        assert up is not None
        assert (up.seen, up.samples) == (1, 1)
        await one.close()
