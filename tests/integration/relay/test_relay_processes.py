"""Faults of a worker's relays and index with real processes: killed, frozen, wrong, and back.

Worker, relays and chain are what owners run. Nothing here needs a network namespace.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.base.http import HttpLimits, HttpReader, host_of
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.sending.deploy import deploy
from piecework.client.errors import JobInterrupted
from piecework.client.jobs.events import JobEvent
from piecework.client.sdk import PieceworkClient
from piecework.demo.market import free_port
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.index_pages import parse_page
from piecework_protocol.types import Amount
from tests.integration.market.test_changes import worker_command
from tests.integration.relay.test_behind_a_router import PAYER, POOL, client_of
from tests.support.chain.chains import (
    ETHER,
    MIN_STAKE,
    POLL_S,
    UNBONDING_DELAY_S,
    TestMarket,
    deployed,
)
from tests.support.client.client_side import CanvasText, ask, collect, last
from tests.support.network.relay_process import RelayProcess, start_relay
from tests.support.system.worker_process import POLL_STATUS_S, WorkerProcess
from tests.support.waiting import until

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

            await until(missed, within_s=30, poll_s=POLL_STATUS_S)
            status = await made.status()
            assert status["relays"][left] == "joined" and status["state"] == "ready"
            assert [fault["code"] for fault in status["faults"]] == ["relay-away"]
            made.relays[0] = await start_relay(made.deployment, port=int(gone.split(":")[1]))

            async def back() -> bool:
                return await made.is_joined(gone)

            await until(back, within_s=60, poll_s=POLL_STATUS_S)
            assert (await made.status())["faults"] == []
        finally:
            assert await made.worker.drain() == 0


async def begun_job(
    made: TwoRelays, client: PieceworkClient, chain: EmbeddedChain
) -> asyncio.Task[list[JobEvent]]:
    """Start the worker, and a long job whose first canvas has its receipt."""
    await made.market.pool(PAYER, chain.faucet, POOL)
    await made.market.give(PAYER.address, wei=ETHER)
    await made.worker.start()
    try:
        running = asyncio.create_task(collect(client.run(ask(max_tokens=400, seed=3))))
        await until(lambda: bool(client.store.receipts()), within_s=60)
    except BaseException:
        await made.worker.drain()
        raise
    return running


async def test_a_relay_that_freezes_in_a_job_costs_time_and_no_money(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    """SIGSTOP: the connection stays, and nothing comes any more. The job goes on elsewhere."""
    async with (
        two_relays(tmp_path, embedded_chain, pace_s=0.05, bind="") as made,
        client_of(tmp_path, made.market) as client,
    ):
        running = await begun_job(made, client, embedded_chain)
        try:
            made.relays[0].process.send_signal(signal.SIGSTOP)
            events = await asyncio.wait_for(running, 120)
            canvases = [event for event in events if isinstance(event, CanvasText)]
            assert last(events).acknowledged
            assert last(events).cost == sum(canvas.amount for canvas in canvases)
        finally:
            made.relays[0].process.send_signal(signal.SIGCONT)
            assert await made.worker.drain() == 0


async def test_a_worker_that_is_killed_behind_its_relays_comes_back_and_its_job_goes_on(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    """The relays find out by themselves, and let the new link in. Nobody pays twice."""
    async with (
        two_relays(tmp_path, embedded_chain, pace_s=0.05, bind="") as made,
        client_of(tmp_path, made.market) as client,
    ):
        running = await begun_job(made, client, embedded_chain)
        try:
            await made.worker.kill()
            ready = await made.worker.start()
            assert ready["relays"] == dict.fromkeys(made.names, "joined")
            try:
                events = await asyncio.wait_for(running, 180)
            except JobInterrupted as cut:  # the start took longer than the client waits
                events = await asyncio.wait_for(collect(client.resume(cut.job)), 180)
            (row,) = client.store.channels()
            _, receipts = await client.receipts(row.id)
            assert last(events).acknowledged and not [r.trouble for r in receipts if r.trouble]
            assert last(events).cost == sum(proven.row.receipt.amount for proven in receipts)
        finally:
            assert await made.worker.drain() == 0


async def test_a_relay_of_another_market_declines_and_the_other_one_serves(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with two_relays(tmp_path, embedded_chain, pace_s=0.01, bind="") as made:
        elsewhere = await deploy(
            embedded_chain.url,
            embedded_chain.faucet,
            min_stake=Amount(2 * MIN_STAKE),
            unbonding_delay_s=UNBONDING_DELAY_S,
            poll_s=POLL_S,
        )
        elsewhere.save(tmp_path / "elsewhere.json")
        wrong, right = made.names
        assert await made.relays[0].end() == 0
        port = int(wrong.rpartition(":")[2])
        made.relays[0] = await start_relay(tmp_path / "elsewhere.json", port)
        ready = await made.worker.start()
        try:
            assert ready["ready"] and ready["relays"][right] == "joined"
            status = await made.status()
            assert "did not sign for the relay" in status["relays"][wrong]
            assert [fault["code"] for fault in status["faults"]] == ["relay-declines"]
            assert ready["endpoint"] == right
        finally:
            assert await made.worker.drain() == 0


async def test_an_index_that_is_killed_is_told_and_shows_the_worker_when_it_is_back(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with two_relays(
        tmp_path, embedded_chain, pace_s=0.01, indexes=(url,), offer_lifetime_s=30
    ) as made:
        index = await start_index(made.deployment, tmp_path / "index", port)
        ready = await made.worker.start()
        try:
            assert ready["shown_by"] == {host_of(url): True}
            index.kill()
            await index.wait()

            async def codes() -> list[str]:
                return [fault["code"] for fault in (await made.status())["faults"]]

            async def missed() -> bool:
                return "index-away" in await codes()

            await until(missed, within_s=60, poll_s=POLL_STATUS_S)
            assert (await made.status())["state"] == "ready", "clients find it in the registry"
            index = await start_index(made.deployment, tmp_path / "index", port)

            async def over() -> bool:
                return not await codes()

            await until(over, within_s=90, poll_s=POLL_STATUS_S)
            async with HttpReader(HttpLimits(total_s=5, connect_s=5, max_bytes=2**20)) as http:
                (offer,) = parse_page(await http.get(f"{url}/v1/offers"), 10)[0]
            assert {one.address for one in offer.offer.endpoints} >= set(made.names)
        finally:
            assert await made.worker.drain() == 0
            index.terminate()
            await index.wait()


async def start_index(deployment: Path, home: Path, port: int) -> asyncio.subprocess.Process:
    """Run `piecework market start` and wait for its ready line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "market", "start"),
        *("--deployment", str(deployment), "--home", str(home), "--port", str(port)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 60), "the index ended"
    return process
