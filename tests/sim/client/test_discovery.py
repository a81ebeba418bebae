"""Searching in a market where most are silent: nobody waits for a stranger."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from piecework.client.journal.learning import is_resting, learn_answer
from piecework.client.journal.store import Store
from piecework.client.limits import INDEX_PAGE_OFFERS, MAX_INDEX_OFFERS, OFFERS_STALE_S
from piecework.client.network.discovery import Discovery
from piecework.client.network.searches import Found
from piecework_protocol.types import Timestamp
from tests.support.client.client_side import PAYER
from tests.support.market.offers import model, operator
from tests.support.market.shipped import InlineExecutor
from tests.support.market.simulated_net import Shelf, SimulatedNet, searching
from tests.support.virtual_time import START, simulate
from tests.support.waiting import pass_time

GOOD, DEAD, SLOW = "http://good.example", "http://dead.example", "http://slow.example"
Scene = Callable[[SimulatedNet, Discovery], Awaitable[None]]


def play(folder: Path, net: SimulatedNet, scene: Scene) -> Store:
    """Run a scene with a client on this network. Its journal stays open."""
    store = Store(folder / "client.db", net.chain.domain, PAYER.address, committer=InlineExecutor())

    async def run() -> None:
        async with searching(net, store) as client:
            await scene(net, client.discovery)

    simulate(run())
    return store


async def timed(search: Awaitable[Found]) -> tuple[Found, float]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    return await search, loop.time() - start


def names(found: Found) -> set[bytes]:
    return {signed.offer.operator for signed in found.offers}


def test_a_silent_index_costs_a_second_once(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {DEAD: Shelf(delay_s=None), GOOD: Shelf([net.worker("ada")])}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        searches = [timed(discovery.offers()) for _ in range(4)]
        for found, seconds in await asyncio.gather(*searches):
            assert len(found.offers) == 1
            assert seconds <= 1.01
        for _ in range(200):
            await pass_time(3.5)
            found, seconds = await timed(discovery.offers())
            assert (len(found.offers), seconds) == (1, 0.0)

    play(tmp_path, net, scene).close()
    assert net.reads[GOOD] >= 150
    assert net.reads[DEAD] <= 10, "it rests, longer each time"


def test_an_index_that_answers_alone_is_not_waited_for(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {GOOD: Shelf([net.worker("ada")])}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        _, seconds = await timed(discovery.offers())
        assert seconds < 0.1

    play(tmp_path, net, scene).close()


def test_what_a_slow_index_shows_is_added_later(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {
        GOOD: Shelf([net.worker("ada")]),
        SLOW: Shelf([net.worker("bob")], delay_s=2.0),
    }

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        assert len((await discovery.offers()).offers) == 1
        await pass_time(1.5)
        assert len((await discovery.offers()).offers) == 2

    play(tmp_path, net, scene).close()


def test_an_empty_answer_gives_the_slower_index_time(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {GOOD: Shelf(), SLOW: Shelf([net.worker("bob")], delay_s=2.0)}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        found, seconds = await timed(discovery.offers())
        assert len(found.offers) == 1
        assert seconds <= 2.1

    play(tmp_path, net, scene).close()


def test_an_old_answer_is_not_served_for_ever(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {GOOD: Shelf([net.worker("ada")])}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        await discovery.offers()
        net.indexes[GOOD].offers.append(net.worker("bob"))
        await pass_time(OFFERS_STALE_S + 5)
        assert len((await discovery.offers()).offers) == 2

    play(tmp_path, net, scene).close()


def test_searches_for_different_models_do_not_wait_for_each_other(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {GOOD: Shelf([net.worker("ada"), net.worker("bob", models=(model("epic"),))])}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        wanted = ["tale-1", "epic", None, "none"]
        found = await asyncio.gather(*(timed(discovery.offers(m)) for m in wanted))
        assert [len(f.offers) for f, _ in found] == [1, 1, 2, 0]
        assert all(seconds < 0.1 for _, seconds in found)

    play(tmp_path, net, scene).close()


def test_every_page_of_an_index_is_read(tmp_path: Path) -> None:
    net = SimulatedNet()
    many = [net.worker(f"w{n}") for n in range(INDEX_PAGE_OFFERS + 20)]
    net.indexes = {GOOD: Shelf(many)}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        assert names(await discovery.offers()) == {s.offer.operator for s in many}

    play(tmp_path, net, scene).close()
    assert net.reads[GOOD] == 2


def test_an_index_that_claims_pages_without_end_is_read_to_its_last_news(tmp_path: Path) -> None:
    net = SimulatedNet()
    net.indexes = {GOOD: Shelf([net.worker("ada")], claims=10**12)}

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        assert len((await discovery.offers()).offers) == 1

    play(tmp_path, net, scene).close()
    assert net.reads[GOOD] <= MAX_INDEX_OFFERS / INDEX_PAGE_OFFERS


def test_a_crowd_of_silent_workers_does_not_delay_the_live_one(tmp_path: Path) -> None:
    net = SimulatedNet()
    for n in range(205):
        net.worker(f"silent{n}", delay_s=None)
    live = net.worker("live")

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        found, seconds = await timed(discovery.offers())
        assert names(found) == {live.offer.operator}
        assert seconds <= 1.01
        await pass_time(OFFERS_STALE_S + 1)
        net.dials.clear()
        _, seconds = await timed(discovery.offers())
        assert seconds <= 1.01

    store = play(tmp_path, net, scene)
    known = store.workers.experience()
    assert sum(is_resting(memory, Timestamp(START + 20)) for memory in known.values()) == 205
    assert known[operator("live").address].answered_at > 0
    store.close()


def test_names_of_models_that_a_caller_makes_up_make_nobody_dial(tmp_path: Path) -> None:
    net = SimulatedNet()
    for n in range(20):
        net.worker(f"w{n}")

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        await discovery.offers("tale-1")
        for n in range(100):
            await discovery.offers(f"made-up-{n}")

    play(tmp_path, net, scene).close()
    assert max(net.dials.values()) == 1


def test_the_worker_that_answered_last_is_asked_first(tmp_path: Path) -> None:
    net = SimulatedNet()
    for n in range(300):
        net.worker(f"silent{n}", delay_s=None)
    live = net.worker("live")
    store = Store(
        tmp_path / "client.db", net.chain.domain, PAYER.address, committer=InlineExecutor()
    )
    store.workers.remember(
        operator("live").address, lambda memory: learn_answer(memory, Timestamp(START - 60))
    )
    store.close()

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        assert names(await discovery.offers()) == {live.offer.operator}

    play(tmp_path, net, scene).close()


def test_nobody_is_blamed_while_our_own_network_is_away(tmp_path: Path) -> None:
    net = SimulatedNet()
    for n in range(5):
        net.worker(f"w{n}")
    net.down = True

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        assert (await discovery.offers()).offers == ()
        await pass_time(120)
        net.down = False
        assert len((await discovery.offers()).offers) == 5

    store = play(tmp_path, net, scene)
    assert all(memory.failures == 0 for memory in store.workers.experience().values())
    store.close()


@pytest.mark.parametrize("seed", range(25))
def test_the_first_answer_never_waits_for_the_rest(seed: int, tmp_path: Path) -> None:
    """Any mix of indexes and workers, fast, slow and silent."""
    chance, net = random.Random(seed), SimulatedNet()
    delays = [0.01, 0.2, 0.9, 2.5, None, None]
    for n in range(chance.randrange(1, 60)):
        net.worker(f"w{n}", delay_s=chance.choice(delays))
    shown = [place.signed for place in net.places.values() if place.signed]
    for n in range(chance.randrange(4)):
        listed = chance.sample(shown, chance.randrange(len(shown) + 1))
        net.indexes[f"http://index{n}"] = Shelf(listed, chance.choice(delays))
    useful = [i.delay_s for i in net.indexes.values() if i.offers and i.delay_s is not None]
    direct = [p.delay_s for p in net.places.values() if p.delay_s is not None]

    async def scene(net: SimulatedNet, discovery: Discovery) -> None:
        for _ in range(4):
            found, seconds = await timed(discovery.offers())
            answered = [i for i in net.indexes.values() if i.delay_s is not None]
            if useful:
                assert found.offers
                assert seconds <= max(1.0, min(useful)) + 0.01
            elif not answered and direct:
                assert found.offers
                # A second for the indexes, the last wave of dials, a connection and an answer.
                assert seconds <= 1.0 + 0.5 + 2 * max(0.5, min(direct)) + 0.01
            assert seconds <= 12
            await pass_time(chance.choice([1, 5, 70, 400]))

    play(tmp_path, net, scene).close()
