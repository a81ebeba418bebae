"""The journal on disk against its model, over the records of whole simulated lives."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import SignedTransaction, UnsignedTransaction
from piecework_node.journal.records import (
    JournalRecord,
    MetaSet,
    StoredTx,
    TxKind,
    TxMoved,
    TxState,
    TxSubject,
    Worth,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.types import Amount, ChannelId, Digest, Timestamp
from tests.sim.node.test_faults import STEPS, Simulation
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.memory_journal import MemoryJournal


class RecordingJournal(MemoryJournal):
    """Remembers the batches that became durable."""

    def __init__(self) -> None:
        super().__init__(DOMAIN)
        self.batches: list[list[JournalRecord]] = []

    async def append(self, records: Sequence[JournalRecord]) -> None:
        before = self.commits
        try:
            await super().append(records)
        finally:
            if self.commits > before:
                self.batches.append(list(records))


async def life(seed: int) -> RecordingJournal:
    """The records of a simulated life with faults, and some of settlement."""
    world = Simulation(seed)
    journal = RecordingJournal()
    world.harness.journal = journal
    await world.start()
    for _ in range(STEPS):
        await world.step()
    await world.settle_down()
    subjects = (TxSubject(world.client.id, Amount(2**100)),)
    txs: list[SignedTransaction] = []
    for nonce in range(4):
        fees = Fees(2**70, 10**9)
        unsigned = UnsignedTransaction(DOMAIN.chain_id, nonce, fees, 21_000, None, 0, b"data")
        txs.append(unsigned.sign(OPERATOR))
        stored = StoredTx(
            TxKind.SETTLE,
            txs[-1],
            subjects,
            Worth(Amount(nonce), nonce),
            Timestamp(nonce),
            moved_at=nonce,
        )
        await journal.append([stored])
    await journal.append([TxMoved(txs[0].hash, TxState.FINAL, Timestamp(9), 50_000)])
    await journal.append([TxMoved(txs[1].hash, TxState.MINED, Timestamp(9), 50_000)])
    await journal.append([TxMoved(txs[3].hash, TxState.REPLACED, Timestamp(9))])
    await journal.append([MetaSet("cursor", "1"), MetaSet("cursor", "2")])
    return journal


@pytest.mark.parametrize("seed", range(8))
async def test_the_journal_reads_back_what_its_model_holds_across_restarts(
    seed: int, tmp_path: Path
) -> None:
    model = await life(seed)
    chance = random.Random(seed)
    disk = await SqliteJournal.open(tmp_path / "journal.db", DOMAIN, OPERATOR.address)
    for batch in model.batches:
        await disk.append(batch)
        if chance.random() < 0.05:
            await disk.close()
            disk = await SqliteJournal.open(tmp_path / "journal.db", DOMAIN, OPERATOR.address)
    await same(disk, model)
    assert await disk.verify() > len(model.jobs)
    await disk.close()


@pytest.mark.parametrize("seed", range(3))
async def test_every_prefix_of_records_is_a_state_that_can_be_read(
    seed: int, tmp_path: Path
) -> None:
    full = await life(seed)
    disk = await SqliteJournal.open(tmp_path / "journal.db", DOMAIN, OPERATOR.address)
    model = MemoryJournal(DOMAIN)
    for number, batch in enumerate(full.batches):
        await disk.append(batch)
        await model.append(batch)
        if number % 7 == 0:
            await same(disk, model)
    await disk.close()


async def same(disk: SqliteJournal, model: MemoryJournal) -> None:
    """Every read of both gives the same."""
    assert await disk.open_jobs() == await model.open_jobs()
    for job in model.jobs.values():
        assert await disk.job(job.id) == job
        assert await disk.sealed_content(job.id) == await model.sealed_content(job.id)
        for canvas in job.canvases:
            receipt, channel = Digest(DOMAIN.digest(canvas.receipt)), job.submission.job.channel
            place = (job.id, canvas.receipt.canvas)
            assert await disk.canvas_of(ChannelId(channel), receipt) == place
            assert await model.canvas_of(ChannelId(channel), receipt) == place
            assert await disk.canvas_of(ChannelId(bytes(32)), receipt) is None
    for deadline in {Timestamp(0), *(job.submission.job.deadline for job in model.jobs.values())}:
        kept = set(await disk.replayable(deadline))
        assert kept == set(await model.replayable(deadline))
    assert {c.id: c for c in await disk.channels()} == {c.id: c for c in await model.channels()}
    assert await disk.sealing_keys() == await model.sealing_keys()
    assert await disk.last_sequence() == await model.last_sequence()
    for digest, signed in model.offers.items():
        assert await disk.offer(digest) == signed
    assert await disk.transactions() == await model.transactions()
    assert await disk.given_up() == await model.given_up()
    assert await disk.earnings() == await model.earnings()
    assert await disk.meta("cursor") == await model.meta("cursor")
