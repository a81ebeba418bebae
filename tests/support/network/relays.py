"""A relay in this process, and what stands behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from piecework.base.clock import Clock, SystemClock
from piecework.base.connections import ConnectionLimits
from piecework.base.dialling import Dialler
from piecework.base.listener import bind
from piecework.relay.joined import Gatekeeper
from piecework.relay.limits import RelayLimits
from piecework.relay.operators import RegisteredOperators, WorkerRegistry, dial_back_server
from piecework.relay.server import Relay
from piecework_node import logs
from piecework_node.job_port.front import Front, FrontLimits
from piecework_node.job_port.relays import RelayCredentials, Relays
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import FaultBoard
from piecework_protocol.eip712 import Domain
from piecework_protocol.relaying import relay_domain
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address
from tests.support.chain.fake_chain import DOMAIN

MARKET: Domain = relay_domain(31337, Address(b"\x22" * 20))
"""The domain of admissions in the market of these tests."""
OPEN = ConnectionLimits(512, 64, opened_burst=100_000)
LIMITS = RelayLimits(OPEN)
FRONT = FrontLimits(ConnectionLimits(256, 64, opened_burst=100_000))


@dataclass
class RunningRelay:
    """A relay and what it calls itself."""

    relay: Relay
    name: str
    opened: list[asyncio.StreamWriter] = field(default_factory=list)
    """Connections of the test, which end with the relay."""

    @property
    def port(self) -> int:
        return int(self.name.rpartition(":")[2])


@asynccontextmanager
async def running_relay(
    registry: WorkerRegistry,
    limits: RelayLimits = LIMITS,
    *,
    clock: Clock | None = None,
    port: int = 0,
    dialler: Dialler | None = None,
) -> AsyncIterator[RunningRelay]:
    """Run a relay. Port 0 picks a free one."""
    clock = clock or SystemClock()
    sockets = bind("127.0.0.1", port)
    name = f"127.0.0.1:{sockets[0].getsockname()[1]}"
    operators = RegisteredOperators(registry, clock)
    gatekeeper = Gatekeeper(name, MARKET, operators, clock)
    dials = dial_back_server(operators, dialler or Dialler(public_only=False), DOMAIN, clock)
    relay = Relay(gatekeeper, dials, limits, clock=clock, log=logs.silent())
    relay.start(sockets)
    running = RunningRelay(relay, name)
    try:
        yield running
    finally:
        for writer in running.opened:
            writer.transport.abort()
        await relay.close()


class BehindRelays:
    """The front of a worker that listens on no address, and its links to relays."""

    def __init__(
        self,
        operator: AsyncSigner,
        names: tuple[str, ...],
        *,
        front: Front | None = None,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.board = FaultBoard(clock, Metrics(), logs.silent(), patience_s=0)
        self.refused: list[Any] = []
        self.front = front or Front(
            replace(FRONT), has_paid=lambda _: False, on_refused=self.refused.append, clock=clock
        )
        credentials = RelayCredentials(operator, MARKET, clock)
        self.relays = Relays(names, credentials, self.front, self.board, listens=False)
        self._life: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Join every relay, and keep joining."""
        self._life = asyncio.create_task(self.relays.run())
        await self.relays.settled(10.0)

    async def leave(self) -> None:
        """Hang up."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        await self.front.close()
