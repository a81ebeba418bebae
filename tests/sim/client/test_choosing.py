"""A client takes the worker that it is connected to, as long as others do not ask far less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from piecework.client.jobs.choosing import Chooser
from piecework.client.jobs.requests import Filters
from piecework.client.jobs.selection import Ranking
from piecework.client.journal.store import Store
from piecework.client.limits import OFFERS_STALE_S, SEARCH_GRACE_S
from piecework_protocol.objects import ModelOffer
from piecework_protocol.types import Address, Amount
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.client.client_side import PAYER, ask
from tests.support.market.offers import model, operator
from tests.support.market.shipped import InlineExecutor
from tests.support.market.simulated_net import Shelf, SimulatedNet, searching
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time

INDEX = "http://index.example"
Scene = Callable[[SimulatedNet, Chooser], Awaitable[None]]


def play(folder: Path, scene: Scene) -> SimulatedNet:
    """Run a scene with a client that chooses on this network."""
    net = SimulatedNet()
    net.indexes = {INDEX: Shelf()}
    store = Store(folder / "client.db", net.chain.domain, PAYER.address, committer=InlineExecutor())

    async def run() -> None:
        filters = Filters(now=0, token=TOKEN_INFO, price_cap=3.0)
        async with searching(net, store) as client:
            parts = client.discovery, client.links, client.reachability, client.clock
            chooser = Chooser(*parts, filters)
            await scene(net, chooser)
            await chooser.close()

    simulate(run())
    store.close()
    return net


def priced(scale: float) -> ModelOffer:
    """The model at a multiple of what everybody asks."""
    return model(
        price_per_million_prompt_tokens=Amount(int(50_000 * scale)),
        price_per_million_output_tokens=Amount(int(200_000 * scale)),
        price_per_thousand_steps=Amount(int(1_000 * scale)),
    )


def show(net: SimulatedNet, **scales: float) -> None:
    """Let the index show these workers at these prices, and nobody else."""
    net.indexes[INDEX].offers = [
        net.worker(name, models=(priced(scale),)) for name, scale in scales.items()
    ]


def best(ranking: Ranking) -> Address:
    return ranking.choices[0].operator


def test_the_first_request_after_a_rise_goes_to_who_asks_what_was_asked(tmp_path: Path) -> None:
    async def scene(net: SimulatedNet, chooser: Chooser) -> None:
        show(net, eve=1)
        assert best(await chooser.choose(ask())) == operator("eve").address
        show(net, eve=5_000, ada=1, bob=1)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            began = loop.time()
            ranking = await chooser.choose(ask())
            assert loop.time() - began <= SEARCH_GRACE_S + 0.1
            dear = [c for c in ranking.choices if c.model == priced(5_000)]
            assert not dear, "nobody pays 5,000 times as much because it has a connection"
            await pass_time(OFFERS_STALE_S / 2 + 1)
        assert best(ranking) != operator("eve").address

    play(tmp_path, scene)


def test_a_little_dearer_worker_with_a_connection_is_taken_without_waiting(tmp_path: Path) -> None:
    async def scene(net: SimulatedNet, chooser: Chooser) -> None:
        show(net, eve=2)
        await chooser.choose(ask())
        show(net, eve=2, ada=1)
        await pass_time(OFFERS_STALE_S + 1)
        await chooser.choose(ask())
        loop = asyncio.get_running_loop()
        began = loop.time()
        assert best(await chooser.choose(ask())) == operator("eve").address
        assert loop.time() == began

    play(tmp_path, scene)


def test_a_bait_that_never_answers_costs_a_second_now_and_then(tmp_path: Path) -> None:
    async def scene(net: SimulatedNet, chooser: Chooser) -> None:
        show(net, eve=1)
        await chooser.choose(ask())
        net.indexes[INDEX].offers = [
            net.worker("eve", models=(priced(1),)),
            net.worker("bait", models=(priced(0.001),), delay_s=None),
        ]
        await pass_time(OFFERS_STALE_S + 1)
        await chooser.choose(ask())
        loop = asyncio.get_running_loop()
        waited = []
        for _ in range(20):
            began = loop.time()
            assert best(await chooser.choose(ask())) == operator("eve").address
            waited.append(loop.time() - began)
            await pass_time(OFFERS_STALE_S / 2)
        assert max(waited) <= SEARCH_GRACE_S + 0.1
        assert sum(waited) <= 5 * SEARCH_GRACE_S + 0.5, "it rests, longer each time"

    play(tmp_path, scene)
