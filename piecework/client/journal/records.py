"""What the client's journal holds, as plain values."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from piecework_protocol.frames import SubmitJob
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Channel, Receipt, Voucher
from piecework_protocol.types import Address, Amount, ChannelId, Digest, JobId, Signature, Timestamp
from piecework_protocol.wire import SignedOffer

BEGINNING = Timestamp(0)


class ChannelStatus(enum.Enum):
    """Whether new jobs may use a channel.

    CLOSED is permanent. It is recorded only when a final block shows the channel closed.
    """

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class JobStatus(enum.Enum):
    """Where a job stands for the client. Only LIVE jobs hold a part of the deposit reserved."""

    LIVE = "live"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class ChannelRow:
    """One channel. All totals are base units.

    Attributes:
        id: Its EIP-712 digest.
        channel: Its terms.
        authorized: The total of the newest funding authorization that the payer signed.
        funding_deadline: When that authorization ends.
        taken: The total under which a worker accepted a job. It may be opening the channel now.
        funded: The total that the chain showed last. A reorganization may lower it.
        withdrawn: What the payer took back or has asked for.
        settled: What the chain paid to the worker, as it was seen last.
        settled_count: The receipts that the settled vouchers cover.
        book: What the client has promised.
        status: Whether new jobs may use it.
    """

    id: ChannelId
    channel: Channel
    authorized: Amount
    funding_deadline: Timestamp
    taken: Amount
    funded: Amount
    withdrawn: Amount
    settled: Amount
    settled_count: int
    book: PayerLedger
    status: ChannelStatus

    @property
    def deposit(self) -> Amount:
        """What vouchers may promise: the larger of what is signed for and what is on chain."""
        return Amount(max(self.authorized, self.funded) - self.withdrawn)


@dataclass(frozen=True, slots=True)
class SeenChannel:
    """What the chain shows of a channel: totals in base units, and receipts that were settled."""

    funded: Amount
    withdrawn: Amount
    settled: Amount
    settled_count: int


class ReservedFor(enum.Enum):
    """Why a part of the pooled balance is reserved."""

    OPENING = "a worker took a job and may open or top up the channel"
    SUBMISSION = "a job is being offered to the worker"


@dataclass(frozen=True, slots=True)
class Reservation:
    """A part of the pooled balance that a signed authorization may still take.

    Attributes:
        channel: The channel that it would go to.
        operator: The channel's worker.
        amount: Base units.
        until: When the authorization ends. Then the amount is free again.
        why: What it is reserved for.
    """

    channel: ChannelId
    operator: Address
    amount: Amount
    until: Timestamp
    why: ReservedFor


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job with everything that is needed to resume it after a restart. No text.

    `owner` is the name of the process that follows it, as in `journal.owners`. Another process of
    this client leaves a living owner's job alone.
    """

    id: JobId
    submission: SubmitJob
    offer: SignedOffer
    reply_secret: bytes
    prompt_bytes: int
    status: JobStatus
    prompt_tokens: int | None
    detail: str
    created_at: Timestamp
    owner: str

    @property
    def channel_id(self) -> ChannelId:
        """The channel that pays for it."""
        return self.submission.job.channel


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A verified receipt. `leaf_index` is its place among the channel's paid receipts."""

    channel: ChannelId
    receipt: Receipt
    signature: Signature
    digest: Digest
    leaf_index: int
    text: str | None


@dataclass(frozen=True, slots=True)
class Payment:
    """The book after a receipt was paid, and the voucher that pays for it.

    `voucher` is None when the receipt had been paid before. Then nothing changed.
    """

    book: PayerLedger
    leaf_index: int
    voucher: Voucher | None

    @property
    def again(self) -> bool:
        """Whether the receipt had been paid before."""
        return self.voucher is None


@dataclass(frozen=True, slots=True)
class Experience:
    """What the client remembers of a worker, as of `updated_at`. Both counts decay."""

    operator: Address
    successes: float = 0.0
    failures: float = 0.0
    updated_at: Timestamp = BEGINNING
    broken_clause: str = ""
    broken_at: Timestamp = BEGINNING
