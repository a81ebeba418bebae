"""A real worker in a network that nobody can dial, a real relay, and a client with money.

It needs a network namespace, and is skipped by name where the system does not let us make one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.journal.store import Store
from piecework.client.orders import ClosingState
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.objects import Endpoint, Route
from tests.support.chain.chains import ETHER, TestMarket, deployed, signer
from tests.support.client.client_side import CanvasText, JobResuming, ask, collect, last, text_of
from tests.support.market.ways import require_namespace
from tests.support.network.namespace import listening, ways_out
from tests.support.network.relay_process import RelayProcess, start_relay
from tests.support.system.worker_process import WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

PAYER = signer("payer of a worker behind a router")
POOL = 3_000_000
LOOPBACK = "0100007F"


@asynccontextmanager
async def client_of(folder: Path, market: TestMarket) -> AsyncIterator[PieceworkClient]:
    """A client with money that knows the chain, and no index."""
    store = Store(folder / "client.db", market.deployment.domain, PAYER.address)
    config = load_config(folder / "no-file", {"deposit": "1 tUSDC"}, environment={})
    token = market.deployment.payment_token
    async with PieceworkClient(store, market.reader, Wallet(PAYER, PAYER), token, config) as client:
        yield client


async def test_a_worker_behind_a_router_is_found_paid_resumed_and_closed_with(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    require_namespace()
    async with deployed(embedded_chain) as market:
        market.deployment.save(tmp_path / "deployment.json")
        start = start_relay(tmp_path / "deployment.json")
        relays = await asyncio.gather(start, start_relay(tmp_path / "deployment.json"))
        names = tuple(relay.name for relay in relays)
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.05, bind="", relays=names
        )
        ports = [int(address.rpartition(":")[2]) for address in (*names, embedded_chain.url)]
        await market.pool(PAYER, embedded_chain.faucet, POOL)
        await market.give(PAYER.address, wei=ETHER)
        try:
            async with (
                ways_out(tmp_path, ports) as within,
                client_of(tmp_path, market) as client,
            ):
                worker.within = within
                ready = await worker.start()
                assert ready["ready"] and ready["relays"] == dict.fromkeys(names, "joined")
                _is_reached_from_inside_alone(worker)

                found = await client.offers()
                (offer,) = [signed.offer for signed in found.offers]
                assert offer.endpoints == tuple(Endpoint(Route.RELAYED, name) for name in names)
                paid = await collect(client.run(ask(max_tokens=40, seed=3)))
                assert text_of(paid) and last(paid).acknowledged

                await _a_relay_dies_in_the_middle_of_a_job(relays[0], client)
                (closing,) = await client.funds.close_all()
                assert closing.state is ClosingState.CLOSED
                assert "together with the worker" in closing.note
        finally:
            assert await worker.drain() == 0
            assert await relays[1].end() == 0
            await relays[0].end()


def _is_reached_from_inside_alone(worker: WorkerProcess) -> None:
    """Whatever listens in its network listens on its own loopback, and there is no other device."""
    assert worker.process is not None
    pid = worker.process.pid
    assert listening(pid) <= {LOOPBACK, "00000000000000000000000001000000"}
    devices = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


async def _a_relay_dies_in_the_middle_of_a_job(
    relay: RelayProcess, client: PieceworkClient
) -> None:
    """The job goes on through the other one, and nothing is paid twice."""
    before = len(client.store.receipts())
    running = asyncio.create_task(collect(client.run(ask(max_tokens=400, seed=3))))
    await until(lambda: len(client.store.receipts()) > before)
    relay.process.kill()
    events = await asyncio.wait_for(running, 60)
    assert any(isinstance(event, JobResuming) for event in events)
    canvases = [event for event in events if isinstance(event, CanvasText)]
    assert last(events).acknowledged
    assert last(events).cost == sum(canvas.amount for canvas in canvases)
