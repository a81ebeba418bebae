"""What an index remembers: samples, uptime, and settled money from final blocks only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework.chain.errors import RpcUnavailable
from piecework.chain.events import ChannelOpened, EscrowEvent, Log, Settled
from piecework.market.history import DAY_S, SettledDay
from piecework.market.limits import (
    HISTORY_DAYS,
    SAMPLE_INTERVAL_S,
    SETTLEMENTS_INTERVAL_S,
    SETTLEMENTS_KEPT,
)
from piecework.market.listing import Listed
from piecework.market.offer_store import OfferStore
from piecework.market.settlements import catch_up, follow
from piecework_protocol.objects import Channel
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    Seconds,
    Timestamp,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import encode_offer
from tests.support.fake_chain import DOMAIN, TOKEN, FakeChain
from tests.support.offers import offer, operator, receiver
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time

DAY = 20_834
START = DAY * DAY_S
OTHER_TOKEN = Address(b"\x44" * 20)


def store(folder: Path) -> OfferStore:
    return OfferStore(folder / "market.db", DOMAIN, TOKEN)


def listed(name: str, now: int) -> Listed:
    signed = offer(name, now)
    return Listed(signed, encode_offer(signed), Amount(5), Timestamp(now))


def log(block: int, index: int = 0) -> Log:
    transaction = Bytes32(keccak256(f"{block}/{index}".encode()))
    return Log(DOMAIN.verifying_contract, (), b"", block, index, transaction)


def channel(name: str, number: int, token: Address = TOKEN) -> Channel:
    salt = Bytes32(keccak256(bytes([number])))
    worker = operator(name).address
    return Channel(worker, worker, receiver(name), worker, token, Seconds(3600), salt)


def opened(block: int, terms: Channel) -> ChannelOpened:
    return ChannelOpened(log(block), terms.id(DOMAIN), terms)


def settled(block: int, terms: Channel, amount: int, index: int = 1) -> Settled:
    paid, root = Amount(amount), Digest(bytes(32))
    at = log(block, index)
    return Settled(at, ChannelId(terms.id(DOMAIN)), terms.receiver, paid, paid, Uint64(1), root)


# --- samples


def test_a_sample_has_the_market_of_the_moment_and_is_taken_once_an_interval(
    tmp_path: Path,
) -> None:
    offers = store(tmp_path)
    for name in ("worker", "other"):
        offers.put(listed(name, START), Timestamp(START))
    for late in (0, 1, SAMPLE_INTERVAL_S - 1, SAMPLE_INTERVAL_S):
        offers.record(Timestamp(START + late))
    first, second = offers.history.samples(Timestamp(START))
    assert (first.at, second.at) == (START, START + SAMPLE_INTERVAL_S)
    assert (first.workers, first.models, first.slots, first.slots_free) == (2, 1, 4, 2)
    assert first.median_speed == first.highest_speed == 500
    assert first.lowest_price == first.median_price
    # The offers lived for 300 s.
    assert (second.workers, second.median_price) == (0, None)


def test_uptime_counts_from_the_first_sample_that_saw_the_worker(tmp_path: Path) -> None:
    offers = store(tmp_path)
    assert offers.history.uptime(operator("worker").address) is None
    for number in range(8):
        now = START + number * SAMPLE_INTERVAL_S
        here = [listed("other", now)]
        # It comes with the third sample, and is away in the sixth.
        here += [listed("worker", now)] if number >= 2 and number != 5 else []
        offers.history.take(here, Timestamp(now))
    up = offers.history.uptime(operator("worker").address)
    assert up is not None
    assert (up.seen, up.samples) == (5, 6)
    other = offers.history.uptime(operator("other").address)
    assert other is not None
    assert other.share == 1


def test_what_is_too_old_is_forgotten(tmp_path: Path) -> None:
    history = store(tmp_path).history
    history.take([listed("worker", START)], Timestamp(START))
    later = START + (HISTORY_DAYS + 1) * DAY_S
    history.take([], Timestamp(later))
    assert [one.at for one in history.samples(Timestamp(0))] == [later]
    assert history.uptime(operator("worker").address) is None


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    before = store(tmp_path)
    before.history.take([listed("worker", START)], Timestamp(START))
    before.close()
    assert len(store(tmp_path).history.samples(Timestamp(0))) == 1


# --- settlements


async def test_payments_are_counted_by_worker_and_day_once_they_are_final(tmp_path: Path) -> None:
    chain, history = FakeChain(), store(tmp_path).history
    mine, other = channel("worker", 1), channel("other", 2)
    chain.events = [
        opened(1, mine), opened(2, other), settled(3, mine, 70), settled(3, other, 5, 2),
        settled(4, mine, 30), settled(9, mine, 1),
    ]  # fmt: skip
    chain.final_block = 5
    assert await catch_up(history, chain) == 5
    assert await catch_up(history, chain) == 0
    worker = operator("worker").address
    (day,) = history.settled(worker)
    assert day == SettledDay((1_800_000_000 + 3) // DAY_S, Amount(100), 2)
    assert [(one.block, one.amount) for one in history.settlements(worker)] == [(4, 30), (3, 70)]
    assert history.settled() == (SettledDay(day.day, Amount(105), 3),)
    chain.final_block = 9
    assert await catch_up(history, chain) == 1
    assert history.settled(worker)[0].amount == 101


async def test_payments_in_another_token_are_not_added_up_with_the_markets(tmp_path: Path) -> None:
    chain, history = FakeChain(), store(tmp_path).history
    foreign = channel("worker", 1, OTHER_TOKEN)
    chain.events, chain.final_block = [opened(1, foreign), settled(2, foreign, 10**30)], 2
    await catch_up(history, chain)
    assert history.settled() == ()


async def test_a_database_without_sums_of_all_workers_gets_them(tmp_path: Path) -> None:
    chain, kept = FakeChain(), store(tmp_path)
    mine, other = channel("worker", 1), channel("other", 2)
    chain.events = [
        opened(1, mine),
        opened(2, other),
        settled(3, mine, 70),
        settled(3, other, 5, 2),
    ]
    chain.final_block = 5
    await catch_up(kept.history, chain)
    before = kept.history.settled()
    kept.close()
    with apsw.Connection(str(tmp_path / "market.db")) as db:
        db.execute("DROP TABLE market_days")
    assert store(tmp_path).history.settled() == before
    assert before[0].amount == 75


async def test_amounts_above_63_bits_add_up_to_the_unit(tmp_path: Path) -> None:
    chain, history, mine = FakeChain(), store(tmp_path).history, channel("worker", 1)
    large = 2**95 + 1
    chain.events = [opened(1, mine), settled(1, mine, large, 1), settled(1, mine, large, 2)]
    chain.final_block = 1
    await catch_up(history, chain)
    assert history.settled()[0].amount == 2 * large


async def test_the_last_payments_are_kept_and_older_ones_only_in_the_sums(tmp_path: Path) -> None:
    chain, history, mine = FakeChain(), store(tmp_path).history, channel("worker", 1)
    count = SETTLEMENTS_KEPT + 3
    chain.events = [opened(0, mine), *(settled(block, mine, 1) for block in range(1, count + 1))]
    chain.final_block = count
    await catch_up(history, chain)
    kept = history.settlements(operator("worker").address)
    assert (len(kept), kept[0].block) == (SETTLEMENTS_KEPT, count)
    assert sum(day.payments for day in history.settled()) == count


async def test_a_chain_that_goes_away_half_way_costs_nothing_that_was_read(tmp_path: Path) -> None:
    chain, history, mine = FakeChain(), store(tmp_path).history, channel("worker", 1)
    chain.events = [opened(1, mine), settled(2, mine, 7)]
    chain.final_block, chain.away = 3, True
    with pytest.raises(RpcUnavailable):
        await catch_up(history, chain)
    assert history.read_to is None
    chain.away = False
    await catch_up(history, chain)
    assert history.read_to == 3
    assert history.settled()[0].amount == 7


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
    chain, history, mine = BrokenChain(), store(tmp_path).history, channel("worker", 1)
    chain.events = [opened(1, mine), settled(2, mine, 7), settled(3, mine, 5)]
    chain.final_block, log = 3, KeptLog()

    async def three_rounds() -> list[int | None]:
        following = asyncio.create_task(follow(history, chain, log))
        seen = []
        for _ in range(3):
            await pass_time(SETTLEMENTS_INTERVAL_S - 1)
            seen.append(history.read_to)
            assert not following.done(), "the index goes on"
            await pass_time(1)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        return seen

    assert simulate(three_rounds()) == [2, 2, 3]
    assert sum(one.amount for one in history.settlements(operator("worker").address)) == 12
    assert [line["error_class"] for line in log.lines] == ["KeyError"], "once, while it is the same"
