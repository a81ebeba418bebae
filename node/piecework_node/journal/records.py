"""What the journal writes and reads back: plain, frozen values without any text of a job.

A record is a fact that must be durable before its effect (clause 9.1). `Stored…` values are facts
as the journal reads them back. `StoredJob`, `StoredCanvas` and `StoredTx` are also the records
that create them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from piecework.chain.sending.rawtx import SignedTransaction
from piecework_protocol.errors import Reason
from piecework_protocol.frames import (
    FundingAuthorization,
    LeafRef,
    OpeningAuthorization,
    SubmitJob,
)
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel, FundChannel, Receipt
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import (
    Amount,
    ChannelId,
    Digest,
    JobId,
    PublicKey,
    Signature,
    Timestamp,
)
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import StateRecord, StoredCanvas


@dataclass(frozen=True, slots=True)
class OneStepFunding(FundingAuthorization):
    """An opening out of the payer's own tokens, as the authorization that it amounts to.

    It opens a channel, so that its amount is all that was ever put in. `signature` is over
    `opening`, under the token's domain.
    """

    opening: OpeningAuthorization


def one_step(channel: Channel, opening: OpeningAuthorization) -> OneStepFunding:
    """Return an opening as a funding of a channel that nothing was put into before."""
    terms = FundChannel(channel, opening.amount, opening.fee, opening.valid_before)
    return OneStepFunding(terms, opening.signature, opening)


@dataclass(frozen=True, slots=True)
class ChannelSeen:
    """A job was admitted on this channel."""

    id: ChannelId
    channel: Channel


@dataclass(frozen=True, slots=True)
class FundingAuthorized:
    """The payer authorized a (larger) deposit; the worker may submit it."""

    channel: ChannelId
    funding: FundingAuthorization


@dataclass(frozen=True, slots=True)
class VoucherApplied:
    """A voucher was accepted. `ledger` is the ledger after it, `base` the count before it."""

    ledger: WorkerLedger
    paid: tuple[LeafRef, ...]
    base: int


@dataclass(frozen=True, slots=True)
class ChannelObserved:
    """What the chain said about a channel."""

    channel: ChannelId
    state: ChannelState
    deposit: Amount
    settled: Amount
    at: Timestamp
    withdrawn: Amount = Amount(0)
    requested: Amount = Amount(0)
    """What the payer has asked back and not got yet."""
    requested_at: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class CloseAgreed:
    """The operator is about to agree that the channel's latest voucher is its last."""

    channel: ChannelId
    signature: Signature
    """The authorizer's signature over CloseChannel, which asked for it."""
    fee: Amount = Amount(0)
    """What the closing pays the receiver for sending it."""


@dataclass(frozen=True, slots=True)
class OfferIssued:
    """An offer is about to be shown to the world."""

    digest: Digest
    signed: SignedOffer


@dataclass(frozen=True, slots=True)
class SealingKeyAdded:
    """A sealing key, wrapped under the home's own secret."""

    public: PublicKey
    wrapped: bytes
    created_at: Timestamp


@dataclass(frozen=True, slots=True)
class SealingKeyDropped:
    """Nothing sealed to this key can arrive any more."""

    public: PublicKey


SEQUENCE_FLOOR: Final = "sequence_floor"
"""The value under which no offer's number may lie, because an index has seen it signed."""
ROLLED_BACK: Final = "rolled_back"
"""The value that says how it was noticed that the journal lacks what was signed. Empty: it is not
so any more."""


class TxKind(enum.Enum):
    """What a transaction is for."""

    FUND = "fund"
    SETTLE = "settle"
    CLOSE = "close"
    PUSH = "push"
    """Sends what waits for the receiver to it."""
    ANSWER = "answer"
    """Opens what a challenge asks for."""
    CANCEL = "cancel"
    """A transfer of nothing to ourselves. It takes the nonce of one that is not worth its gas."""


class TxState(enum.Enum):
    """How far a transaction got. INTENDED may or may not have been broadcast."""

    INTENDED = "intended"
    MINED = "mined"
    FINAL = "final"
    FAILED = "failed"
    REPLACED = "replaced"
    """Another transaction took its place: one with the same nonce that is final, or, when its nonce
    was out of reach, the same effect with a lower nonce."""


OPEN_TX_STATES = frozenset({TxState.INTENDED, TxState.MINED})
FINAL_TX_STATES = frozenset({TxState.FINAL, TxState.FAILED})
"""Of those that used their nonce for good."""


@dataclass(frozen=True, slots=True)
class TxSubject:
    """What a transaction states about one channel: its cumulative claim, or its new deposit."""

    channel: ChannelId
    amount: Amount


@dataclass(frozen=True, slots=True)
class Worth:
    """What a transaction brings. No attempt and no replacement may be expected to cost more."""

    units: Amount
    """Base units of the token."""
    wei: int | None
    """The same in wei. None: the cost does not matter (gas is free, or the operator asked)."""


