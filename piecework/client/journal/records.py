"""What the client's journal holds, as plain values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from piecework_protocol.frames import Accepted, SubmitJob
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Channel, Receipt, Voucher
from piecework_protocol.outlines import Outline
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
        fee: What the worker gets for submitting that authorization, beside it.
        funding_deadline: When that authorization ends.
        taken: The total under which a worker accepted a job. It may be opening the channel now.
        funded: The total that the chain showed last. A reorganization may lower it.
        withdrawn: What the payer took back or has asked for.
        settled: What the chain paid to the worker, as it was seen last.
        book: What the client has promised.
        status: Whether new jobs may use it.
        one_step: Whether its opening takes the payer's own tokens, and not the pooled balance.
    """

    id: ChannelId
    channel: Channel
    authorized: Amount
    fee: Amount
    funding_deadline: Timestamp
    taken: Amount
    funded: Amount
    withdrawn: Amount
    settled: Amount
    book: PayerLedger
    status: ChannelStatus
    one_step: bool = False

    @property
    def deposit(self) -> Amount:
        """What vouchers may promise: the larger of what is signed for and what is on chain."""
        return Amount(max(self.authorized, self.funded) - self.withdrawn)


@dataclass(frozen=True, slots=True)
class SeenChannel:
    """What the chain shows of a channel: totals in base units."""

    funded: Amount
    withdrawn: Amount
    settled: Amount


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
        one_step: Whether it is a part of the payer's own tokens instead.
    """

    channel: ChannelId
    operator: Address
    amount: Amount
    until: Timestamp
    why: ReservedFor
    one_step: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that may be spent, in base units. None: no limit.

    Attributes:
        per_day: By all jobs of one UTC day.
        per_month: By all jobs of one UTC month.
        max_price: By one job.
    """

    per_day: Amount | None = None
    per_month: Amount | None = None
    max_price: Amount | None = None


@dataclass(frozen=True, slots=True)
class RequestKey:
    """What a request with an Idempotency-Key is found by.

    Attributes:
        budget: The name of the API key that it came with, or "".
        key: SHA-256 of the header.
    """

    budget: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One job's place in what a caller asked for, known before there is a job.

    Attributes:
        budget: The name of the API key that it is bought with. "": the client itself.
        hold: What is kept of the budgets for it. None: nothing yet.
        request: The request with an Idempotency-Key that it belongs to.
        number: Its place in that request.
        audits: What is kept for audits of it that are bought, one hold for each report.
    """

    budget: str = ""
    hold: int | None = None
    request: RequestKey | None = None
    number: int = 0
    audits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job with everything that is needed to resume it after a restart. No text.

    `outline` is the shape of its content. `owner` is the name of the process that follows it, as in
    `journal.owners`. Another process of this client leaves a living owner's job alone.
    """

    id: JobId
    submission: SubmitJob
    offer: SignedOffer
    reply_secret: bytes
    outline: Outline
    status: JobStatus
    prompt_tokens: int | None
    detail: str
    created_at: Timestamp
    owner: str
    acceptance: Accepted | None = None
    """The worker's signed promise, without its account."""

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
    leaves: tuple[Digest, ...] = ()
    """The leaves under the receipt's trace root."""


@dataclass(frozen=True, slots=True)
class JobTexts:
    """The exact texts of a job, as far as texts are kept.

    Attributes:
        content: The bytes under the job's content digest.
        outputs: By canvas, the bytes under the receipt's output digest.
    """

    content: bytes | None
    outputs: Mapping[int, bytes]


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
    """What the client remembers of a worker.

    Attributes:
        successes: Jobs that ran to their end, as of `updated_at`. They decay.
        failures: Jobs that it did not finish, as of `updated_at`. They decay.
        broken_clause: The clause that it broke last.
        silences: How often it gave no answer or no progress, as of `silent_at`. They decay.
        answered_at: When it answered a dial last, to the nearest few minutes.
    """

    operator: Address
    successes: float = 0.0
    failures: float = 0.0
    updated_at: Timestamp = BEGINNING
    broken_clause: str = ""
    broken_at: Timestamp = BEGINNING
    silences: float = 0.0
    silent_at: Timestamp = BEGINNING
    answered_at: Timestamp = BEGINNING


@dataclass(frozen=True, slots=True)
class Measured:
    """What the client's own jobs took at one worker with one model, as sums that decay.

    Attributes:
        jobs: How many jobs.
        seconds: What they took, without time in a queue.
        claimed_seconds: What they would have taken by the worker's offers.
        steps: Denoising steps that were charged.
        usual_steps: Denoising steps that a usual worker takes for them.
    """

    operator: Address
    model: Digest
    jobs: float = 0.0
    seconds: float = 0.0
    claimed_seconds: float = 0.0
    steps: float = 0.0
    usual_steps: float = 0.0
    updated_at: Timestamp = BEGINNING


@dataclass(frozen=True, slots=True)
class AnswerLength:
    """How long a model's answers to this client were, at any worker, as sums that decay."""

    model: Digest
    jobs: float = 0.0
    tokens: float = 0.0
    updated_at: Timestamp = BEGINNING


@dataclass(frozen=True, slots=True)
class PaidTariff:
    """The prices of the last job that was paid for a model, in base units.

    They are those of its offer: a million prompt tokens, a million output tokens, a thousand steps.
    """

    model: Digest
    prompt: Amount
    output: Amount
    steps: Amount


@dataclass(frozen=True, slots=True)
class Memories:
    """Everything that the client remembers of workers: by operator, by operator and model digest,
    by model digest. `opened`: operators of open channels that hold money."""

    experience: Mapping[Address, Experience] = field(default_factory=dict)
    measured: Mapping[tuple[Address, Digest], Measured] = field(default_factory=dict)
    tariffs: Mapping[Digest, PaidTariff] = field(default_factory=dict)
    opened: frozenset[Address] = frozenset()
    lengths: Mapping[Digest, AnswerLength] = field(default_factory=dict)
