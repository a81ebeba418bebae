"""One record of each kind, in an order that a journal accepts."""

from __future__ import annotations

from dataclasses import replace

from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework_node.journal.records import (
    ChannelObserved,
    ChannelSeen,
    CloseAgreed,
    ContradictionSeen,
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
from tests.support.protocol.traces import made_up_leaves
from tests.unit.node.test_admission import CHANNEL, funding, good
from tests.unit.node.test_admission import OFFER as OFFER_OF_NOW

SIGNATURE = Signature(b"\5" * 64 + b"\x1b")
KEY = PublicKey(b"\7" * 32)
# Golden journals of earlier programs have this offer, so it has the kinds of then: text and read.
OFFER = OFFER_OF_NOW.replace(
    models=tuple(model.replace(kinds=Uint32(0b11)) for model in OFFER_OF_NOW.models)
)
_CASE = good()
SUBMISSION = replace(
    replace(_CASE, job=_CASE.job.replace(offer=Digest(DOMAIN.digest(OFFER)))).submission,
    sealed_content=b"sealed content",
)
JOB = SUBMISSION.job.id(DOMAIN)
CHANNEL_ID = CHANNEL.id(DOMAIN)
LEAF = LeafRef(JOB, 0)
RECEIPT = Receipt(
    job=JOB,
    canvas=Uint32(0),
    output_digest=Digest(b"\1" * 32),
    trace_root=Digest(b"\2" * 32),
    steps=Uint32(7),
    units=Uint32(8),
    amount=Amount(99),
    finish=Finish.MORE,
    total_prompt_tokens=Uint32(10),
    total_units=Uint32(8),
    total_steps=Uint32(7),
    total_amount=Amount(99),
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
        StoredJob(JOB, SUBMISSION, 10, Timestamp(7)),
        StateRecord(JOB, JobState.ACCEPTED),
        StateRecord(JOB, JobState.RUNNING),
        StoredCanvas(RECEIPT, b"sealed", b"secret", made_up_leaves(b"trace", 7)),
        VoucherApplied(ledger, (LEAF,), 0),
        StateRecord(JOB, JobState.FAILED, Reason.EXPIRED),
        CloseAgreed(CHANNEL_ID, SIGNATURE),
        StoredTx(
            TxKind.SETTLE,
            TRANSACTION,
            subjects,
            Worth(Amount(99), 2**70),
            Timestamp(8),
            moved_at=8,
        ),
        TxMoved(TRANSACTION.hash, TxState.MINED, Timestamp(9), 50_000, 2**65),
        ContradictionSeen(CHANNEL_ID, "voucher", b"first", b"second", Timestamp(10)),
        MetaSet("events_through_block", "12"),
        SealingKeyDropped(KEY),
    ]