@dataclass(frozen=True, slots=True)
class TxMoved:
    """A transaction's new state."""

    hash: bytes
    state: TxState
    at: Timestamp
    gas_used: int = 0
    fee_wei: int = 0
    """What it cost."""


@dataclass(frozen=True, slots=True)
class ContradictionSeen:
    """Two messages of one signer contradict each other. The journal keeps the first pair a kind.

    `first` and `second` are the values as they are stored, each with the signature behind it.
    """

    channel: ChannelId
    kind: str
    """Such as "voucher"."""
    first: bytes
    second: bytes
    at: Timestamp


@dataclass(frozen=True, slots=True)
class ReceiptsShown:
    """A client showed receipts of ours that the journal lacks, and a voucher that pays for them.

    `ledger` is the ledger after it, `base` the count before it. The jobs are not known any more.
    Those that are known and not over end here.
    """

    channel: Channel
    ledger: WorkerLedger
    base: int
    receipts: tuple[Receipt, ...]
    at: Timestamp


@dataclass(frozen=True, slots=True)
class MetaSet:
    """A small named value, such as how far the chain's events were read."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class StoredJob:
    """An admitted job. The journal stores its `submission` without content and funding.

    The sealed content of a replayable job is stored beside it (`SqliteJournal.sealed_content`).

    `at` is the time of its acceptance.

    Append one in state NEW to admit the job. `StateRecord` and `StoredCanvas` change it later.
    """

    id: JobId
    submission: SubmitJob
    prompt_tokens: int
    at: Timestamp
    state: JobState = JobState.NEW
    reason: Reason | None = None
    canvases: tuple[StoredCanvas, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredTx:
    """A signed transaction. Append one in state INTENDED before the first broadcast."""

    kind: TxKind
    tx: SignedTransaction
    subjects: tuple[TxSubject, ...]
    worth: Worth
    at: Timestamp
    state: TxState = TxState.INTENDED
    moved_at: int = 0
    gas_used: int = 0
    fee_wei: int = 0
    """What it cost."""


JournalRecord = (
    StoredJob
    | StateRecord
    | StoredCanvas
    | ChannelSeen
    | FundingAuthorized
    | VoucherApplied
    | ChannelObserved
    | CloseAgreed
    | OfferIssued
    | SealingKeyAdded
    | SealingKeyDropped
    | StoredTx
    | TxMoved
    | ContradictionSeen
    | ReceiptsShown
    | MetaSet
)


@dataclass(frozen=True, slots=True)
class StoredChannel:
    """A channel with its ledger. State and amounts are the chain's last word."""

    id: ChannelId
    channel: Channel
    ledger: WorkerLedger
    funding: FundingAuthorization | None = None
    state: ChannelState = ChannelState.NONE
    deposit: Amount = Amount(0)
    settled: Amount = Amount(0)
    observed_at: int = 0
    """Seconds since the epoch. 0: never."""
    withdrawn: Amount = Amount(0)
    requested: Amount = Amount(0)
    requested_at: int = 0
    requests: int = 0
    close_signature: Signature | None = None
    close_fee: Amount = Amount(0)


@dataclass(frozen=True, slots=True)
class StoredSealingKey:
    """A sealing key as the journal holds it."""

    public: PublicKey
    wrapped: bytes
    created_at: Timestamp


@dataclass(frozen=True, slots=True)
class ReplayableJobs:
    """How many jobs of an offer's entry have their content kept, and their latest deadline."""

    offer: Digest
    entry: int
    """Index into the offer's models."""
    jobs: int
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job's model and its last receipt, which holds the job's totals."""

    model: Digest
    last: Receipt


@dataclass(frozen=True, slots=True)
class PaidJob:
    """What a job has earned by vouchers, in base units."""

    job: JobId
    channel: ChannelId
    at: Timestamp
    """Of its acceptance."""
    canvases: int
    gross: Amount
    offer: Digest | None = None
    """The offer that it named. None once the journal has let go of it."""
    entry: int | None = None
    """The entry of that offer: its model. None as before."""
    tokens: int | None = None
    """Output tokens of the paid canvases, by their receipts. None once one of these is gone."""


@dataclass(frozen=True, slots=True)
class SpentTx:
    """What a transaction has cost."""

    hash: bytes
    kind: TxKind
    at: Timestamp
    """At which it was seen mined."""
    fee_wei: int
    earned: Amount = Amount(0)
    """The fee that the client paid for it, in base units."""


@dataclass(frozen=True, slots=True)
class Earnings:
    """Sums over the journal, in base units unless named otherwise."""

    charged: Amount
    accepted: Amount
    settled: Amount
    unpaid: Amount
    canvases: int
    jobs: dict[str, int] = field(default_factory=dict)
    """Jobs by state."""
