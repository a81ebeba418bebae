"""All the mischief of a relay against a real worker process on a real chain: then the books.

The hostile relay and an honest one lead to the same worker, and clients try the hostile one first.
Two clients ask at once, so that there are two sessions to mix. At the end the clients' books, the
worker's journal, the escrow and the payout address say the same to the base unit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.reading.reader import ChainReader
from piecework.client.config import load_config
from piecework.client.jobs.events import JobEvent
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.demo.market import free_port
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.signing import LocalSigner
from tests.support.chain.chains import TestMarket, deployed, signer
from tests.support.client.client_side import CanvasText, ask, collect, last, text_of
from tests.support.network.hostile_relay import HostileRelay, Mischief, hostile_relay
from tests.support.network.relay_process import start_relay
from tests.support.network.wire import running_wire
from tests.support.system.worker_process import RECEIVER, WorkerProcess
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow]

PAYERS = tuple(signer(f"{name} client of a hostile relay") for name in ("first", "second"))
POOL = 3_000_000
SEED = 0
"""The stand-in engine tells 23 canvases with it."""
STALL_S = 3.0
TRICKLE_BYTE_S = 0.5
START_S = 180.0
NOTHING_YET = 10**9
ROUNDS = 5
"""On a busy machine a client may leave the hostile relay before it does anything."""


@dataclass
class Robbed:
    """A market whose worker is behind a hostile relay, which clients try first, and an honest
    one."""

    market: TestMarket
    worker: WorkerProcess
    hostile: HostileRelay


@asynccontextmanager
async def robbed(folder: Path, chain: EmbeddedChain) -> AsyncIterator[Robbed]:
    """Start all of it, with money for both clients.

    The registry names another address than the offer, else clients would go on with the connection
    over which they found the worker.
    """
    file, behind = folder / "deployment.json", free_port()
    async with (
        deployed(chain) as market,
        hostile_relay(behind, Mischief.DROP, byte_s=TRICKLE_BYTE_S) as hostile,
        running_wire(0) as registered,
    ):
        market.deployment.save(file)
        relays = await asyncio.gather(
            start_relay(file, behind, name=hostile.name), start_relay(file)
        )
        names, registered.leads_to = tuple(relay.name for relay in relays), relays[1].port
        worker = await WorkerProcess.register(
            folder / "worker",
            market.deployment,
            pace_s=0.02,
            bind="",
            relays=names,
            registered=registered.address,
        )
        for payer in PAYERS:
            await market.pool(payer, chain.faucet, POOL)
        try:
            ready = await worker.start(START_S)
            assert ready["relays"] == dict.fromkeys(names, "joined")
            yield Robbed(market, worker, hostile)
        finally:
            if worker.process is not None and worker.process.returncode is None:
                await worker.kill()
            await asyncio.gather(*(relay.end() for relay in relays))


@asynccontextmanager
async def client_of(
    folder: Path, market: TestMarket, payer: LocalSigner
) -> AsyncIterator[PieceworkClient]:
    """A client that has just been started: it knows no bad address."""
    store = Store(folder / f"{payer.address.hex()}.db", market.deployment.domain, payer.address)
    flags = {"deposit": "1 tUSDC", "stall_timeout_s": STALL_S, "acknowledgement_timeout_s": STALL_S}
    config = load_config(folder / "no-file", flags, environment={})
    reader = await ChainReader.connect(market.deployment)
    token = market.deployment.payment_token
    async with PieceworkClient(store, reader, Wallet(payer, payer), token, config) as client:
        yield client


async def two_jobs(folder: Path, made: Robbed) -> list[list[JobEvent]]:
    """One job of each client, at the same time. The mischief begins when both have a canvas."""
    made.hostile.quiet = NOTHING_YET
    async with (
        client_of(folder, made.market, PAYERS[0]) as first,
        client_of(folder, made.market, PAYERS[1]) as second,
    ):
        both = (first, second)
        had = [len(client.store.receipts()) for client in both]
        asked = ask(max_tokens=400, seed=SEED)
        running = asyncio.gather(*(collect(client.run(asked)) for client in both))

        def have_begun() -> bool:
            return all(len(c.store.receipts()) > n for c, n in zip(both, had, strict=True))

        await until(have_begun, within_s=60)
        made.hostile.quiet = 0
        return list(await running)


async def test_all_its_mischief_costs_time_and_not_one_base_unit(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with robbed(tmp_path, embedded_chain) as made:
        hostile, texts, promised = made.hostile, set[str](), [0, 0]
        for mischief in Mischief:
            hostile.mischief, hostile.done = mischief, 0
            for _ in range(ROUNDS):
                runs = await two_jobs(tmp_path, made)
                for number, events in enumerate(runs):
                    texts.add(text_of(events))
                    canvases = [event for event in events if isinstance(event, CanvasText)]
                    assert last(events).cost == sum(c.amount for c in canvases), mischief
                    promised[number] += last(events).cost
                if hostile.done:
                    break
            assert hostile.done, mischief
        assert len(texts) == 1, "the same seed is the same text, whoever passes it on"
        await _the_books_agree(tmp_path, made, promised)


async def _the_books_agree(folder: Path, made: Robbed, promised: list[int]) -> None:
    """Clients, worker and chain, before and after the worker has settled all."""
    market = made.market
    channels = []
    for payer, cost in zip(PAYERS, promised, strict=True):
        async with client_of(folder, market, payer) as client:
            (row,) = client.store.channels()
            found, receipts = await client.receipts(row.id)
            assert not [one.trouble for one in receipts if one.trouble]
            assert found.book.cumulative == sum(one.row.receipt.amount for one in receipts) == cost
            channels.append(row.id)
    earned = (await ask_daemon(made.worker.home.root, "GET", "/status"))["earnings"]
    assert earned["accepted"] == sum(promised)
    assert await made.worker.drain() == 0, made.worker.log_tail()
    assert "Traceback" not in (made.worker.home.root / "daemon.log").read_text()
    held = [await market.reader.channel(channel) for channel in channels]
    assert [channel.settled for channel in held] == promised
    pooled = [await market.reader.pooled_balance(market.token, payer.address) for payer in PAYERS]
    paid_out = await market.reader.token_balance(market.token, RECEIVER)
    waiting = await market.reader.waiting_payout(market.token, RECEIVER)
    left = sum(channel.left for channel in held) + sum(pooled)
    assert left + paid_out + waiting == POOL * len(PAYERS)
    escrow = market.deployment.escrow
    assert await market.reader.token_balance(market.token, escrow) == left + waiting
