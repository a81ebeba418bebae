"""The client and the worker that ship, in one process, without sockets.

`JobDriver` with its real journal on disk trades with the real `Worker` behind the real
`WorkerServicer`. In memory are only the bytes between them, the chain, the denoising and the time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from piecework.client.config import load_config
from piecework.client.errors import WorkerUnreachable
from piecework.client.jobs.channels import ChannelManager
from piecework.client.jobs.driver import JobContext, JobDriver
from piecework.client.jobs.events import JobEvent
from piecework.client.jobs.preparing import prepare
from piecework.client.jobs.requests import Filters, TextRequest
from piecework.client.jobs.selection import rank
from piecework.client.jobs.spending import Spending
from piecework.client.journal.records import ChannelStatus, JobRow, Limits, Memories, SeenChannel
from piecework.client.journal.store import Store
from piecework.client.network.reachability import Reachability
from piecework.client.network.transport import JobStream
from piecework.client.wallet import Wallet
from piecework_node import logs
from piecework_node.job_port.server import WorkerServicer
from piecework_node.jobs.healing import Healer
from piecework_node.jobs.offers import OfferBoard
from piecework_protocol.frames import Account, GetAccountRequest, ShowReceiptsRequest
from piecework_protocol.objects import Offer
from piecework_protocol.signing import LocalSigner
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, Signature, keccak256
from piecework_protocol.wire import decode_call, encode_call
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.market.memory_grpc import MemoryCall, NoBounds
from tests.support.node.faults import Killed, KillSwitch
from tests.support.node.harness import DOMAIN, OPERATOR, WorkerHarness

DEPOSIT = 1_000_000
"""Requests a minute: the simulation tests no rate limit."""


async def _close_no_channel(*_: object) -> tuple[Signature, bytes]:
    raise AssertionError("no client here closes a channel")


class InlineExecutor(ThreadPoolExecutor):
    """Runs what is for a thread at once in the loop's thread: one seed is one order of events."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  the future carries it
            future.set_exception(error)
        return future


class TellingSwitch(KillSwitch):
    """A kill switch that tells when the process has died."""

    def __init__(self, at: int = 0) -> None:
        super().__init__(at)
        self.died = asyncio.Event()

    def point(self) -> None:
        try:
            super().point()
        except Killed:
            self.died.set()
            raise


