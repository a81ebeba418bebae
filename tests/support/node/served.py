"""A worker with a scripted engine behind the real gRPC server and its front, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from piecework.base.clock import SystemClock
from piecework.base.connections import ConnectionLimits, Refused
from piecework.base.listener import bind
from piecework_node import logs
from piecework_node.job_port.front import Front, FrontLimits
from piecework_node.job_port.peers import FrontEntrance, PeerLimits, Peers
from piecework_node.job_port.server import (
    TIMES,
    ChannelCloser,
    GrpcServer,
    StreamTimes,
    WorkerServicer,
)
from piecework_node.jobs.offers import OfferBoard
from piecework_node.keys.tls import TlsIdentity, create_tls
from piecework_protocol.types import Digest, Timestamp
from tests.support.client.scripted_client import ScriptedJob
from tests.support.clock import FakeClock
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import DOMAIN, OPERATOR, Client, WorkerHarness, parameters
from tests.support.node.settlement import make_settler
from tests.support.node.wire_client import WireClient

CONNECTIONS = ConnectionLimits(256, 64, opened_burst=100_000)
FRONT = FrontLimits(CONNECTIONS)
PEERS = PeerLimits(64, 16, 60_000, 60_000)


class RealClock(FakeClock):
    """The machine's time, for code that waits in real time."""

    def __init__(self) -> None:
        super().__init__()
        self._system = SystemClock()

    def now(self) -> Timestamp:
        return Timestamp(int(self.wall()))

    def wall(self) -> float:
        return self._system.wall()

    def monotonic(self) -> float:
        return self._system.monotonic()


class Served:
    """A stage behind a real server."""

    def __init__(self, harness: WorkerHarness, certificate: bytes) -> None:
        self.harness, self.certificate = harness, certificate
        self.refused: list[Refused] = []
        self.payer = Client(harness)
        self.port = 0
        self.server: GrpcServer
        self.front: Front
        self.peers: Peers

    def client(self) -> WireClient:
        """The payer."""
        payer = self.payer
        where = f"127.0.0.1:{self.port}"
        return WireClient(
            where,
            DOMAIN,
            payer.signer,
            payer.channel,
            deposit=payer.deposit,
            certificate=self.certificate,
        )

    async def job(self, client: WireClient, max_tokens: int = 40, seed: int = 3) -> ScriptedJob:
        """A job for the current offer, not submitted yet."""
        deadline = self.harness.clock.now() + 600
        asked = parameters(seed, max_tokens)
        return ScriptedJob.sealed(client, await client.offer(), "a fox", asked, deadline)


async def _pump(harness: WorkerHarness) -> None:
    """Let the engine run whenever it may."""
    while True:
        harness.engine.changed.clear()
        await harness.run_engine()
        await harness.engine.changed.wait()


@asynccontextmanager
async def serve_worker(
    peers: PeerLimits = PEERS,
    front: FrontLimits = FRONT,
    close_channel: ChannelCloser | None = None,
    times: StreamTimes = TIMES,
) -> AsyncIterator[Served]:
    """Serve a worker that is ready."""
    harness = WorkerHarness()
    harness.clock = RealClock()
    chain = FakePort()
    harness.chain = chain
    await harness.boot()
    settler = await make_settler(harness, chain)
    board = OfferBoard(
        harness.journal, harness.terms, domain=DOMAIN, signer=OPERATOR, clock=harness.clock
    )
    board.current = harness.offer
    certificate, key = create_tls(OPERATOR.address, harness.clock.now())
    made = Served(harness, certificate)
    made.peers = Peers(peers)
    made.front = Front(
        front, has_paid=made.peers.has_paid, on_refused=made.refused.append, clock=harness.clock
    )
    servicer = WorkerServicer(
        harness.worker,
        close_channel or settler.close_channel,
        board,
        entrance=FrontEntrance(made.front, made.peers, harness.clock),
        clock=harness.clock,
        metrics=harness.metrics,
        log=logs.silent(),
        times=times,
    )
    made.server = GrpcServer(servicer, TlsIdentity(certificate, key, Digest(bytes(32))), made.front)
    made.port = await made.server.start(bind("127.0.0.1", 0))
    made.server.serving(True)
    engine = asyncio.ensure_future(_pump(harness))
    made.payer.open_on_chain()
    try:
        yield made
    finally:
        engine.cancel()
        await made.server.stop(0)
        await harness.runtime.wait_idle()
