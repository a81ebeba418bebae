"""A journal that was restored from a backup: noticed, harmless, and healed by the clients."""

from __future__ import annotations

import base64
import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.base.http import HttpUnreachable
from piecework.chain.errors import SignerRefuses
from piecework.signer.policy import CONTRADICTS
from piecework_node.jobs.healing import Healer, Shown
from piecework_node.jobs.rollback import LastOffer, last_offer, notice
from piecework_node.journal.records import ROLLED_BACK, MetaSet
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.runtime.faults import Code
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Receipt
from piecework_protocol.signing import LocalSigner, Unsigned, sign
from piecework_protocol.states import JobState
from piecework_protocol.types import Amount, Signature, to_hex
from piecework_protocol.wire import encode_offer
from tests.support.node.harness import DOMAIN, OPERATOR, Client, JobStream, WorkerHarness
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.twin_journal import TwinJournal


class Restored:
    """A worker that trades, is set back to its journal of yesterday, and starts again."""

    def __init__(self) -> None:
        self.harness = WorkerHarness()
        self.receipts: list[Receipt] = []

    async def live(self) -> None:
        await self.harness.boot()
        self.client = Client(self.harness)
        self.client.open_on_chain()
        await self.trade(1, 40)
        self.backup = copy.deepcopy(self.harness.journal)
        self.base = self.client.book.accumulator
        for seed in (2, 3, 4):
            await self.trade(seed, 24)

    async def trade(self, seed: int, tokens: int) -> JobStream:
        line = self.client.job(seed, tokens)
        await self.client.submit(line)
        await self.client.finish(line)
        assert line.finished
        self.receipts += line.receipts
        return line

    async def restore(self, journal: MemoryJournal) -> Healer:
        self.harness.journal = journal
        await self.harness.boot()
        return Healer(self.harness.worker)

    def shown(self) -> Shown:
        """What an honest client hands over."""
        client = self.client
        voucher = client.book.voucher()
        lost = self.receipts[self.base.count :]
        return Shown(
            client.channel,
            voucher,
            sign(DOMAIN, voucher, client.signer),
            self.base,
            [(receipt, sign(DOMAIN, receipt, OPERATOR)) for receipt in lost],
        )


@pytest.fixture
async def world() -> Restored:
    made = Restored()
    await made.live()
    return made


async def test_a_rolled_back_journal_is_healed_from_the_receipts_that_a_client_shows(
    world: Restored,
) -> None:
    healer = await world.restore(world.backup)
    assert world.harness.journal.books[world.client.id].ledger.cumulative < (
        world.client.book.cumulative
    )
    ledger = await healer.show(world.shown())
    assert ledger.cumulative == world.client.book.cumulative
    assert ledger.accumulator == world.client.book.accumulator
    assert world.harness.journal.books[world.client.id].ledger == ledger


async def test_it_takes_no_job_until_it_is_recovered_and_then_trades_on(world: Restored) -> None:
    healer = await world.restore(world.backup)
    await healer.show(world.shown())
    assert [fault.code for fault in world.harness.faults.faults] == [Code.JOURNAL_OLD]
    with pytest.raises(Refusal, match="journal-old") as caught:
        await world.trade(9, 20)
    assert caught.value.retry_after_s is not None
    await world.harness.journal.append([MetaSet(ROLLED_BACK, "")])
    await world.harness.boot()
    await world.trade(10, 20)
    ledger = world.harness.journal.books[world.client.id].ledger
    assert ledger.cumulative == world.client.book.cumulative and not ledger.unpaid


async def test_an_unfinished_job_gets_no_signature_and_ends_when_its_receipts_are_shown(
    world: Restored,
) -> None:
    line = world.client.job(77, 40)
    await world.client.submit(line)
    yesterday = copy.deepcopy(world.harness.journal)
    before = len(world.receipts)
    await world.client.finish(line)
    world.base = Accumulator().extend([DOMAIN.digest(r) for r in world.receipts])
    world.receipts += line.receipts
    assert len(world.receipts) > before
    healer = await world.restore(yesterday)
    await world.harness.worker.distrust("an index knows better")
    world.client.forget(line)
    with pytest.raises(Refusal, match="journal-old"):
        await world.client.submit(line)
    assert world.harness.journal.jobs[line.id].canvases == ()
    await healer.show(world.shown())
    assert world.harness.journal.jobs[line.id].state is JobState.FAILED
    ledger = world.harness.journal.books[world.client.id].ledger
    assert ledger.cumulative == world.client.book.cumulative and not ledger.unpaid


class Remembers:
    """Implements `AsyncSigner` as one in another process that has signed other receipts before."""

    address = OPERATOR.address

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        if isinstance(message, Receipt):
            raise SignerRefuses(CONTRADICTS, "it was signed with other content")
        return await OPERATOR.typed(domain, message)

    async def transaction(self, transaction: Unsigned) -> Signature:
        return await OPERATOR.transaction(transaction)


