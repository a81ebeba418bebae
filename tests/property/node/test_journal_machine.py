"""The journal on disk against the journal in memory, with restarts, crashes and torn writes.

A crash is what kill -9 or a power cut leaves: the files as they are, with the write-ahead log cut
anywhere inside the batch that was being written. The batch is then there as a whole, or not at all.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework_node.errors import JournalConflict
from piecework_node.journal.records import (
    ChannelObserved,
    ChannelSeen,
    CloseAgreed,
    FundingAuthorized,
    JournalRecord,
    MetaSet,
    OfferIssued,
    SealingKeyAdded,
    SealingKeyDropped,
    StoredJob,
    StoredTx,
    TxKind,
    TxMoved,
    TxState,
    TxSubject,
    VoucherApplied,
    Worth,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.errors import Reason
from piecework_protocol.frames import FundingAuthorization, SubmitJob
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel, FundChannel
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import (
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    PayerSignature,
    PublicKey,
    Timestamp,
    Uint64,
    keccak256,
)
from piecework_protocol.worker_session import StateRecord
from tests.property.node.test_journal import same
from tests.support.market.offers import offer
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.journal_life import UNSIGNED, canvas_record, paid_ledger
from tests.support.node.memory_journal import MemoryJournal
from tests.support.protocol import pair

LARGE = st.integers(0, 2**88).map(Amount)


class TwoJournals(RuleBasedStateMachine):
    """`model` is the journal in memory; both get every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="journal-"))
        self.lives = itertools.count()
        self.file = self.folder / "journal.db"
        self.numbers = itertools.count(1)
        self.model = MemoryJournal(DOMAIN)
        self.disk = self._open()
        self.channels: list[Channel] = []

    def teardown(self) -> None:
        self.loop.run(self.disk.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def _open(self) -> SqliteJournal:
        return self.loop.run(SqliteJournal.open(self.file, DOMAIN, OPERATOR.address))

    def append(self, *records: JournalRecord) -> None:
        self.loop.run(self.model.append(records))
        self.loop.run(self.disk.append(records))

    # --- records as a worker writes them

    @rule()
    def a_channel_is_seen(self) -> None:
        salt = Bytes32(next(self.numbers).to_bytes(32, "big"))
        channel = pair.channel().replace(salt=salt)
        self.channels.append(channel)
        record = ChannelSeen(channel.id(DOMAIN), channel)
        self.append(record, record)  # seen again by the next job: nothing happens

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), start=st.booleans())
    def a_job_is_admitted(self, data: st.DataObject, start: bool) -> None:
        channel, number = data.draw(st.sampled_from(self.channels)), next(self.numbers)
        job = pair.job(number, 32).replace(channel=channel.id(DOMAIN))
        key = job.id(DOMAIN)
        submission = SubmitJob(job, UNSIGNED, channel, b"sealed prompt")
        records: list[JournalRecord] = [StoredJob(key, submission, 7, Timestamp(number))]
        if start:
            records.append(StateRecord(key, JobState.RUNNING))
        self.append(*records)

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data(), amounts=st.lists(LARGE, min_size=1, max_size=3))
    def canvases_are_finished(self, data: st.DataObject, amounts: list[Amount]) -> None:
        job = data.draw(st.sampled_from(list(self.model.jobs.values())))
        have = len(job.canvases)
        self.append(*(canvas_record(job.id, have + n, a) for n, a in enumerate(amounts)))

    @precondition(lambda self: self.model.jobs)
    @rule(
        data=st.data(),
        state=st.sampled_from(JobState),
        reason=st.one_of(st.none(), st.sampled_from(Reason)),
    )
    def a_job_moves(self, data: st.DataObject, state: JobState, reason: Reason | None) -> None:
        self.append(StateRecord(data.draw(st.sampled_from(list(self.model.jobs))), state, reason))

    @precondition(lambda self: any(b.ledger.unpaid for b in self.model.books.values()))
    @rule(data=st.data())
    def a_voucher_is_accepted(self, data: st.DataObject) -> None:
        owing = [b for b in self.model.books.values() if b.ledger.unpaid]
        ledger = data.draw(st.sampled_from(owing)).ledger
        paid = data.draw(
            st.lists(st.sampled_from(list(ledger.unpaid)), min_size=1, unique=True, max_size=4)
        )
        after = paid_ledger(ledger, paid)
        self.append(VoucherApplied(after, tuple(paid), ledger.accumulator.count))

    @precondition(lambda self: self.channels)
    @rule(
        data=st.data(),
        state=st.sampled_from(ChannelState),
        deposit=LARGE,
        settled=LARGE,
    )
    def the_chain_is_observed(
        self, data: st.DataObject, state: ChannelState, deposit: Amount, settled: Amount
    ) -> None:
        channel = self._channel(data)
        at = Timestamp(next(self.numbers))
        self.append(ChannelObserved(channel, state, deposit, settled, at))

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), deposit=LARGE)
    def a_deposit_is_authorized(self, data: st.DataObject, deposit: Amount) -> None:
        channel = data.draw(st.sampled_from(self.channels))
        authorization = FundChannel(channel, deposit, Amount(0), Timestamp(next(self.numbers)))
        self.append(
            FundingAuthorized(
                channel.id(DOMAIN), FundingAuthorization(authorization, PayerSignature(UNSIGNED))
            )
        )

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def a_close_is_agreed(self, data: st.DataObject) -> None:
        fee = Amount(data.draw(st.sampled_from((0, 1, 2**96 - 1))))
        self.append(CloseAgreed(self._channel(data), UNSIGNED, fee))

    @rule(lifetime=st.integers(1, 10**6))
    def an_offer_is_issued(self, lifetime: int) -> None:
        number = next(self.numbers)
        expires = Timestamp(1_800_000_000 + lifetime)
        signed = offer(domain=DOMAIN, sequence=Uint64(number), expires_at=expires)
        self.append(OfferIssued(Digest(DOMAIN.digest(signed.offer)), signed))

    @rule(drop=st.booleans())
    def a_sealing_key_is_made(self, drop: bool) -> None:
        public = PublicKey(keccak256(next(self.numbers).to_bytes(8, "big")))
        self.append(SealingKeyAdded(public, b"wrapped", Timestamp(next(self.numbers))))
        if drop:
            oldest = self.model.keys[-1].public
            self.append(SealingKeyDropped(oldest))

    @rule(kind=st.sampled_from(TxKind), amount=LARGE, fee=st.integers(1, 2**80))
    def a_transaction_is_intended(self, kind: TxKind, amount: Amount, fee: int) -> None:
        number = next(self.numbers)
        unsigned = UnsignedTransaction(
            DOMAIN.chain_id, number, Fees(fee, 1), 21_000, None, 0, b"data"
        )
        subjects = (TxSubject(ChannelId(keccak256(b"subject")), amount),)
        signed = unsigned.sign(OPERATOR)
        self.append(
            StoredTx(
                kind,
                signed,
                subjects,
                Worth(Amount(number), None),
                Timestamp(number),
                moved_at=number,
            )
        )

    @precondition(lambda self: self.model.txs)
    @rule(data=st.data(), state=st.sampled_from(TxState), gas=st.integers(0, 10**7))
    def a_transaction_moves(self, data: st.DataObject, state: TxState, gas: int) -> None:
        key = data.draw(st.sampled_from(list(self.model.txs)))
        self.append(TxMoved(key, state, Timestamp(next(self.numbers)), gas))

    @rule(value=st.text(max_size=5))
    def a_note_is_set(self, value: str) -> None:
        self.append(MetaSet("cursor", value))

    def _channel(self, data: st.DataObject) -> ChannelId:
        return data.draw(st.sampled_from(self.channels)).id(DOMAIN)

    # --- what goes wrong

    @rule(good=st.text(max_size=3), broken=st.sampled_from(["move", "state", "voucher", "canvas"]))
    def a_batch_with_a_bad_record_leaves_nothing(self, good: str, broken: str) -> None:
        missing = JobId(bytes(32))
        defects: dict[str, JournalRecord] = {
            "move": TxMoved(bytes(32), TxState.MINED, Timestamp(1)),
            "state": StateRecord(missing, JobState.RUNNING),
            "canvas": canvas_record(missing, 0, 1),
            "voucher": VoucherApplied(paid_ledger(WorkerLedger(ChannelId(bytes(32))), []), (), 0),
        }
        bad = defects[broken]
        with pytest.raises(JournalConflict):
            self.loop.run(self.disk.append([MetaSet("cursor", f"never {good}"), bad]))

    @rule()
    def it_is_closed_and_opened(self) -> None:
        self.loop.run(self.disk.close())
        self.disk = self._open()

    @rule(value=st.text(min_size=1, max_size=200), part=st.floats(0, 1))
    def it_dies_inside_a_batch(self, value: str, part: float) -> None:
        """The log of the database ends anywhere inside the last batch."""
        before = copy.copy(self.model.notes)
        wal = Path(f"{self.file}-wal")
        size = wal.stat().st_size if wal.exists() else 0
        batch: Sequence[JournalRecord] = [MetaSet("cursor", value), MetaSet("other", value)]
        self.loop.run(self.disk.append(batch))
        left = self.folder / f"life-{next(self.lives)}.db"
        shutil.copyfile(self.file, left)
        grown = wal.stat().st_size
        data = wal.read_bytes()
        # A log that was started over holds the batch somewhere below its size: keep it whole.
        kept = size + int((grown - size) * part) if grown > size else grown
        Path(f"{left}-wal").write_bytes(data[:kept])
        self.loop.run(self.disk.close())
        self.file = left
        self.disk = self._open()
        if kept == grown:
            self.loop.run(self.model.append(batch))
        else:
            assert self.loop.run(self.disk.meta("cursor")) == before.get("cursor")
            assert self.loop.run(self.disk.meta("other")) == before.get("other")

    # --- what always holds

    @invariant()
    def both_read_the_same(self) -> None:
        self.loop.run(same(self.disk, self.model))

    @rule()
    def the_hash_chain_is_whole(self) -> None:
        self.loop.run(self.disk.verify())


TestTwoJournals = TwoJournals.TestCase
TestTwoJournals.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
