"""Production settlement over a fake chain."""

from __future__ import annotations

from piecework_node import logs
from piecework_node.settlement.policy import SettlePolicy
from piecework_node.settlement.settler import Settler
from piecework_node.settlement.transactions import TransactionTracker
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import WorkerHarness

FREE = SettlePolicy(gas_multiple=20, interval_s=60, native_coin_price=0)
STUCK_S = 90


async def make_settler(harness: WorkerHarness, port: FakePort) -> Settler:
    """Build settlement from the journal of a booted worker."""
    log = logs.silent()
    transactions = await TransactionTracker.load(
        harness.journal,
        port,
        clock=harness.clock,
        stuck_s=STUCK_S,
        metrics=harness.metrics,
        log=log,
    )
    return Settler(
        harness.channels,
        transactions,
        port,
        harness.journal,
        clock=harness.clock,
        policy=FREE,
        poll_s=5,
        metrics=harness.metrics,
        log=log,
    )
