"""Receipts that a client shows count on their own channel, once, and cost no running job."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.reading.reader import ChannelOnChain
from piecework_node.jobs.healing import Healer, Shown
from piecework_node.journal.records import ROLLED_BACK
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.runtime.faults import Code
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import LeafRef
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Receipt
from piecework_protocol.signing import sign
from piecework_protocol.states import JobState
from piecework_protocol.types import ChannelId, Digest, JobId
from tests.support.node.fake_escrow import FakeEscrow
from tests.support.node.harness import DOMAIN, OPERATOR, Client, JobStream, WorkerHarness
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.twin_journal import TwinJournal


def shows(client: Client, base: PayerLedger, receipts: Sequence[Receipt]) -> Shown:
    """A voucher of the client's channel that pays for receipts after `base`."""
    book = base
    for receipt in receipts:
        ref = LeafRef(JobId(receipt.job), receipt.canvas)
        digest = Digest(DOMAIN.digest(receipt))
        book = book.pay(ref, digest, receipt.amount, client.deposit)
    voucher = book.voucher()
    signed = [(receipt, sign(DOMAIN, receipt, OPERATOR)) for receipt in receipts]
    signature = sign(DOMAIN, voucher, client.signer)
    return Shown(client.channel, voucher, signature, base.accumulator, signed)


async def deliver_unpaid(client: Client, line: JobStream) -> Receipt:
    """Let the client take one more canvas of a job. What it says stays on the way."""
    known = len(line.receipts)
    while len(line.receipts) == known:
        if client.read(line):
            continue
        rows = client.harness.engine.runnable()
        await client.harness.engine_step(rows[0])
    return line.receipts[-1]


@dataclass
class Store:
    """A worker over a journal on disk."""

    harness: WorkerHarness
    disk: SqliteJournal

    async def client(self, name: str, salt: int = 0) -> Client:
        client = Client(self.harness, name, salt=salt)
        client.open_on_chain()
        return client

    async def holds(self, *, rolled_back: bool) -> None:
        """The journal verifies, and says whether it was rolled back."""
        assert await self.disk.verify(deep=True)
        assert bool(await self.disk.meta(ROLLED_BACK)) == rolled_back
        codes = [fault.code for fault in self.harness.faults.faults]
        assert codes == ([Code.JOURNAL_OLD] if rolled_back else [])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    harness = WorkerHarness()
    file = tmp_path / "journal.db"
    disk = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=harness.clock)
    harness.journal = TwinJournal(DOMAIN, disk)
    await harness.boot()
    yield Store(harness, disk)
    await disk.close()


async def refused(store: Store, shown: Shown) -> None:
    """Nothing of what is shown is taken over."""
    before, totals = copy.deepcopy(store.harness.journal.books), await store.disk.earnings()
    with pytest.raises(Refusal) as caught:
        await Healer(store.harness.worker).show(shown)
    assert caught.value.reason is Reason.BROKEN_CLAUSE
    assert store.harness.journal.books == before
    assert await store.disk.earnings() == totals


async def test_a_receipt_that_another_channel_owes_is_refused_and_stays_owed(store: Store) -> None:
    one, other = await store.client("mallory"), await store.client("mallory", salt=1)
    line = one.job(3, 40)
    await one.submit(line)
    receipt = await deliver_unpaid(one, line)
    await refused(store, shows(other, other.book, [receipt]))
    await store.holds(rolled_back=False)
    assert store.harness.channels.get(other.id) is None, "nothing was opened"
    assert store.harness.channels.exposure == receipt.amount
    await one.finish(line)
    assert line.finished
    used = other.job(4, 20)
    await other.submit(used)
    await other.finish(used)
    assert used.finished
    await refused(store, shows(other, other.book, [receipt]))
    await store.holds(rolled_back=False)


async def test_a_receipt_that_is_paid_is_refused_on_every_channel(store: Store) -> None:
    one, other = await store.client("mallory"), await store.client("mallory", salt=1)
    line = one.job(3, 40)
    await one.submit(line)
    await one.finish(line)
    assert line.finished
    await refused(store, shows(one, one.book, line.receipts[:1]))
    await refused(store, shows(other, other.book, line.receipts[:1]))
    await store.holds(rolled_back=False)


