"""A worker's settlement on a real contract, through a node that fails as told.

The chain is the embedded one, made once for all tests of a process. Its clock is the worker's fake
clock, so that blocks age when a test says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from piecework.chain.deployment import Deployment
from piecework.chain.dev.evm import Evm
from piecework.chain.dev.evm_rpc import Methods
from piecework.chain.dev.faucet import EMBEDDED_FAUCET_KEY
from piecework.chain.nodes.quorum import QuorumRpc
from piecework.chain.nodes.rpc import HttpRpc, JsonRpc
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.fees import FeePolicy
from piecework_node import logs
from piecework_node.journal.records import ChannelSeen, CloseAgreed, StoredChannel
from piecework_node.metrics import Metrics
from piecework_node.runtime.cards import EngineCard, EngineCards
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.faults import FaultBoard
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveChannel
from piecework_node.runtime.write_offs import WriteOffs
from piecework_node.settlement.chain import ChainLink
from piecework_node.settlement.fees import FeeSchedule, FeeSettings
from piecework_node.settlement.openings import Openings
from piecework_node.settlement.payouts import Payouts
from piecework_node.settlement.settler import Settler
from piecework_node.settlement.simulations import OpeningSimulations
from piecework_node.settlement.transactions import TransactionTracker
from piecework_node.settlement.watch import NodeWatch, WatchLimits
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.signing import LocalSigner
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId, Signature
from tests.support.chain.chains import ETHER, USD, TestMarket, channel_of, deployed, signer
from tests.support.chain.node_proxy import NodeProxy
from tests.support.clock import FakeClock
from tests.support.node.fake_engine import FakeEngine
from tests.support.node.faults import KillSwitch
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.settlement import FREE, STUCK_S

WORKER, PAYER, RELAYER = signer("worker"), signer("payer"), signer("relayer")
OUTAGE_S = 120.0
HEAD_AGE_S = 60.0
PATIENT_RPC_S, IMPATIENT_RPC_S = 10.0, 0.3
"""Real time. The short one is for a node that hangs, and long enough for one that does not."""
LIMITS = WatchLimits(HEAD_AGE_S, 30.0)


class SharedChain:
    """The chain, its clock, and the market on it. Implements what `chains.deployed` needs."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.faucet = LocalSigner(EMBEDDED_FAUCET_KEY)
        self.evm = Evm(self.faucet.address, self.clock.now)
        self.methods = Methods(self.evm)
        self.deployment: Deployment | None = None
        self.channels = 0
        self.url = ""

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """An `Upstream` of the proxy."""
        return self.methods.answer(request)

    def advance(self, seconds: float) -> None:
        """Let time pass on a chain that is alive."""
        self.clock.advance(seconds)
        self.evm.mine()


@cache
def shared_chain() -> SharedChain:
    """The one chain of this process."""
    return SharedChain()


@dataclass
class Watched:
    """The settlement under test."""

    chain: SharedChain
    proxy: NodeProxy
    market: TestMarket
    settler: Settler
    channels: Channels
    board: FaultBoard
    metrics: Metrics
    journal: MemoryJournal

    @property
    def codes(self) -> set[str]:
        """The codes of the conditions that count now."""
        return {fault.code.value for fault in self.board.faults}

    def shown(self) -> set[str]:
        """The codes that the metric shows."""
        text = self.metrics.render().decode()
        head = 'piecework_fault{code="'
        rows = [row.removeprefix(head) for row in text.splitlines() if row.startswith(head)]
        return {row.split('"')[0] for row in rows if row.endswith(" 1.0")}

    async def tick(self, after_s: float = 61.0) -> None:
        """One round of settlement, when the watch is due, on a chain that is alive."""
        self.chain.advance(after_s)
        await self.settler.tick()

    async def agree_to_close(self) -> ChannelId:
        """An open channel of which both sides want the end: the next round sends a transaction."""
        self.chain.channels += 1
        channel = channel_of(self.market, PAYER, WORKER, salt=self.chain.channels)
        await self.market.pool(PAYER, RELAYER, USD + self.chain.channels)
        await self.market.open_channel(PAYER, RELAYER, channel, USD)
        domain = self.market.reader.domain
        channel_id = channel.id(domain)
        live = LiveChannel(StoredChannel(channel_id, channel, WorkerLedger(channel_id)))
        live.stored = replace(live.stored, state=ChannelState.OPEN, deposit=Amount(USD))
        signature = Signature(bytes(65))
        facts = ChannelSeen(channel_id, channel), self.channels.observed(live)
        await self.journal.append([*facts, CloseAgreed(channel_id, signature)])
        live.stored = replace(live.stored, close_signature=signature)
        self.channels.hold(live)
        return channel_id


