"""A market of real processes whose workers are reached in one of three ways.

Two workers serve, of different owners, and the first one asks less. Chain and clients are in this
process, workers and relays are what owners run. Each client is somebody new, so that tests of one
market do not meet.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.reading.reader import ChainReader
from piecework.client.config import load_config
from piecework.client.errors import WorkerUnreachable
from piecework.client.journal.store import Store
from piecework.client.network.transport import WorkerLink
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.demo.market import free_port
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, keccak256
from tests.support.chain.chains import ETHER, USD, TestMarket, deployed, signer
from tests.support.network.namespace import is_allowed, ways_out
from tests.support.network.relay_process import RelayProcess, start_relay
from tests.support.network.wire import Wire
from tests.support.system.worker_process import WorkerProcess
from tests.support.waiting import until

POOL = 3 * USD
START_S = 180.0
PACE_S = 0.02
NAMES = ("first", "second")
PRICES = (10, 20)
"""Of the two workers, in tokens for a million output tokens."""


class Way(enum.Enum):
    """How clients come to a worker."""

    DIRECT = "direct"
    RELAYED = "relayed"
    BEHIND_A_ROUTER = "behind a router"
    """Relayed, and the worker is in a network of its own that nobody can dial."""


def require_namespace() -> None:
    """Skip the test, by name, where the system does not let us make a network namespace."""
    if not is_allowed():
        pytest.skip("this system allows no network namespace")


@dataclass
class ReachedWorker:
    """A worker, and the wire that all of its clients come over."""

    worker: WorkerProcess
    wire: Wire
    operator: Address
    relay: RelayProcess | None = None

    @property
    def endpoint(self) -> Endpoint:
        """What its offers name."""
        route = Route.DIRECT if self.relay is None else Route.RELAYED
        return Endpoint(route, self.wire.address)

    async def is_reached(self) -> bool:
        """Whether a client that dials now comes to it."""
        try:
            link = await WorkerLink.connect(self.wire.address, self.operator, None)
        except WorkerUnreachable:
            return False
        await link.close()
        return True

    async def back(self) -> None:
        """Wait until clients reach it again, after its wire was cut or down."""
        await until(self.is_reached, within_s=60, poll_s=0.2)


@dataclass
class ReachedMarket:
    """The two workers, and what a client needs."""

    way: Way
    root: Path
    market: TestMarket
    workers: list[ReachedWorker] = field(default_factory=list)

    @property
    def first(self) -> ReachedWorker:
        """The one that asks less."""
        return self.workers[0]

    @property
    def second(self) -> ReachedWorker:
        return self.workers[1]

    def of(self, operator: Address) -> ReachedWorker:
        """The worker of this operator."""
        (found,) = [one for one in self.workers if one.operator == operator]
        return found

    def other(self, operator: Address) -> ReachedWorker:
        """The worker that is not this operator's."""
        (found,) = [one for one in self.workers if one.operator != operator]
        return found

    @asynccontextmanager
    async def client(
        self, name: str, *, pool: int = POOL, **flags: Any
    ) -> AsyncIterator[PieceworkClient]:
        """A client with money. Nobody was here under this name before, unless it was this one."""
        deployment, payer = self.market.deployment, signer(f"client of every way: {name}")
        folder = self.root / name
        if not folder.exists():
            folder.mkdir()
            await self.market.pool(payer, self.market.chain.faucet, pool)
            await self.market.give(payer.address, wei=ETHER)
        store = Store(folder / "client.db", deployment.domain, payer.address)
        settings = {"deposit": "1 tUSDC", **flags}
        config = load_config(folder / "no-file", settings, environment={})
        reader = await ChainReader.connect(deployment)
        wallet, token = Wallet(payer, payer), deployment.payment_token
        async with PieceworkClient(store, reader, wallet, token, config) as client:
            yield client


@asynccontextmanager
async def market_by(way: Way, root: Path) -> AsyncIterator[ReachedMarket]:
    """Start all of it. At its end both workers drain, which must succeed."""
    async with AsyncExitStack() as stack:
        chain = await stack.enter_async_context(EmbeddedChain())
        market = await stack.enter_async_context(deployed(chain))
        market.deployment.save(root / "deployment.json")
        made = ReachedMarket(way, root, market)
        wires = [Wire(), Wire()]
        for wire in wires:
            await wire.up()
            stack.push_async_callback(wire.down)
        relays = await _relays(stack, way, root, wires)
        for name, price, wire, relay in zip(NAMES, PRICES, wires, relays, strict=True):
            made.workers.append(await _registered(made, name, price, wire, relay))
        if way is Way.BEHIND_A_ROUTER:
            inside = root / "ways-out"
            inside.mkdir()
            ports = [int(chain.url.rpartition(":")[2]), *(wire.port for wire in wires)]
            within = await stack.enter_async_context(ways_out(inside, ports))
            for reached in made.workers:
                reached.worker.within = within
        for reached in made.workers:
            stack.push_async_callback(_end, reached.worker)
        await asyncio.gather(*(reached.worker.start(START_S) for reached in made.workers))
        yield made
        for reached in made.workers:
            assert await reached.worker.drain() == 0, reached.worker.log_tail()


async def _relays(
    stack: AsyncExitStack, way: Way, root: Path, wires: list[Wire]
) -> list[RelayProcess | None]:
    """A relay at the end of each wire, under the wire's address."""
    if way is Way.DIRECT:
        return [None for _ in wires]
    file = root / "deployment.json"
    relays = await asyncio.gather(*(start_relay(file, name=wire.address) for wire in wires))
    for relay, wire in zip(relays, wires, strict=True):
        stack.push_async_callback(relay.end)
        wire.leads_to = relay.port
    return list(relays)


async def _registered(
    made: ReachedMarket, name: str, price: int, wire: Wire, relay: RelayProcess | None
) -> ReachedWorker:
    """A worker's home. price: tokens for a million output tokens."""
    secret = bytes(keccak256(f"{name} of every way".encode()))
    owner = Address(keccak256(f"owner of {name}".encode())[12:])
    settings: dict[str, Any] = {"bind": "", "relays": (wire.address,)}
    if relay is None:
        wire.leads_to = free_port()
        settings = {"bind": f"127.0.0.1:{wire.leads_to}", "endpoint": wire.address}
    worker = await WorkerProcess.register(
        made.root / f"{name}-worker",
        made.market.deployment,
        pace_s=PACE_S,
        secret=secret,
        owner=owner,
        payout=owner,
        registered=wire.address,
        price_per_million_output_tokens=f"{price} tUSDC",
        min_deposit="0.0001 tUSDC",
        min_top_up="0.0001 tUSDC",
        **settings,
    )
    return ReachedWorker(worker, wire, LocalSigner(secret).address, relay)


async def _end(worker: WorkerProcess) -> None:
    """Leave no process behind, however the test ended."""
    if worker.process is not None and worker.process.returncode is None:
        await worker.kill()