async def test_a_receipt_of_an_unknown_job_pays_on_one_channel_alone(store: Store) -> None:
    abroad = WorkerHarness()
    await abroad.boot()
    lost = Client(abroad, "mallory")
    lost.open_on_chain()
    line = lost.job(3, 40)
    await lost.submit(line)
    receipts = [await deliver_unpaid(lost, line)]
    await lost.finish(line)
    one, other = await store.client("mallory"), await store.client("mallory", salt=1)
    healer = Healer(store.harness.worker)
    ledger = await healer.show(shows(one, one.book, receipts))
    assert ledger.cumulative == receipts[0].amount
    await store.holds(rolled_back=True)
    await refused(store, shows(other, other.book, receipts))
    await refused(store, shows(other, other.book, line.receipts[1:2]))
    await store.holds(rolled_back=True)


async def test_a_shown_voucher_for_owed_receipts_pays_and_the_job_goes_on(store: Store) -> None:
    client = await store.client("payer")
    line = client.job(3, 60)
    await client.submit(line, drafts=True)
    before = client.book
    receipt = await deliver_unpaid(client, line)
    await store.harness.engine_step(store.harness.engine.runnable()[0])
    live = line.live
    assert live is not None and live.sequence is not None and live.shown is not None
    ledger = await Healer(store.harness.worker).show(shows(client, before, [receipt]))
    assert ledger.cumulative == receipt.amount and not ledger.unpaid
    assert live.channel.jobs == {line.id: live}
    assert live.sequence is not None and not live.ended
    await store.holds(rolled_back=False)
    await client.drop(line)
    await store.harness.run_engine()
    assert store.harness.channels.exposure > 0, "what was done of the next canvas is charged"


async def test_an_owed_canvas_takes_no_other_receipt_of_it(store: Store) -> None:
    client = await store.client("payer")
    line = client.job(3, 40)
    await client.submit(line)
    before = client.book
    receipt = await deliver_unpaid(client, line)
    forked = receipt.replace(trace_root=Digest(b"\x01" * 32))
    await refused(store, shows(client, before, [forked]))
    await store.holds(rolled_back=False)


async def test_a_job_that_runs_is_not_ended_by_lost_receipts_of_it() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(3, 60)
    await client.submit(line)
    yesterday = copy.deepcopy(harness.journal)
    base = client.book
    receipt = await deliver_unpaid(client, line)
    harness.journal = yesterday
    await harness.boot()
    again = line.without_text()
    await client.submit(again, drafts=True)
    assert again.live is not None and again.live.sequence is not None
    with pytest.raises(Refusal, match="running") as caught:
        await Healer(harness.worker).show(shows(client, base, [receipt]))
    assert caught.value.reason is Reason.JOB_BUSY and caught.value.retry_after_s
    assert again.live.sequence is not None and not again.live.ended
    assert not harness.journal.notes.get(ROLLED_BACK)
    await client.drop(again)
    await harness.run_engine()
    stored = harness.journal.jobs[line.id]
    assert stored.state is not JobState.FAILED


class GatedEscrow(FakeEscrow):
    """The first answer about a channel waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.asked = asyncio.Event(), asyncio.Event()

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
        first = not self.asked.is_set()
        self.asked.set()
        if first:
            await self.gate.wait()
        return await super().channel(channel_id)


async def test_a_job_that_opens_the_channel_meanwhile_keeps_its_ledger() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    base = client.book
    line = client.job(3, 20)
    await client.submit(line)
    await client.finish(line)
    shown = shows(client, base, line.receipts)
    escrow = GatedEscrow()
    escrow.channels, harness.chain = harness.chain.channels, escrow
    harness.journal = MemoryJournal(DOMAIN)
    await harness.boot()
    healer = Healer(harness.worker)
    healing = asyncio.ensure_future(healer.show(shown))
    await escrow.asked.wait()
    job = client.job(4, 40)
    await client.submit(job)
    owed = await deliver_unpaid(client, job)
    escrow.gate.set()
    with pytest.raises(Refusal) as caught:
        await healing
    assert caught.value.reason is Reason.JOB_BUSY and caught.value.retry_after_s
    assert harness.channels.exposure == owed.amount
    assert not harness.journal.notes.get(ROLLED_BACK)
    ledger = await healer.show(shown)
    assert ledger.cumulative == line.amount
    assert harness.channels.exposure == owed.amount
    assert harness.journal.books[client.id].ledger == ledger
