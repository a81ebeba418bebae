"""What the two ends of a job's stream say to each other, as plain values. `wire` encodes them."""

from __future__ import annotations

from dataclasses import dataclass

from piecework_protocol.errors import Reason
from piecework_protocol.objects import (
    AccountRequest,
    Channel,
    CloseChannel,
    FundChannel,
    Job,
    Receipt,
    Voucher,
)
from piecework_protocol.types import (
    Amount,
    Bytes32,
    Digest,
    JobId,
    PayerSignature,
    Signature,
    Timestamp,
)


@dataclass(frozen=True, slots=True)
class FundingAuthorization:
    """The payer's authorization to open or top up the channel out of its pooled balance."""

    authorization: FundChannel
    signature: PayerSignature


@dataclass(frozen=True, slots=True)
class OpeningAuthorization:
    """The payer's EIP-3009 authorization: `amount` goes into the channel, `fee` to the receiver.

    Its value is `amount + fee`. Its nonce binds the channel, what was funded before, and the fee,
    so that it pays into one channel once.
    """

    amount: Amount
    fee: Amount
    valid_after: Timestamp
    valid_before: Timestamp
    signature: PayerSignature


Funding = FundingAuthorization | OpeningAuthorization
"""How a submission puts money behind itself, for the worker to submit."""


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """The first frame: a new job, or one to resume after `received` receipts (clause 3.5).

    `last_receipt` is the digest of receipt `received - 1`, so that a worker whose journal was
    rolled back notices.
    """

    job: Job
    signature: Signature
    channel: Channel
    sealed_content: bytes
    received: int = 0
    last_receipt: Digest | None = None
    funding: Funding | None = None
    drafts: bool = False


@dataclass(frozen=True, slots=True)
class LeafRef:
    """Names a receipt that a voucher adds to the accumulator."""

    job: JobId
    canvas: int


@dataclass(frozen=True, slots=True)
class PayVoucher:
    """A voucher, and the receipts that it adds after the first `base_count` (clause 5.3)."""

    voucher: Voucher
    signature: Signature
    base_count: int
    leaves: tuple[LeafRef, ...]


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Stop at the next denoising step. The work done until then is owed (clause 3.8)."""


ClientFrame = SubmitJob | PayVoucher | CancelJob


@dataclass(frozen=True, slots=True)
class Account:
    """The worker's record of the channel: the payer's latest voucher, the accumulator's peaks."""

    voucher: Voucher
    signature: Signature
    peaks: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The worker has journaled the job and will run it. It sends the `available` canvases again."""

    job: JobId
    prompt_tokens: int
    accepted_at: Timestamp
    signature: Signature
    available: int
    account: Account | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A canvas as it is being denoised: sealed, unsigned, and it may be left out."""

    job: JobId
    canvas: int
    step: int
    sealed_output: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the job is. It comes at least four times a second, so silence means death.

    `step` steps of canvas `canvas` are done, and `prompt_tokens` are prefilled. A job in the queue
    has its place in `queue_position`, from 1. A paused one has the time at which it goes on.
    """

    job: JobId
    canvas: int
    step: int
    prompt_tokens: int
    queue_position: int = 0
    paused_until: int = 0


@dataclass(frozen=True, slots=True)
class CanvasDelivered:
    """A finished canvas with its signed receipt, and the leaves under its trace root (7.2)."""

    receipt: Receipt
    signature: Signature
    sealed_output: bytes
    leaves: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class VoucherAccepted:
    """The worker has journaled the voucher with this count."""

    count: int


@dataclass(frozen=True, slots=True)
class JobEnded:
    """No more canvases come.

    `reason` is None when the job ran to its end, or when the client cancelled it.
    """

    job: JobId
    canvases: int
    reason: Reason | None = None
    message: str = ""


WorkerFrame = Accepted | Draft | CanvasDelivered | VoucherAccepted | JobEnded | Progress


@dataclass(frozen=True, slots=True)
class CloseChannelRequest:
    """The authorizer asks to close a channel together (clause 6.5)."""

    channel: Channel
    final: CloseChannel
    signature: Signature


@dataclass(frozen=True, slots=True)
class CloseChannelResponse:
    """The operator agrees. `transaction` is the hash, if the worker has sent it itself."""

    operator_signature: Signature
    transaction: Digest | None


@dataclass(frozen=True, slots=True)
class GetAccountRequest:
    """The authorizer asks for the worker's record of a channel (clause 5.7)."""

    request: AccountRequest
    signature: Signature


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt with its operator's signature."""

    receipt: Receipt
    signature: Signature


@dataclass(frozen=True, slots=True)
class ShownVoucher:
    """A client's voucher, and the accumulator before the receipts that are shown with it.

    `peaks` are those of its first `base_count` receipts.
    """

    voucher: Voucher
    signature: Signature
    base_count: int
    peaks: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True)
class ShowReceiptsRequest:
    """A client shows a worker the receipts that its journal lost (clause 5.9)."""

    channel: Channel
    voucher: ShownVoucher
    receipts: tuple[SignedReceipt, ...]
