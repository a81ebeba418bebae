"""Production settlement over a fake chain."""

from __future__ import annotations

from piecework_node import logs
from piecework_node.runtime.write_offs import WriteOffs
from piecework_node.settlement.fees import FeeSchedule, FeeSettings
from piecework_node.settlement.openings import Openings
from piecework_node.settlement.payouts import Payouts
from piecework_node.settlement.policy import SettlePolicy
from piecework_node.settlement.settler import Settler
from piecework_node.settlement.simulations import OpeningSimulations
from piecework_node.settlement.transactions import TransactionTracker
from piecework_node.settlement.watch import NodeWatch, WatchLimits
from tests.support.node.fake_port import FakePort
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import (
    DOMAIN,
    RECEIVER,
    TOKEN,
    Client,
    JobStream,
    WorkerHarness,
)

FREE = SettlePolicy(gas_multiple=20, interval_s=60, native_coin_price=0)
STUCK_S = 90


MAINNET = WatchLimits.of(1, 12.0)


async def make_settler(
    harness: WorkerHarness,
    port: FakePort,
    policy: SettlePolicy = FREE,
    limits: WatchLimits | None = None,
    fees: FeeSettings | None = None,
    *,
    write_off_s: float = 3600,
) -> Settler:
    """Build settlement from the journal of a booted worker. The chain is a development chain.

    From then on the worker asks it which openings it would submit.
    """
    log = logs.silent()
    transactions = await TransactionTracker.load(
        harness.journal,
        port,
        clock=harness.clock,
        stuck_s=STUCK_S,
        metrics=harness.metrics,
        log=log,
    )
    watch = NodeWatch(
        port,
        harness.faults,
        clock=harness.clock,
        limits=limits or WatchLimits.of(DOMAIN.chain_id, 12.0),
        metrics=harness.metrics,
    )
    schedule = FeeSchedule(fees or FeeSettings(), policy, lambda: watch.price)
    simulations = OpeningSimulations(port, lambda: watch.height)
    harness.openings = Openings(harness.journal, harness.channels, simulations, schedule)
    return Settler(
        harness.channels,
        transactions,
        port,
        harness.journal,
        watch,
        openings=harness.openings,
        payouts=Payouts(
            port, harness.journal, policy, harness.clock, receiver=RECEIVER, tokens=(TOKEN,)
        ),
        write_offs=WriteOffs(harness.runtime, harness.channels, every_s=write_off_s, log=log),
        clock=harness.clock,
        policy=policy,
        poll_s=5,
        metrics=harness.metrics,
        log=log,
    )


class Bank:
    """A worker that settles on a fake chain."""

    def __init__(self, port: FakePort | None = None) -> None:
        self.harness = WorkerHarness()
        self.port = port or FakePort()
        self.harness.chain = self.port

    async def boot(self, switch: KillSwitch | None = None) -> None:
        """Start worker and settler from the journal."""
        switch = switch or KillSwitch()
        self.port.switch = KillSwitch()
        await self.harness.boot(switch)
        self.settler = await make_settler(self.harness, self.port)
        self.port.switch = switch

    def settler_waits(self) -> None:
        """No claim has waited for the interval."""
        for live in self.harness.channels:
            live.unsettled_since = None

    async def trade(self, client: Client, seed: int = 3, tokens: int = 40) -> JobStream:
        line = client.job(seed, tokens)
        await client.submit(line)
        await client.finish(line)
        assert line.finished
        return line


async def bank(port: FakePort | None = None) -> tuple[Bank, Client]:
    """Start a worker that settles, with a client whose channel is open."""
    made = Bank(port)
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    return made, client