@asynccontextmanager
async def watched(rpc_timeout_s: float = PATIENT_RPC_S) -> AsyncIterator[Watched]:
    """A settlement that has seen the chain healthy once, through one node."""
    async with NodeProxy(shared_chain().answer).serving() as proxy:
        attempts = 1 if rpc_timeout_s < PATIENT_RPC_S else 2
        rpc = HttpRpc(proxy.url, timeout_s=rpc_timeout_s, attempts=attempts, backoff_s=0)
        async with _watched(rpc, proxy) as made:
            yield made


@asynccontextmanager
async def watched_by_quorum(nodes: int, quorum: int, *, place: int = -1) -> AsyncIterator[Watched]:
    """As `watched`, through several nodes of one chain. `proxy` is the one in this place."""
    async with AsyncExitStack() as stack:
        proxies = [
            await stack.enter_async_context(NodeProxy(shared_chain().answer).serving())
            for _ in range(nodes)
        ]
        rpcs = [HttpRpc(proxy.url, attempts=2, backoff_s=0) for proxy in proxies]
        made = _watched(QuorumRpc(rpcs, quorum), proxies[place])
        yield await stack.enter_async_context(made)


async def deployed_once(chain: SharedChain, proxy: NodeProxy) -> Deployment:
    """The market on a chain, made when it is first asked for."""
    chain.url = proxy.url
    if chain.deployment is None:
        async with deployed(chain) as market:  # type: ignore[arg-type]
            await market.give(WORKER.address, wei=1000 * ETHER)
            await market.give(RELAYER.address, wei=1000 * ETHER)
            chain.deployment = market.deployment
    return chain.deployment


@asynccontextmanager
async def _watched(rpc: JsonRpc, proxy: NodeProxy) -> AsyncIterator[Watched]:
    chain = shared_chain()
    reader = ChainReader(rpc, await deployed_once(chain, proxy))
    try:
        made = await _assemble(chain, proxy, reader)
        chain.evm.mine()
        await made.settler.tick()
        assert made.codes == set(), made.board.faults
        yield made
    finally:
        await rpc.close()


async def _assemble(chain: SharedChain, proxy: NodeProxy, reader: ChainReader) -> Watched:
    log, metrics, clock = logs.silent(), Metrics(), chain.clock
    journal = MemoryJournal(reader.domain)
    port = ChainLink(reader, WORKER, FeePolicy())
    cards = EngineCards([EngineCard("0", FakeEngine(KillSwitch()), slots=1, queue=0)])
    runtime = JobRuntime(
        journal, cards, domain=reader.domain, signer=WORKER, clock=clock, metrics=metrics, log=log
    )
    board = FaultBoard(clock, metrics, log, patience_s=OUTAGE_S)
    channels = Channels(runtime, port, board, refresh_s=10, outage_s=OUTAGE_S, log=log)
    tracker = await TransactionTracker.load(
        journal, port, clock=clock, stuck_s=STUCK_S, metrics=metrics, log=log
    )
    watch = NodeWatch(port, board, clock=clock, limits=LIMITS, metrics=metrics)
    fees = FeeSchedule(FeeSettings(), FREE, lambda: watch.price)
    openings = Openings(journal, channels, OpeningSimulations(port, lambda: watch.height), fees)
    settler = Settler(
        channels,
        tracker,
        port,
        journal,
        watch,
        openings=openings,
        payouts=Payouts(
            port, journal, FREE, clock, receiver=WORKER.address, tokens=(reader.deployment.token,)
        ),
        write_offs=WriteOffs(runtime, channels, every_s=3600, log=log),
        clock=clock,
        policy=FREE,
        poll_s=5,
        metrics=metrics,
        log=log,
    )
    market = TestMarket(chain, reader.deployment, reader)  # type: ignore[arg-type]
    return Watched(chain, proxy, market, settler, channels, board, metrics, journal)