async def test_what_a_signer_knows_better_stays_noticed_until_it_is_recovered(
    world: Restored,
) -> None:
    """Its numbers of offers may be those of the journal. So the next start could not tell."""
    world.harness.signer = Remembers()
    await world.restore(world.harness.journal)
    line = world.client.job(78, 40)
    await world.client.submit(line)
    await world.client.finish(line)
    assert not line.receipts and world.harness.journal.jobs[line.id].state is JobState.FAILED
    assert "signed with other content" in (await notice(world.harness.journal, None) or "")
    assert [fault.code for fault in world.harness.faults.faults] == [Code.JOURNAL_OLD]

    await world.harness.journal.append([MetaSet(ROLLED_BACK, "")])
    await world.restore(world.harness.journal)
    world.client.forget(line)
    with pytest.raises(SignerRefuses):
        await world.client.submit(line)
    assert not world.harness.faults.faults and await notice(world.harness.journal, None) is None


async def test_what_does_not_add_up_or_is_not_signed_changes_nothing(world: Restored) -> None:
    healer = await world.restore(world.backup)
    good, stranger = world.shown(), LocalSigner(b"\x07" * 32)
    richer = good.receipts[-1][0].replace(amount=Amount(9))
    paid = good.voucher.replace(cumulative=Amount(good.voucher.cumulative + 1))
    bad = {
        "a receipt of a stranger": replace(
            good, receipts=[(r, sign(DOMAIN, r, stranger)) for r, _ in good.receipts]
        ),
        "a changed receipt": replace(
            good, receipts=[*good.receipts[:-1], (richer, good.receipts[-1][1])]
        ),
        "a receipt twice": replace(good, receipts=[*good.receipts[:-1], good.receipts[0]]),
        "another order": replace(good, receipts=good.receipts[::-1]),
        "too few": replace(good, receipts=good.receipts[:-1]),
        "another base": replace(good, base=Accumulator()),
        "a voucher of a stranger": replace(good, signature=sign(DOMAIN, good.voucher, stranger)),
        "a voucher of another sum": replace(
            good, voucher=paid, signature=sign(DOMAIN, paid, world.client.signer)
        ),
        "another worker's channel": replace(
            good, channel=good.channel.replace(operator=stranger.address)
        ),
    }
    before = copy.deepcopy(world.harness.journal.books)
    for what, shown in bad.items():
        with pytest.raises(Refusal) as caught:
            await healer.show(shown)
        assert caught.value.reason in (
            Reason.BAD_SIGNATURE,
            Reason.BROKEN_CLAUSE,
            Reason.WRONG_WORKER,
        ), what
    assert world.harness.journal.books == before
    assert world.harness.faults.stopping is None
    assert await healer.show(good)


async def test_a_voucher_that_is_known_changes_nothing_and_is_no_sign_of_a_rollback(
    world: Restored,
) -> None:
    healer = await world.restore(world.harness.journal)
    ledger = await healer.show(world.shown())
    assert ledger.cumulative == world.client.book.cumulative
    assert world.harness.faults.stopping is None


async def test_healing_on_disk_leaves_a_journal_that_verifies(tmp_path: Path) -> None:
    world = Restored()
    clock = world.harness.clock
    file = tmp_path / "journal.db"
    disk = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)
    world.harness.journal = twin = TwinJournal(DOMAIN, disk)
    await world.harness.boot()
    world.client = Client(world.harness)
    world.client.open_on_chain()
    await world.trade(1, 40)
    world.base = world.client.book.accumulator
    await disk.close()
    kept, memory = file.read_bytes(), twin.memory()
    disk = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)
    twin.disk = disk
    for seed in (2, 3):
        await world.trade(seed, 24)
    whole = await disk.earnings()
    await disk.close()
    file.write_bytes(kept)
    disk = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)
    yesterday = TwinJournal(DOMAIN, disk, memory)
    healer = await world.restore(yesterday)
    await healer.show(world.shown())
    assert await disk.verify(deep=True)
    healed = await disk.earnings()
    assert (healed.accepted, healed.unpaid) == (whole.accepted, 0)
    assert healed.charged == whole.charged and healed.canvases == whole.canvases
    assert await disk.meta(ROLLED_BACK)
    await disk.close()


# --- what the indexes know


class Indexes:
    """Implements `rollback.JsonReader`."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers

    async def get_json(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        assert url.endswith(f"/v1/offers/{to_hex(OPERATOR.address)}")
        for index, answer in self.answers.items():
            if url.startswith(index):
                return answer
        raise HttpUnreachable("host", "nobody answers")


async def test_an_index_that_shows_a_later_offer_of_ours_tells_a_rollback() -> None:
    harness = WorkerHarness()
    await harness.boot()
    backup = copy.deepcopy(harness.journal)
    later = await harness.issue_offer()
    forged = later.offer.replace(sequence=later.offer.sequence + 5)
    stranger = LocalSigner(b"\x07" * 32)
    shown = {"signed_offer": base64.b64encode(encode_offer(later)).decode()}
    lie = replace(later, offer=forged, signature=sign(DOMAIN, forged, stranger))
    answers = {
        "http://honest": shown,
        "http://liar": {"signed_offer": base64.b64encode(encode_offer(lie)).decode()},
        "http://odd": {"signed_offer": 7},
        "http://odder": ["nothing"],
        "http://empty": {},
    }
    indexes = [*answers, "http://dead"]
    last = await last_offer(indexes, OPERATOR.address, DOMAIN, Indexes(answers))
    assert last == LastOffer(later.offer.sequence, "the index at honest", later)
    assert await notice(harness.journal, last) is None
    why = await notice(backup, last)
    assert why is not None and "honest" in why
    assert await notice(backup, None) == why, "what was noticed stays noticed"
    assert await last_offer(indexes, OPERATOR.address, DOMAIN, Indexes({})) is None
