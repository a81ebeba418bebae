"""A worker's process dies, or its disk or node fails, at named points of its money's life.

The points are the commits of its journal, before and after each of them, and its transactions. The
journal is the only file of the home that this life writes, and a test holds that. Afterwards people
run documented commands only: the worker's start, recover, settle and leave, and the client's
recover, close and withdraw. Half of the time the worker settles and leaves before its client comes
back, and each has to get along alone. Then payer, payout address and owner of the stake have every
unit between them, and escrow and registry have none.

There are two hundred points, and each takes more than a second of a chain in Python. So every
`STRIDE`-th is tried. `make deep` tries all.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.base.errors import PieceworkError
from piecework.chain.reading.reader import ChainReader
from piecework.client.funds import Funds
from piecework.client.sdk import PieceworkClient
from piecework_node.operations.leaving import LeaveStep
from piecework_node.operations.recover import recover
from piecework_node.operations.running import open_journal
from piecework_protocol.states import ChannelState
from tests.support.chain.chains import MIN_STAKE, UNBONDING_DELAY_S, USD, TestMarket
from tests.support.chain.node_proxy import NodeProxy
from tests.support.chain.purse import Points, Purse, purse
from tests.support.chain.till import OPEN_FEE, DirectRpc, OpenTill, Till, open_till
from tests.support.client.client_side import ask, collect
from tests.support.node.faults import Killed
from tests.support.node.watched import SharedChain, deployed_once

MONEY = 2 * USD
DELAY_S = 3601
LATER_S = 61
"""After which a worker looks again at everything that it watches."""
ROUNDS = 4
MOST_POINTS = 300
STRIDE = int(os.environ.get("WRITE_STRIDE", "9"))

WRITTEN = {
    "SealingKeyAdded",
    "OfferIssued",
    "FundingAuthorized",
    "StoredJob",
    "StoredCanvas",
    "VoucherApplied",
    "CloseAgreed",
    "StoredTx",
    "TxMoved",
    "ChannelObserved",
    "broadcast",
}
"""What a whole life writes and sends."""

pytestmark = pytest.mark.slow


@dataclass
class Counterparties:
    """A worker and its client."""

    till: Till
    mine: Purse

    def advance(self, seconds: float) -> None:
        """Let time pass for everybody."""
        self.till.chain.advance(seconds)

    def client(self) -> AbstractAsyncContextManager[tuple[PieceworkClient, Funds]]:
        """The client's process."""
        clock = self.till.chain.clock
        return self.mine.process(connect=self.till.connect, clock=clock, stall_timeout_s=5.0)


@pytest.fixture
def chain() -> SharedChain:
    return SharedChain()


@pytest.fixture
async def market(chain: SharedChain) -> AsyncIterator[TestMarket]:
    async with NodeProxy(chain.answer).serving() as proxy:
        deployment = await deployed_once(chain, proxy)
    async with ChainReader(DirectRpc(chain), deployment) as reader:
        yield TestMarket(chain, deployment, reader)  # type: ignore[arg-type]


async def open_both(
    market: TestMarket, chain: SharedChain, folder: Path, name: str
) -> Counterparties:
    """A registered worker, and a client with a deposit."""
    mine = purse(market, folder / f"client-{name}", name)
    await mine.give_gas()
    await market.pool(mine.payer, market.chain.faucet, MONEY)
    return Counterparties(await open_till(market, chain, folder / f"worker-{name}", name), mine)


async def life(both: Counterparties, points: Points) -> None:
    """Open for a fee, sell, settle, close together, push the fee, and leave: with every write."""

    async def sell(opened: OpenTill) -> None:
        async with both.client() as (client, funds):
            await collect(client.run(ask(seed=0, max_tokens=40)))
            await opened.rounds()
            await collect(client.run(ask(seed=1, max_tokens=40)))
            await opened.settle()
            await collect(client.run(ask(seed=2, max_tokens=40)))
            await funds.close_all()
            await opened.settle()
            await funds.withdraw()
        await opened.stop()

    await both.till.run(points, sell)
    await both.till.leave(points)
    both.advance(UNBONDING_DELAY_S)
    await both.till.leave(points)


async def bring_home(both: Counterparties) -> None:
    """What the documents tell both to run, side by side, until they say that all is there."""
    for _ in range(ROUNDS):
        async with restarted(both) as opened, both.client() as (_, funds):
            await opened.rounds()
            await funds.recover()
            closings = await funds.close_all()
            await opened.settle()
            if any(not closing.closed for closing in closings):
                both.advance(DELAY_S)
            await funds.withdraw()
            await opened.stop()
        if await is_home(both):
            return await leave(both)
    raise AssertionError("the client's money does not come home")


