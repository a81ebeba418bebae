"""The journal's rows stay as they are, byte for byte: workers in the field have journals."""

from __future__ import annotations

from pathlib import Path

import apsw

from piecework.chain.fees import Fees
from piecework.chain.rawtx import UnsignedTransaction
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
from piecework_protocol.frames import LeafRef, PayVoucher
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Finish, Receipt, Voucher
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    PublicKey,
    Signature,
    Timestamp,
    Uint32,
    Uint64,
)
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import StateRecord, StoredCanvas
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.unit.node.test_admission import CHANNEL, OFFER, funding, good

HEAD = "24b8707bc7d7e5bd006b5fd091056d8567022e798bd2b9a6be6fb594259c32d4"
"""Of the hash chain over every row that these records write, recorded with schema 1."""
SIGNATURE = Signature(b"\5" * 64 + b"\x1b")
KEY = PublicKey(b"\7" * 32)
SUBMISSION = good().submission
JOB = SUBMISSION.job.id(DOMAIN)
CHANNEL_ID = CHANNEL.id(DOMAIN)
LEAF = LeafRef(JOB, 0)
WORTH = Worth(Amount(2**100), 2**90)
RECEIPT = Receipt(
    job=JOB,
    canvas=Uint32(0),
    output_digest=Digest(b"\1" * 32),
    trace_root=Digest(b"\2" * 32),
    steps=Uint32(7),
    units=Uint32(8),
    amount=Amount(99),
    finish=Finish.MORE,
    previous=Digest(JOB),
)
TRANSACTION = UnsignedTransaction(
    31337, 3, Fees(2**70, 10**9), 60_000, Address(b"\6" * 20), 0, b"settle"
).sign(OPERATOR)


def records() -> list[JournalRecord]:
    """One record of each kind, in an order that the journal accepts."""
    accumulator = Accumulator().append(Digest(DOMAIN.digest(RECEIPT)))
    voucher = Voucher(CHANNEL_ID, Amount(99), Uint64(1), accumulator.root())
    payment = PayVoucher(voucher, SIGNATURE, 0, (LEAF,))
    ledger = WorkerLedger(CHANNEL_ID, payment, accumulator, {})
    subjects = (TxSubject(CHANNEL_ID, Amount(99)),)
    return [
        OfferIssued(Digest(DOMAIN.digest(OFFER)), SignedOffer(OFFER, SIGNATURE)),
        SealingKeyAdded(KEY, b"wrapped", Timestamp(5)),
        ChannelSeen(CHANNEL_ID, CHANNEL),
        ChannelObserved(CHANNEL_ID, ChannelState.OPEN, Amount(500), Amount(0), Timestamp(6)),
        FundingAuthorized(CHANNEL_ID, funding(700)),
        StoredJob(JOB, SUBMISSION, 10, 2, Timestamp(7)),
        StateRecord(JOB, JobState.ACCEPTED),
        StateRecord(JOB, JobState.RUNNING),
        StoredCanvas(RECEIPT, b"sealed", b"secret"),
        VoucherApplied(ledger, (LEAF,), 0),
        StateRecord(JOB, JobState.FAILED, Reason.EXPIRED),
        CloseAgreed(CHANNEL_ID, SIGNATURE),
        StoredTx(TxKind.SETTLE, TRANSACTION, subjects, WORTH, Timestamp(8), moved_at=8),
        TxMoved(TRANSACTION.hash, TxState.MINED, Timestamp(9), 50_000),
        MetaSet("events_through_block", "12"),
        SealingKeyDropped(KEY),
    ]


async def test_every_kind_of_record_writes_the_rows_that_it_always_wrote(tmp_path: Path) -> None:
    journal = await SqliteJournal.open(tmp_path / "journal.db", DOMAIN, OPERATOR.address)
    for record in records():
        await journal.append([record])
    (transaction,) = await journal.transactions()
    assert transaction.tx == TRANSACTION
    await journal.close()
    raw = apsw.Connection(str(tmp_path / "journal.db"))
    head = raw.execute("SELECT head FROM log ORDER BY position DESC LIMIT 1").get
    raw.close()
    assert head.hex() == HEAD
