"""A client's money on the embedded chain: a real journal, a scripted worker, points at which the
client's process can die or its disk can fail.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from piecework.base.clock import Clock
from piecework.chain.contracts.calls import submit_funding
from piecework.chain.errors import RpcUnavailable, TransactionReverted
from piecework.chain.nodes.rpc import JsonRpc
from piecework.chain.reading.reader import ChainReader
from piecework.client.config import load_config
from piecework.client.funds import Funds
from piecework.client.journal.store import Store
from piecework.client.network.links import Connect
from piecework.client.network.transport import WorkerLink
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.frames import OpeningAuthorization
from piecework_protocol.signing import LocalSigner
from tests.support.chain.chains import ETHER, TestMarket, signer
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.fake_worker import FakeWorker
from tests.support.node.faults import Killed

SENDING = "eth_sendRawTransaction"


class Points:
    """Counts the named points of a client's life, and ends or disturbs it at one of them.

    A point is each change of the database, before and after its commit, and each transaction,
    before and after it is broadcast. After a death every later point dies too.
    """

    def __init__(self, at: int | None = None, *, kill: bool = True) -> None:
        self.names: list[str] = []
        self.dead = False
        self.on_death: Callable[[], None] = lambda: None
        """Called at the moment of the death, in the thread that reached the point."""
        self._at, self._kill = at, kill

    def __str__(self) -> str:
        """Name the point at which the life was ended or disturbed, for a message."""
        chosen = self.names[self._at : self._at + 1] if self._at is not None else []
        return f"point {self._at}: {chosen[0] if chosen else 'never reached'}"

    def write(self, name: str, *, fails: bool = True) -> None:
        """A change of the database. Implements `journal.database.WriteWatcher`.

        fails: whether this one can fail. One that is done can only be the last.
        """
        if not fails and not self._kill:
            return
        if self._reached(name):
            raise apsw.FullError("database or disk is full")

    def sending(self, name: str) -> None:
        """A transaction."""
        if self._reached(name):
            raise RpcUnavailable("the node went away")

    def _reached(self, name: str) -> bool:
        if self.dead:
            raise Killed
        here = len(self.names) == self._at
        self.names.append(name)
        if here and self._kill:
            self.dead = True
            self.on_death()
            raise Killed
        return here


class WatchedRpc:
    """A node behind points. Implements `chain.rpc.JsonRpc`."""

    def __init__(self, inner: JsonRpc, points: Points) -> None:
        self._inner, self._points = inner, points

    async def call(self, method: str, *params: Any) -> Any:
        if self._points.dead:
            raise Killed
        if method != SENDING:
            return await self._inner.call(method, *params)
        self._points.sending("before a broadcast")
        answer = await self._inner.call(method, *params)
        self._points.sending("after a broadcast")
        return answer

    async def close(self) -> None:
        """The connection belongs to the market."""


class Purse:
    """One payer with a home. Its processes come and go; the chain and the workers stay."""

    def __init__(self, market: TestMarket, folder: Path, payer: LocalSigner) -> None:
        self.market, self.folder, self.payer = market, folder, payer
        folder.mkdir(exist_ok=True)

    @asynccontextmanager
    async def process(
        self,
        points: Points | None = None,
        *,
        connect: Connect = WorkerLink.connect,
        clock: Clock | None = None,
        **flags: Any,
    ) -> AsyncIterator[tuple[PieceworkClient, Funds]]:
        """The client's process, from its start to its end or death.

        connect: how workers are reached. clock: None is the machine's.
        """
        points = points or Points()
        deployment = self.market.deployment
        reader = ChainReader(WatchedRpc(self.market.reader.rpc, points), deployment)
        store = Store(
            self.folder / "client.db", deployment.domain, self.payer.address, points.write
        )
        settings = load_config(self.folder / "no-file", {"resume_attempts": 0, **flags})
        wallet = Wallet(self.payer, self.payer)
        token = deployment.payment_token
        client = PieceworkClient(
            store, reader, wallet, token, settings, clock=clock, connect=connect
        )
        funds = Funds(client.context, client.discovery, client.links, reader, sleep=_no_sleep)
        try:
            yield client, funds
        finally:
            await client.links.close()
            await client.discovery.close()
            store.close()

    async def wealth(self) -> int:
        """The payer's own tokens."""
        return await self.market.reader.token_balance(self.market.token, self.payer.address)

    async def pooled(self) -> int:
        """The payer's tokens in the escrow outside of channels."""
        return await self.market.reader.pooled_balance(self.market.token, self.payer.address)

    async def give_gas(self) -> None:
        await self.market.give(self.payer.address, wei=ETHER)


def purse(market: TestMarket, folder: Path, name: str) -> Purse:
    """A payer that nobody used before."""
    return Purse(market, folder, signer(f"purse of {name}"))


@asynccontextmanager
async def scripted_worker(market: TestMarket, name: str) -> AsyncIterator[FakeWorker]:
    """A bonded worker that listens, on the market's chain."""
    from tests.integration.gateway.test_client_commands import join

    chain = FakeChain(market.reader.domain)
    async with FakeWorker(chain, time.time, name=name, mines=False) as worker:
        worker.token = market.token
        await join(market, worker)
        yield worker


async def mine_openings(market: TestMarket, worker: FakeWorker, purse: Purse) -> None:
    """Submit the payer's newest authorization for each channel, as a worker does in its time."""
    newest = {
        s.channel: s.funding
        for s in worker.submissions
        if s.funding is not None and s.channel.payer == purse.payer.address
    }
    for channel, funding in newest.items():
        if isinstance(funding, OpeningAuthorization):
            total = funding.amount
        else:
            total = funding.authorization.funded
        if (await market.reader.channel(channel.id(market.reader.domain))).funded < total:
            call = submit_funding(market.deployment, channel, funding)
            # Closed meanwhile, or the pool is empty: the worker simulates first and sends nothing.
            with suppress(TransactionReverted):
                await market.run(worker.operator, call)


async def _no_sleep(_: float) -> None:
    await asyncio.sleep(0)
