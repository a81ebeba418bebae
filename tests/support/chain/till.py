"""A worker's money on an embedded chain: a real home with its journal, the worker as it is put
together to run, and points at which its process can die, or its disk or node fails.

Worker, chain and client have one clock, which tests move. Streams stay in this process.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import apsw

from piecework.base.jsons import loads
from piecework.chain.deployment import Deployment
from piecework.chain.nodes.refusals import refusal
from piecework.chain.reading.reader import ChainReader
from piecework.client.errors import WorkerUnreachable
from piecework.client.network.transport import WorkerLink
from piecework_node import config, logs
from piecework_node.daemon.assembly import Components, Foundations, assemble
from piecework_node.daemon.engines import Engines, KeptCard
from piecework_node.daemon.offered import offered
from piecework_node.home import Home
from piecework_node.job_port.server import WorkerServicer
from piecework_node.jobs.offers import OfferAddress
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import load_operator, secret_of
from piecework_node.keys.sealing import WrappingSecrets, open_wrapping_secret
from piecework_node.keys.tls import load_tls
from piecework_node.metrics import Metrics
from piecework_node.operations.leaving import Leaver, LeaveReport
from piecework_node.operations.owning import OwnerHands
from piecework_node.operations.registration import prepare_home, register
from piecework_node.runtime.cards import EngineCard
from piecework_protocol.frames import VoucherAccepted
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import server_name
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Digest, keccak256, to_hex
from piecework_protocol.wire import decode_worker_frames
from tests.support.chain.chains import ETHER, MIN_STAKE, TestMarket, signer
from tests.support.chain.purse import Points, WatchedRpc
from tests.support.market.memory_grpc import MemoryChannel, NoBounds
from tests.support.node.fake_engine import FakeEngine
from tests.support.node.faults import Killed
from tests.support.node.watched import SharedChain
from tests.support.system.worker_process import PASSWORD, write_key

OPEN_FEE, CLOSE_FEE = "0.02", "0.01"
"""Of a market whose gas is free. Nothing would be asked otherwise."""
POLL_S: Final = 0.001
ENOUGH_GAS: Final = 600_000
ROUNDS: Final = 2
"""Of settlement: one that sends, and one that sees what was mined at once."""
LAST_ROUNDS: Final = 4
"""Of a worker that drains. It has a minute, and here no time passes."""


class DirectRpc:
    """A node in this process. Implements `chain.rpc.JsonRpc`.

    It runs a call once and says that it takes `ENOUGH_GAS`. A search for the least takes ten times
    as long.
    """

    def __init__(self, chain: SharedChain) -> None:
        self._chain, self._ids = chain, count(1)

    async def call(self, method: str, *params: Any) -> Any:
        if method == "eth_estimateGas":
            await self._ask("eth_call", params)
            return hex(ENOUGH_GAS)
        return await self._ask(method, params)

    async def _ask(self, method: str, params: tuple[Any, ...]) -> Any:
        asked = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params}
        answer = await self._chain.answer(loads(json.dumps(asked).encode()))
        if "error" in answer:
            raise refusal(method, answer["error"])
        return loads(json.dumps(answer["result"]).encode())

    async def close(self) -> None:
        """Nothing is open."""


class WatchedJournal(SqliteJournal):
    """A journal behind points: each of its commits is one before it, and one after it."""

    points: Points | None = None
    _names: tuple[str, ...] = ()

    async def append(self, records: Any) -> None:
        self._names += tuple(type(record).__name__ for record in records)
        await super().append(records)

    def commit(self) -> None:
        name, self._names = " ".join(dict.fromkeys(self._names)), ()
        points = self.points or Points()
        try:
            points.write(f"before {name}")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        super().commit()
        points.write(f"after {name}", fails=False)


class ReadyEngine(FakeEngine):
    """Implements `engine.link.EngineBackend`: what it is asked for is done at once."""

    losses = 0
    pid = None

    def give_up(self) -> None:
        """No GPU is gone."""

    async def run(self) -> None:
        await asyncio.Event().wait()


@dataclass
class OpenTill:
    """The worker's process, while it runs."""

    parts: Components
    engine: ReadyEngine

    async def rounds(self, number: int = ROUNDS) -> None:
        """Rounds of settlement. The chain mines what they send at once."""
        for _ in range(number):
            await self.parts.worker.tick()
            await self.parts.settler.tick()

    async def settle(self) -> None:
        """`piecework worker settle`."""
        self.parts.settler.ask()
        await self.rounds()

    async def stop(self) -> None:
        """The end of a worker that was told to drain."""
        parts = self.parts
        parts.worker.draining = True
        await parts.board.withdraw()
        await parts.worker.suspend_all()
        for _ in range(LAST_ROUNDS):
            await parts.settler.finish(0, 0)
            if parts.settler.idle:
                return

    async def pump(self) -> None:
        """Let the engine run whenever it may."""
        (one,) = self.parts.base.engines
        while True:
            self.engine.changed.clear()
            while rows := self.engine.runnable():
                await self.parts.worker.engine_event(one.card, self.engine.step(rows[0]))
            await self.engine.changed.wait()


