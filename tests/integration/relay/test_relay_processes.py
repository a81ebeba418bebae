"""Faults of a worker's relays with real processes: they are dialled, killed, frozen and come back.

Worker, relays and chain are what owners run. Nothing here needs a network namespace.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework_node.daemon.admin import ask_daemon
from tests.integration.market.test_changes import worker_command
from tests.integration.relay.test_behind_a_router import (
    PAYER,
    POOL,
    RelayProcess,
    client_of,
    start_relay,
)
from tests.support.chains import ETHER, TestMarket, deployed
from tests.support.client_side import CanvasText, ask, collect, last
from tests.support.waiting import until
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.process


@dataclass
class TwoRelays:
    """A market, two relays of it and a worker that names both."""

    market: TestMarket
    deployment: Path
    relays: list[RelayProcess]
    worker: WorkerProcess

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(relay.name for relay in self.relays)

    async def status(self) -> dict[str, Any]:
        return await ask_daemon(self.worker.home.root, "GET", "/status")

    async def is_joined(self, name: str) -> bool:
        return bool((await self.status())["relays"][name] == "joined")


@asynccontextmanager
async def two_relays(
    folder: Path, chain: EmbeddedChain, **settings: Any
) -> AsyncIterator[TwoRelays]:
    """Start two relays, and make a worker's home that names them."""
    async with deployed(chain) as market:
        file = folder / "deployment.json"
        market.deployment.save(file)
        relays = list(await asyncio.gather(start_relay(file), start_relay(file)))
        names = tuple(relay.name for relay in relays)
        worker = await WorkerProcess.register(
            folder / "worker", market.deployment, relays=names, **settings
        )
        made = TwoRelays(market, file, relays, worker)
        try:
            yield made
        finally:
            for relay in made.relays:
                relay.process.send_signal(signal.SIGCONT)
            await asyncio.gather(*(relay.end() for relay in made.relays))


async def test_a_relay_dials_a_worker_whose_market_has_no_index(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    """The check says so before the start, and the ready line and the status after it."""
    async with two_relays(tmp_path, embedded_chain, pace_s=0.01) as made:
        first, worker = made.names[0], made.worker
        checked = (await worker_command(worker, "check", "--json")).json()
        lines = str(checked)
        assert f"relay {first} reached {worker.endpoint}" in lines
        ready = await worker.start()
        try:
            # A relay that has dialled for this operator less than a minute ago leaves it to others.
            (by,) = ready["dialled_by"]
            assert by in {f"relay {name}" for name in made.names}
            everywhere = (worker.endpoint, *made.names)
            assert ready["reached"] == dict.fromkeys(everywhere, "reached")
            assert ready["can_earn"]
            said = await worker_command(worker, "status")
            assert f"(by {by})" in said.out
        finally:
            assert await worker.drain() == 0


async def test_a_relay_that_is_killed_is_told_and_joined_when_it_is_back(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with two_relays(tmp_path, embedded_chain, pace_s=0.01) as made:
        gone, left = made.names
        await made.worker.start()
        try:
            made.relays[0].process.kill()

            async def missed() -> bool:
                return not await made.is_joined(gone)

            await until(missed, within_s=30)
            status = await made.status()
            assert status["relays"][left] == "joined" and status["state"] == "ready"
            assert [fault["code"] for fault in status["faults"]] == ["relay-away"]
            made.relays[0] = await start_relay(made.deployment, port=int(gone.split(":")[1]))

            async def back() -> bool:
                return await made.is_joined(gone)

            await until(back, within_s=60)
            assert (await made.status())["faults"] == []
        finally:
            assert await made.worker.drain() == 0


async def test_a_relay_that_freezes_in_a_job_costs_time_and_no_money(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    """SIGSTOP: the connection stays, and nothing comes any more. The job goes on elsewhere."""
    async with (
        two_relays(tmp_path, embedded_chain, pace_s=0.05, bind="") as made,
        client_of(tmp_path, made.market) as client,
    ):
        await made.market.pool(PAYER, embedded_chain.faucet, POOL)
        await made.market.give(PAYER.address, wei=ETHER)
        await made.worker.start()
        try:
            running = asyncio.create_task(collect(client.run(ask(max_tokens=400, seed=3))))
            await until(lambda: bool(client.store.receipts()), within_s=60)
            made.relays[0].process.send_signal(signal.SIGSTOP)
            events = await asyncio.wait_for(running, 120)
            canvases = [event for event in events if isinstance(event, CanvasText)]
            assert last(events).acknowledged
            assert last(events).cost == sum(canvas.amount for canvas in canvases)
        finally:
            made.relays[0].process.send_signal(signal.SIGCONT)
            assert await made.worker.drain() == 0
