"""Many workers, most of them useless in one way or another: every request finds one that is not."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from piecework.client.config import load_config
from piecework.client.errors import NoWorkerFits
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.types import Uint32
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.client.client_side import MONEY, PAYER, ask, collect, last, text_of
from tests.support.client.fake_worker import STORY, FakeWorker, Script, model_offer
from tests.support.market.memory_worker import MemoryMarket, Stall
from tests.support.market.shipped import InlineExecutor
from tests.support.virtual_time import LoopClock, simulate
from tests.support.waiting import pass_time

WHOLE = " ".join(STORY)
KINDS = ("honest", "silent", "dead", "busy", "broken engine", "drops", "refuses", "greedy")


class Scene:
    """A client and a market in memory."""

    def __init__(self, folder: Path, **flags: Any) -> None:
        self.chain, self.clock, self.market = FakeChain(), LoopClock(), MemoryMarket()
        self.chain.deposit(PAYER.address, 100 * MONEY)
        self.folder, self.flags = folder, flags

    def worker(self, name: str, kind: str, price: int, *relays: str) -> FakeWorker:
        """Add a worker that is useless in this way, with an address of its own or at relays."""

        async def gate(canvas: int) -> None:
            await pass_time(3600.0 if kind == "silent" else 0.3)

        script = Script(gate=gate)
        if kind == "busy":
            script.refusals = [Refusal(Reason.BUSY, "full", retry_after_s=1)] * 999
        elif kind == "refuses":
            script.refusals = [Refusal(Reason.INTERNAL, "a fault")] * 999
        elif kind == "broken engine":
            script.fail_at = 0
        elif kind == "drops":
            script.drop_after = [1, 2]
        greed = 5_000 if kind == "greedy" else 1
        model = model_offer(price=price * greed).replace(first_canvas_ms=Uint32(300))
        worker = FakeWorker(self.chain, self.clock, name=name, script=script, models=(model,))
        worker.ways = tuple(Endpoint(Route.RELAYED, relay) for relay in relays)
        self.market.add(worker, name)
        if kind == "dead":
            self.market.dead.add(worker.endpoint)
        return worker

    def client(self) -> PieceworkClient:
        """Open the client. Opening it again is a restart."""
        config = load_config(self.folder / "none", self.flags, environment={})
        store = Store(
            self.folder / "client.db", self.chain.domain, PAYER.address, committer=InlineExecutor()
        )
        return PieceworkClient(
            store,
            self.chain,
            Wallet(PAYER, PAYER),
            TOKEN_INFO,
            config,
            clock=self.clock,
            connect=self.market.connect,
        )


async def timed_request(client: PieceworkClient, text: str) -> tuple[list[Any], float]:
    loop = asyncio.get_running_loop()
    start = loop.time()
    events = await collect(client.run(ask(text)))
    return events, loop.time() - start


@pytest.mark.parametrize("seed", range(16))
def test_every_request_finds_the_worker_that_serves(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)

    async def play() -> None:
        scene = Scene(tmp_path)
        kinds = ["honest", *(chance.choice(KINDS) for _ in range(chance.randrange(7)))]
        chance.shuffle(kinds)
        workers = [
            (kind, scene.worker(f"w{n}", kind, chance.choice([900_000, 1_000_000, 1_100_000])))
            for n, kind in enumerate(kinds)
        ]
        spent = 0
        for restart in range(2):
            async with scene.client() as client:
                for request in range(4):
                    events, seconds = await timed_request(client, f"{restart}.{request}")
                    assert text_of(events) == WHOLE
                    spent += last(events).cost
                    assert seconds <= 60 + 25 * kinds.count("silent")
                    if restart or request:
                        assert seconds <= 20, "what was learnt is not forgotten"
        await scene.market.close()
        assert sum(worker.paid() for _, worker in workers) == spent
        for kind, worker in workers:
            assert worker.violations == []
            if kind == "silent":
                assert len(worker.submissions) <= 1
            if kind == "greedy":
                assert worker.submissions == []

    simulate(play())


def test_requests_at_once_leave_a_silent_worker_together(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path)
        silent = scene.worker("cheap", "silent", 900_000)
        scene.worker("honest", "honest", 1_000_000)
        async with scene.client() as client:
            runs = await asyncio.gather(*(timed_request(client, f"{n}") for n in range(10)))
            assert all(text_of(events) == WHOLE for events, _ in runs)
            assert max(seconds for _, seconds in runs) <= 30
            _, seconds = await timed_request(client, "after")
            assert seconds <= 3
        await scene.market.close()
        assert silent.paid() == 0

    simulate(play())


def test_with_only_useless_workers_a_request_ends_and_says_why(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path)
        for n, kind in enumerate(("silent", "dead", "refuses", "broken engine")):
            scene.worker(f"w{n}", kind, 1_000_000)
        async with scene.client() as client:
            with pytest.raises(NoWorkerFits, match="has fallen silent"):
                await timed_request(client, "x")
            assert asyncio.get_running_loop().time() <= 60
        await scene.market.close()

    simulate(play())


def test_a_silent_worker_is_asked_again_when_it_is_the_only_one(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path)
        worker = scene.worker("only", "silent", 1_000_000)
        async with scene.client() as client:
            with pytest.raises(NoWorkerFits):
                await timed_request(client, "x")
            honest = scene.worker("other", "honest", 1_000_000).script.gate
            scene.market.dead.add("other.example:7000")
            worker.script.gate = honest
            await pass_time(120)
            events, _ = await timed_request(client, "y")
            assert text_of(events) == WHOLE
        await scene.market.close()

    simulate(play())


@pytest.mark.parametrize("stall", Stall)
def test_a_worker_whose_first_way_stalls_is_reached_over_the_next_one(
    tmp_path: Path, stall: Stall
) -> None:
    async def play() -> None:
        scene = Scene(tmp_path)
        scene.market.stalls["one.example:7000"] = stall
        relays = ("one.example:7000", "two.example:7000")
        worker = scene.worker("only", "honest", 1_000_000, *relays)
        async with scene.client() as client:
            events, seconds = await timed_request(client, "x")
            assert text_of(events) == WHOLE
            assert seconds <= 40
            spent = int(last(events).cost)
            events, seconds = await timed_request(client, "y")
            assert text_of(events) == WHOLE
            assert seconds <= 5, "the way that stalled rests"
            spent += last(events).cost
        await scene.market.close()
        assert worker.violations == []
        assert worker.paid() == spent

    simulate(play())


def test_a_worker_that_is_silent_on_two_ways_is_left_after_both(tmp_path: Path) -> None:
    async def play() -> None:
        scene = Scene(tmp_path)
        relays = tuple(f"{name}.example:7000" for name in ("one", "two", "three"))
        scene.market.stalls.update(dict.fromkeys(relays, Stall.BOTH))
        scene.worker("cheap", "honest", 900_000, *relays)
        scene.worker("other", "honest", 1_000_000)
        async with scene.client() as client:
            events, seconds = await timed_request(client, "x")
            assert text_of(events) == WHOLE
            assert seconds <= 70
        await scene.market.close()

    simulate(play())