async def bring_home_alone(both: Counterparties) -> None:
    """The worker settles and leaves before its client comes back, which finds nobody."""
    async with restarted(both) as opened:
        await opened.settle()
        await opened.stop()
    await leave(both)
    for _ in range(ROUNDS):
        async with both.client() as (_, funds):
            await funds.recover()
            await funds.close_all()
            both.advance(DELAY_S)
            await funds.withdraw()
        if await is_home(both):
            return
    raise AssertionError("the client's money does not come home")


@asynccontextmanager
async def restarted(both: Counterparties) -> AsyncIterator[OpenTill]:
    """`worker recover`, which finds nothing to repair, and `worker start`."""
    both.advance(LATER_S)
    found = await recover(both.till.home.root)
    assert found[-1][0] == "found", f"the journal lacks what was signed: {found}"
    async with both.till.process() as opened:
        yield opened


async def leave(both: Counterparties) -> None:
    """`worker leave`, until the stake is with its owner."""
    report = await both.till.leave()
    if report.next is LeaveStep.WAIT:
        both.advance(UNBONDING_DELAY_S)
        report = await both.till.leave()
    assert report.next is None, report


async def is_home(both: Counterparties) -> bool:
    """Nothing of the payer's is in the pool or in a channel any more."""
    async with both.client() as (client, _):
        for row in client.store.channels():
            seen = await both.mine.market.reader.channel(row.id)
            if seen.state in (ChannelState.OPEN, ChannelState.WITHDRAWING):
                return False
    return await both.mine.pooled() == 0


def written_once(till: Till) -> dict[str, bytes]:
    """Every file of the home but the journal."""
    files = (file for file in till.home.root.rglob("*") if file.is_file())
    kept = (file for file in files if not file.name.startswith(till.home.journal.name))
    return {file.name: file.read_bytes() for file in kept}


async def check_books(market: TestMarket, both: Counterparties, at: str) -> int:
    """Every unit is with somebody, and both journals say why.

    Returns:
        What the client promised and the worker does not know of, in base units.
    """
    reader, deployment, till = market.reader, market.deployment, both.till
    async with both.client() as (client, _):
        rows = client.store.channels()
    journal = await open_journal(till.home)
    try:
        earnings = await journal.earnings()
        known = [await journal.channel(key) for key in await journal.channel_ids()]
    finally:
        await journal.close()
    states = [(await reader.channel(row.id)).state for row in rows]
    opened = sum(state is not ChannelState.NONE for state in states)
    fees = opened * deployment.payment_token.parse(OPEN_FEE)
    holders = {
        "payer": both.mine.payer.address,
        "receiver": till.receiver,
        "owner": till.owner.address,
        "operator": till.operator.address,
        "escrow": deployment.escrow,
        "registry": deployment.registry,
    }
    held = {name: await reader.token_balance(market.token, a) for name, a in holders.items()}
    assert held == {
        "payer": MONEY - earnings.accepted - fees,
        "receiver": earnings.accepted + fees,
        "owner": MIN_STAKE,
        "operator": 0,
        "escrow": 0,
        "registry": 0,
    }, at
    # The client was told that this is journaled, so it may have forgotten the receipts since.
    counts = [one.ledger.accumulator.count for one in known if one is not None]
    assert sum(counts) >= till.acknowledged, at
    # What the documents say that a death may cost the worker: the work that nobody has paid yet.
    limit = till.settings.amounts(deployment.payment_token).credit.mined
    assert earnings.unpaid <= limit, at
    return sum(row.book.cumulative for row in rows) - earnings.accepted


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "failing"])
async def test_every_unit_comes_home_from_every_point(
    chain: SharedChain, market: TestMarket, tmp_path: Path, kill: bool
) -> None:
    for at in range(0, MOST_POINTS, STRIDE):
        both = await open_both(market, chain, tmp_path, f"{at}")
        points, files = Points(at, kill=kill), written_once(both.till)
        with suppress(Killed, PieceworkError):
            await life(both, points)
        # In pairs: a commit is a point before it and one after it.
        alone = at // 2 % 2 == 1
        await (bring_home_alone if alone else bring_home)(both)
        unknown = await check_books(market, both, str(points))
        assert unknown == 0 if not alone else unknown >= 0, f"{points}: {unknown}"
        assert written_once(both.till) == files
        if len(points.names) <= at:
            break
    else:
        raise AssertionError("the life has more points than the test tries")
    seen = {word for name in points.names for word in name.split()}
    assert seen >= WRITTEN