class EventList:
    """Implements the client's `Caller`: keeps every event."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.events: list[JobEvent] = []
        self.drafts: list[JobEvent] = []

    async def emit(self, event: JobEvent) -> None:
        self.events.append(event)

    def offer(self, event: JobEvent) -> None:
        self.drafts.append(event)


class ShippedMarket:
    """One worker and one client. Implements the client's `JobLinks` and `JobLink`."""

    def __init__(self, folder: Path, seed: int = 0, **flags: Any) -> None:
        self.random = random.Random(seed)
        self.harness = WorkerHarness()
        self.switch = TellingSwitch()
        self.calls: list[MemoryCall] = []
        self.deaths = 0
        self.reachable = True
        self.shown: list[ShowReceiptsRequest] = []
        self.signer = LocalSigner(bytes(keccak256(b"payer")))
        self.file = folder / "client.db"
        self.store = Store(self.file, DOMAIN, self.signer.address, committer=InlineExecutor())
        self.chain = FakeChain(DOMAIN)
        values = {"resume_attempts": 20, "stall_timeout_s": 20.0, **flags}
        self.config = load_config(folder / "no-file", values)
        self._drawn = 0
        self._background: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ShippedMarket:
        asyncio.get_running_loop().set_default_executor(InlineExecutor(max_workers=1))
        await self.boot()
        self._background = [
            asyncio.create_task(self._run_engine(), name="engine"),
            asyncio.create_task(self._bury_the_dead(), name="supervisor"),
        ]
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._drop_everything()
        await self.harness.runtime.wait_idle()
        self.store.close()

    # --- the worker

    async def boot(self) -> None:
        """Start the worker from its journal."""
        self.switch = TellingSwitch()
        await self.harness.boot(self.switch)
        harness = self.harness
        board = OfferBoard(
            harness.journal, harness.terms, domain=DOMAIN, signer=OPERATOR, clock=harness.clock
        )
        board.current = self.harness.offer
        self._servicer = WorkerServicer(
            harness.worker,
            _close_no_channel,
            board,
            entrance=NoBounds(),
            clock=harness.clock,
            metrics=harness.metrics,
            log=logs.silent(),
        )
        self.reachable = True

    async def _run_engine(self) -> None:
        """Any sequence that may go on goes on; a worker that dies in it is started again."""
        while True:
            rows = self.harness.engine.runnable()
            try:
                if rows and not self.switch.dead:
                    await self.harness.engine_step(self.random.choice(rows))
            except Killed:
                pass
            await asyncio.sleep(0)

    async def _bury_the_dead(self) -> None:
        """kill -9: every stream breaks, memory is gone, the journal is not."""
        while True:
            await self.switch.died.wait()
            self.reachable = False
            self.deaths += 1
            await self._drop_everything()
            await self.boot()

    async def _drop_everything(self) -> None:
        for call in self.calls:
            call.break_both()
        await asyncio.gather(*(call.server for call in self.calls), return_exceptions=True)
        self.calls.clear()

    # --- the way to it

    async def to(self, offer: Offer) -> ShippedMarket:
        if not self.reachable:
            raise WorkerUnreachable("the worker is starting")
        return self

    def retire(self, offer: Offer) -> None:
        return

    def run(self, deadline_s: float) -> JobStream:
        call = MemoryCall(self._servicer)
        self.calls = [*(known for known in self.calls if not known.over), call]
        return JobStream(call)

    async def get_account(self, request: GetAccountRequest) -> Account:
        asked = decode_call(GetAccountRequest, encode_call(request))
        return await Healer(self.harness.worker).account(asked)

    async def show_receipts(self, request: ShowReceiptsRequest) -> Account:
        asked = decode_call(ShowReceiptsRequest, encode_call(request))
        self.shown.append(asked)
        return await Healer(self.harness.worker).take(asked)

    # --- the client

    def context(self) -> JobContext:
        """What the client's jobs share, over the journal that is open now."""
        wallet = Wallet(self.signer, self.signer)
        channels = ChannelManager(
            self.store,
            self.chain,
            wallet,
            token=TOKEN_INFO,
            config=self.config,
            clock=self.harness.clock,
            entropy=self._entropy,
        )
        return JobContext(
            self.store,
            channels,
            self,
            wallet,
            DOMAIN,
            self.config,
            self.harness.clock,
            self._entropy,
            Reachability(self.store.workers, self.harness.clock),
            Spending(
                self.store.budgets,
                Limits(),
                TOKEN_INFO,
                self.harness.clock,
                lifetime_s=self.config.job_lifetime_s,
            ),
            self._sleep,
        )

    def restart_client(self) -> None:
        """The client's process ends and another one opens its journal."""
        self.store.close()
        self.store = Store(self.file, DOMAIN, self.signer.address, committer=InlineExecutor())

    async def open_channel(self) -> None:
        """A channel that is funded and mined."""
        row = await self.context().channels.for_offer(self.harness.offer.offer)
        self.chain.set_channel(row.id, ChannelState.OPEN, DEPOSIT)
        self.harness.chain.open(row.id, DEPOSIT)
        seen = SeenChannel(Amount(DEPOSIT), Amount(0), Amount(0))
        self.store.seen_on_chain(row.id, seen, ChannelStatus.OPEN)

    async def prepare(self, request: TextRequest) -> JobRow:
        """A recorded job for this worker."""
        filters = Filters(now=self.harness.clock.now(), token=TOKEN_INFO)
        (choice,) = rank(request, [self.harness.offer], Memories(), filters).choices
        job, _ = await prepare(self.context(), choice, request)
        return job

    def driver(self, job: JobRow, caller: EventList, *, replay: bool = False) -> JobDriver:
        """The driver of one job."""
        return JobDriver(self.context(), job, caller, replay=replay)

    async def _sleep(self, seconds: float) -> None:
        self.harness.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    def _entropy(self, count: int) -> bytes:
        self._drawn += 1
        return sha256(f"client/{self._drawn}".encode()).digest()[:count]