class Till:
    """One worker with a home. Its processes come and go. The chain and the clients stay."""

    def __init__(self, market: TestMarket, chain: SharedChain, home: Home, owner: LocalSigner):
        self.market, self.chain, self.home, self.owner = market, chain, home, owner
        self.settings = config.load(home.root, environment={})
        self.operator = load_operator(home.operator, PASSWORD)
        self._channel: MemoryChannel | None = None
        self.acknowledged = 0
        """The highest count of receipts of which a client has read that its voucher is journaled.
        """

    @property
    def receiver(self) -> Address:
        """Where all earnings go."""
        return self.settings.receiver

    async def connect(self, address: str, operator: Address, digest: Digest | None) -> WorkerLink:
        """Dial the worker, if it runs. Implements the client's `links.Connect`."""
        if self._channel is None:
            raise WorkerUnreachable("no worker listens")
        tls = load_tls(self.home.certificate, self.home.certificate_key, self.operator.address)
        der = ssl.PEM_cert_to_DER_cert(tls.certificate.decode())
        channel: Any = self._channel
        return WorkerLink(address, der, server_name(operator), channel)

    @asynccontextmanager
    async def process(self, points: Points | None = None) -> AsyncIterator[OpenTill]:
        """`piecework worker start`, from its first write to its end or death."""
        points = points or Points()
        parts = await self._parts(points)
        (kept,) = parts.base.engines
        assert isinstance(kept.backend, ReadyEngine)
        opened = OpenTill(parts, kept.backend)
        pump = asyncio.create_task(opened.pump(), name="engine events")
        try:
            await self._start(parts)
            yield opened
        finally:
            self._break_off()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            await _end(parts)

    async def run(self, points: Points, work: Callable[[OpenTill], Awaitable[None]]) -> None:
        """Let a process live until its work is done, it dies, or an error ends it.

        Raises:
            Killed: it died.
            PieceworkError: what ended it.
        """
        loop, died = asyncio.get_running_loop(), asyncio.Event()
        points.on_death = lambda: _tell(loop, died)
        async with self.process(points) as opened:
            body = asyncio.ensure_future(work(opened))
            failed = asyncio.ensure_future(opened.parts.runtime.failure())
            tasks = [body, failed, asyncio.ensure_future(died.wait())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._break_off()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if died.is_set():
                raise Killed
            for task in (failed, body):
                if not task.cancelled():
                    task.result()

    async def leave(self, points: Points | None = None) -> LeaveReport:
        """`piecework worker leave`."""
        reader = ChainReader(
            WatchedRpc(self.market.reader.rpc, points or Points()), self.market.deployment
        )
        hands = OwnerHands(reader, [self.owner], poll_s=POLL_S)
        leaver = Leaver(self.home, self.settings, self.operator, hands, poll_s=POLL_S)
        return await leaver.run()

    async def _parts(self, points: Points) -> Components:
        home, settings, operator = self.home, self.settings, self.operator
        deployment, clock = Deployment.load(home.deployment), self.chain.clock
        log = logs.silent()
        journal = await WatchedJournal.open(
            home.journal, deployment.domain, operator.address, clock=clock
        )
        await journal.verify(deep=True)
        journal.points = points
        engine = ReadyEngine()
        card = EngineCard("0", engine, slots=settings.slots, queue=settings.queue)
        engines = Engines([KeptCard(card, engine, settings)], log)
        base = Foundations(
            settings,
            settings.amounts(deployment.payment_token),
            home,
            deployment,
            operator,
            WrappingSecrets(open_wrapping_secret(home.sealing, PASSWORD), secret_of(operator)),
            load_tls(home.certificate, home.certificate_key, operator.address),
            clock,
            log,
            Metrics(),
            journal,
            ChainReader(WatchedRpc(self.market.reader.rpc, points), deployment),
            engines,
            asyncio.create_task(engines.run(), name="engine"),
        )
        try:
            return await assemble(base)
        except BaseException:
            base.engine_life.cancel()
            await journal.close()
            raise

    async def _start(self, parts: Components) -> None:
        """As the daemon does it, without its ports."""
        base = parts.base
        await parts.worker.recover()
        await parts.settler.check()
        key = parts.keyring.current
        assert key is not None
        endpoint = Endpoint(Route.DIRECT, self.settings.endpoint)
        address = OfferAddress((endpoint,), base.tls.digest, key)
        signed = await parts.board.issue(offered(parts.worker, takes_jobs=True), address)
        parts.worker.remember_offer(signed)
        servicer = WorkerServicer(
            parts.worker,
            parts.settler.close_channel,
            parts.board,
            entrance=NoBounds(),
            clock=base.clock,
            metrics=base.metrics,
            log=base.log,
        )
        self._channel = MemoryChannel(servicer, self._told)

    def _told(self, message: bytes) -> None:
        for frame in decode_worker_frames(message):
            if isinstance(frame, VoucherAccepted):
                self.acknowledged = max(self.acknowledged, frame.count)

    def _break_off(self) -> None:
        if self._channel is not None:
            self._channel.break_off()
            self._channel = None


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set a loop's event, from any thread."""
    loop.call_soon_threadsafe(event.set)


async def _end(parts: Components) -> None:
    """Let go of everything, as the end of a process does."""
    parts.channels.stop()
    parts.base.engine_life.cancel()
    if parts.runtime.openings is not None:
        await parts.runtime.openings.close()
    await parts.runtime.wait_idle()
    await parts.steps.close()
    with suppress(apsw.Error):
        await parts.base.close()


async def open_till(market: TestMarket, chain: SharedChain, folder: Path, name: str) -> Till:
    """Make and register a worker that nobody used before."""
    home, endpoint = Home(folder), f"{name}.example:7000"
    operator, owner = signer(f"operator {name}"), signer(f"owner {name}")
    payout = signer(f"payout {name}").address
    home.create()
    write_key(home.operator, operator.secret)
    write_key(home.sealing, bytes(keccak256(b"what wraps the sealing keys")))
    values = {
        "payout": to_hex(payout),
        "endpoint": endpoint,
        "open_fee": OPEN_FEE,
        "close_fee": CLOSE_FEE,
        "evidence_bytes": 0,
        "min_free_disk_mib": 0,
    }
    now = chain.clock.now()
    prepare_home(home, market.deployment, values, PASSWORD, now)
    await market.give(operator.address, wei=ETHER, tokens=MIN_STAKE)
    await market.give(owner.address, wei=ETHER)
    await register(
        market.reader,
        operator,
        payout=payout,
        owner=owner.address,
        endpoint=endpoint,
        stake=None,
        now=now,
        poll_s=POLL_S,
    )
    return Till(market, chain, home, owner)
