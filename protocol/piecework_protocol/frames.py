"""What the two ends of a job's stream say to each other, as plain values. `wire` encodes them."""

from __future__ import annotations

from dataclasses import dataclass

from piecework_protocol.errors import Reason
from piecework_protocol.objects import Channel, FundChannel, Job, Receipt, Voucher
from piecework_protocol.types import Bytes32, JobId, Signature


@dataclass(frozen=True, slots=True)
class Funding:
    """The payer's authorization to open or top up the channel, for the worker to submit."""

    authorization: FundChannel
    signature: Signature


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """The first frame: a new job, or one to resume after `received` receipts (clause 3.5)."""

    job: Job
    signature: Signature
    channel: Channel
    sealed_prompt: bytes
    received: int = 0
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
    """Stop at the next denoising step. What was delivered stays owed."""


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
    signature: Signature
    available: int
    account: Account | None


@dataclass(frozen=True, slots=True)
class Draft:
    """A canvas as it is being denoised: sealed, worth nothing, and it may be left out."""

    job: JobId
    canvas: int
    step: int
    sealed_output: bytes


@dataclass(frozen=True, slots=True)
class CanvasDelivered:
    """A finished canvas with its signed receipt."""

    receipt: Receipt
    signature: Signature
    sealed_output: bytes


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


WorkerFrame = Accepted | Draft | CanvasDelivered | VoucherAccepted | JobEnded
