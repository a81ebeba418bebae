"""kill -9 of the real daemon at random moments: nothing accepted is lost, nothing is charged twice.

Real processes, real sockets, the real journal, the embedded chain; only the denoising is a
stand-in, so that fifty lives fit into a test. The moments are seeded; the world's timing is not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from piecework.chain.contracts.events import ChannelFunded
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.errors import JobInterrupted, NoWorkerFits, WorkerUnreachable
from piecework.client.jobs.events import CanvasText, JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.jobs.run import JobRun
from piecework.client.journal.records import JobStatus
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.types import JobId
from tests.support.chain.chains import TestMarket, deployed, signer
from tests.support.node.fake_engine import canvas_event
from tests.support.system.worker_process import RECEIVER, WorkerProcess
from tests.support.waiting import random_moment

pytestmark = [pytest.mark.process, pytest.mark.kill, pytest.mark.slow]

KILLS = 50
LONGEST_LIFE_S = 0.6
CUSTOMERS = 3
DEPOSIT = 50_000_000
LONGEST_WAIT_S = 0.2


async def test_fifty_kills_lose_no_voucher_and_charge_no_job_twice(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    payer = signer("payer of the kill test")
    async with deployed(embedded_chain) as market:
        worker_process = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.02, slots=4, requests_per_minute=6000
        )
        await market.pool(payer, embedded_chain.faucet, DEPOSIT)
        store = Store(tmp_path / "client.db", market.deployment.domain, payer.address)
        flags = {"deposit": "10.0", "resume_attempts": 8, "stall_timeout_s": 20.0}
        config = load_config(tmp_path / "no-file", flags)
        wallet, token = Wallet(payer, payer), market.deployment.payment_token
        async with PieceworkClient(store, market.reader, wallet, token, config) as client:
            customers = Customers(client)
            await customers.trade_while(
                worker_process.start, lambda: _kill_again_and_again(worker_process)
            )
            await _check_accounts(market, client, worker_process, customers)


async def _kill_again_and_again(worker_process: WorkerProcess) -> None:
    chance = random.Random(7)
    for _ in range(KILLS):
        await random_moment(chance, LONGEST_LIFE_S)
        await worker_process.kill()
        await worker_process.start()


class Customers:
    """A few people who ask for one text after the other, come what may."""

    def __init__(self, client: PieceworkClient) -> None:
        self.client = client
        self.ended: list[JobFinished] = []
        self.texts: dict[JobId, str] = {}
        self.seeds: dict[JobId, int] = {}
        self._enough = asyncio.Event()
        self._chance = random.Random(11)

    async def trade_while(
        self, first: Callable[[], Awaitable[object]], storm: Callable[[], Awaitable[None]]
    ) -> None:
        """Trade until the storm is over, then until every started text is complete."""
        await first()
        async with asyncio.TaskGroup() as group:
            for number in range(CUSTOMERS):
                group.create_task(self._customer(number * 1_000_000), name=f"customer {number}")
            await storm()
            self._enough.set()

    async def _customer(self, seed: int) -> None:
        while not self._enough.is_set():
            seed += 1
            await self._one_text(seed)

    async def _one_text(self, seed: int) -> None:
        request = TextRequest(
            Conversation((Message("user", f"job {seed}"),)),
            generation=Generation(seed=seed, max_tokens=96),
        )
        run = self.client.run(request)
        while True:
            try:
                await self._follow(run, seed)
                return
            except JobInterrupted as interrupted:
                run = self.client.resume(interrupted.job)
            except (NoWorkerFits, WorkerUnreachable):
                await random_moment(self._chance, LONGEST_WAIT_S)
                run = self.client.run(request)

    async def _follow(self, run: JobRun, seed: int) -> None:
        text = ""
        async with run:
            async for event in run:
                if isinstance(event, CanvasText):
                    text += event.text
                elif isinstance(event, JobFinished):
                    self.ended.append(event)
                    self.texts[event.job], self.seeds[event.job] = text, seed


async def _check_accounts(
    market: TestMarket, client: PieceworkClient, worker_process: WorkerProcess, customers: Customers
) -> None:
    """What was delivered, what was paid and what the chain pays are one and the same."""
    assert len(customers.ended) >= CUSTOMERS and all(e.acknowledged for e in customers.ended)
    (row,) = client.store.channels()
    _, receipts = await client.receipts(row.id)
    voucher = row.book.voucher()
    assert not [r.trouble for r in receipts if r.trouble]
    assert len(receipts) == voucher.count == row.book.acknowledged
    assert sum(r.row.receipt.amount for r in receipts) == voucher.cumulative
    assert len({(r.row.receipt.job, r.row.receipt.canvas) for r in receipts}) == len(receipts)
    for ended in customers.ended:
        mine = [r.row.receipt for r in receipts if r.row.receipt.job == ended.job]
        assert [r.canvas for r in mine] == list(range(ended.canvases))
        assert sum(r.amount for r in mine) == ended.cost
        assert customers.texts[ended.job] == _text_alone(customers.seeds[ended.job], ended.canvases)
    assert not client.store.jobs(status=JobStatus.BROKEN)
    assert await worker_process.drain() == 0, worker_process.log_tail()
    on_chain = await market.reader.channel(row.id)
    assert on_chain.settled == voucher.cumulative
    opened = await market.reader.escrow_events(("ChannelFunded",))
    fees = sum(event.fee for event in opened if isinstance(event, ChannelFunded))
    waiting = await market.reader.waiting_payout(market.token, RECEIVER)
    received = await market.reader.token_balance(market.token, RECEIVER)
    assert received + waiting == voucher.cumulative + fees
    assert (await market.reader.settlements(row.id))[-1].receipts_root == voucher.receipts_root


def _text_alone(seed: int, canvases: int) -> str:
    """The job's text as an engine that was never killed would have made it."""
    from piecework_model.requests import GenerationRequest

    request = GenerationRequest("alone", (1,), seed, 96, 48, 0.8, 0.4, 0.1, 0.005, 1, canvases)
    return "".join(canvas_event(request, canvas).text for canvas in range(canvases))
