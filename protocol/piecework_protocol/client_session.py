"""The client's end of one job's stream, without IO: verify everything, then pay.

`receive` checks each frame. What it returns holds. It raises `ProtocolViolation` with the clause
that the worker broke. After that the session takes nothing more, and the client stops paying
(clause 4.6).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from piecework_protocol.charges import NOTHING_USED, charge_fault
from piecework_protocol.content import output_digest
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput, ProtocolViolation
from piecework_protocol.frames import (
    Accepted,
    Account,
    CanvasDelivered,
    Draft,
    JobEnded,
    Progress,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.kinds import KINDS, Output
from piecework_protocol.limits import MAX_CLOCK_SKEW_S, MAX_STEPS_PAST_PROGRESS
from piecework_protocol.objects import Acceptance, Channel, Finish, Job, ModelOffer, Receipt
from piecework_protocol.outlines import Outline
from piecework_protocol.pricing import usage_of
from piecework_protocol.service import leaves_fault
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Amount, Digest, JobId, Signature, Timestamp, Uint32, keccak256

NEVER = Timestamp(0)


class Phase(enum.Enum):
    """Where the client is with its job."""

    SUBMITTED = "submitted"
    ACCEPTED = "accepted"
    COMPLETE = "complete"
    ENDED = "ended"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class DraftSeen:
    """The canvas as it is being denoised. Unsigned and worth nothing."""

    canvas: int
    step: int
    output: Output


@dataclass(frozen=True, slots=True)
class CanvasVerified:
    """A canvas whose receipt holds: record it, then pay for it."""

    receipt: Receipt
    digest: Digest
    signature: Signature
    output: Output
    leaves: tuple[Digest, ...] = ()


ClientEvent = Accepted | DraftSeen | CanvasVerified | VoucherAccepted | JobEnded | Progress
"""A verified frame, or what was sealed in one."""


@dataclass(frozen=True, slots=True)
class Openers:
    """How sealed bytes are opened.

    They are plain functions, so that the session needs no keys. `canvas` takes the sealed bytes and
    the canvas, `draft` the step as well. Both raise `MalformedInput`.
    """

    canvas: Callable[[bytes, int], bytes]
    draft: Callable[[bytes, int, int], bytes]


@dataclass(slots=True)
class _Seen:
    """What the worker has shown of the canvas in progress: steps, and drafts by their hashes."""

    steps: int = 0
    drafts: set[bytes] = field(default_factory=set)


class ClientSession:
    """One job at the client. `receipts` were verified before a resume, oldest first.

    `outline` is that of the job's content.

    `resumed` says that another stream of the job broke. What the worker did meanwhile was not seen,
    so the canvas in progress is not held to drafts and progress (clause 3.8). It is one canvas.
    """

    def __init__(
        self,
        job: Job,
        channel: Channel,
        model: ModelOffer,
        domain: Domain,
        openers: Openers,
        *,
        outline: Outline,
        receipts: tuple[Receipt, ...] = (),
        resumed: bool = False,
    ) -> None:
        self.id: JobId = job.id(domain)
        self.phase = Phase.SUBMITTED
        self.prompt_tokens: int | None = None
        self._job, self._channel, self._model, self._domain = job, channel, model, domain
        self._openers = openers
        self._outline, self._rules = outline, KINDS[job.kind]
        self._receipts = list(receipts)
        self._resumed, self._left = resumed, False
        self._available = 0
        self._seen = _Seen()

    @property
    def received(self) -> int:
        """Count the verified receipts, as a resumed submission states them."""
        return len(self._receipts)

    @property
    def last_receipt(self) -> Digest | None:
        """Give the digest of the last verified receipt, as a resumed submission states it."""
        return Digest(self._domain.digest(self._receipts[-1])) if self._receipts else None

    @property
    def complete(self) -> bool:
        """Say whether the last verified receipt ends the job."""
        return bool(self._receipts) and self._receipts[-1].finish is not Finish.MORE

    @property
    def cancelled(self) -> bool:
        """Say whether the last verified receipt is that of a canvas that was not finished."""
        return bool(self._receipts) and self._receipts[-1].finish is Finish.CANCELLED

    def leave(self) -> None:
        """Note that the client cancels. From now on a cancelled receipt is in order."""
        self._left = True

    def receive(self, frame: WorkerFrame, now: Timestamp = NEVER) -> ClientEvent:
        """Verify one frame of the worker. Return it, or what was sealed in it.

        From the job's deadline on, by `now`, the worker may end the job.

        Raises:
            ProtocolViolation: The frame breaks a clause.
        """
        if now + MAX_CLOCK_SKEW_S >= self._job.deadline:
            self._left = True
        try:
            return self._dispatch(frame)
        except ProtocolViolation:
            self.phase = Phase.BROKEN
            raise

    def _dispatch(self, frame: WorkerFrame) -> ClientEvent:
        if self.phase in (Phase.BROKEN, Phase.ENDED) and not isinstance(frame, VoucherAccepted):
            raise ProtocolViolation("2.4", "a frame after the end of the job")
        if isinstance(frame, VoucherAccepted):
            return frame
        if isinstance(frame, Accepted):
            return self._accepted(frame)
        if self.phase is Phase.SUBMITTED:
            raise ProtocolViolation("2.4", "a frame before the job was accepted")
        if isinstance(frame, Draft):
            return self._draft(frame)
        if isinstance(frame, CanvasDelivered):
            return self._canvas(frame)
        if isinstance(frame, Progress):
            return self._progress(frame)
        return self._ended(frame)

    def _accepted(self, frame: Accepted) -> Accepted:
        if self.phase is not Phase.SUBMITTED or frame.job != self.id:
            raise ProtocolViolation("2.4", "an acceptance that answers no submission")
        promise = Acceptance(self.id, Uint32(frame.prompt_tokens), frame.accepted_at)
        if not signed_by(self._domain, promise, frame.signature, self._channel.operator):
            raise ProtocolViolation("3.5", "the acceptance is not signed by the channel's operator")
        if not 0 < frame.prompt_tokens <= self._outline.prompt_tokens:
            raise ProtocolViolation(
                "3.4", f"{frame.prompt_tokens} prompt tokens cannot come from this prompt"
            )
        if frame.available < self.received:
            raise ProtocolViolation("3.5", "the worker has lost canvases that it has signed for")
        self._check_account(frame.account)
        self.phase, self.prompt_tokens = Phase.ACCEPTED, frame.prompt_tokens
        self._available = frame.available
        return frame

    def _check_account(self, account: Account | None) -> None:
        if account is None:
            return
        voucher = account.voucher
        if voucher.channel != self._job.channel:
            raise ProtocolViolation("5.7", "the worker shows a voucher of another channel")
        if not signed_by(self._domain, voucher, account.signature, self._channel.authorizer):
            raise ProtocolViolation("5.7", "the worker shows a voucher that we never signed")

    def _progress(self, frame: Progress) -> Progress:
        if frame.job != self.id:
            raise ProtocolViolation("2.4", "progress of another job")
        if frame.canvas == self.received:
            self._seen.steps = max(self._seen.steps, frame.step)
        return frame

    def _draft(self, frame: Draft) -> DraftSeen:
        data, output = self._open(
            lambda: self._openers.draft(frame.sealed_output, frame.canvas, frame.step)
        )
        if frame.canvas == self.received:
            self._seen.drafts.add(keccak256(data))
        return DraftSeen(frame.canvas, frame.step, output)

    def _open(self, opener: Callable[[], bytes]) -> tuple[bytes, Output]:
        """Give the opened bytes, which are digested, and what they decode to."""
        try:
            data = opener()
            return data, self._rules.decode_output(data)
        except MalformedInput as error:
            raise ProtocolViolation("8.2", str(error)) from None

    def _canvas(self, frame: CanvasDelivered) -> CanvasVerified:
        receipt = frame.receipt
        if self.complete:
            raise ProtocolViolation("4.5", "a canvas after the job's last")
        if receipt.job != self.id or receipt.canvas != self.received:
            raise ProtocolViolation(
                "4.1", f"expected canvas {self.received}, got canvas {receipt.canvas}"
            )
        if not signed_by(self._domain, receipt, frame.signature, self._channel.operator):
            raise ProtocolViolation("4.3", "the receipt is not signed by the channel's operator")
        if receipt.previous != self._previous():
            raise ProtocolViolation("4.1", "the receipt does not follow the one before it")
        data, output = self._open(lambda: self._openers.canvas(frame.sealed_output, receipt.canvas))
        if receipt.output_digest != output_digest(self.id, receipt.canvas, data):
            raise ProtocolViolation("4.2", "the output is not the one that the receipt commits to")
        self._check_charge(receipt, output)
        if receipt.finish is Finish.CANCELLED:
            self._check_cancelled(receipt, data)
        fault = leaves_fault(receipt, frame.leaves)
        if fault is not None:
            raise ProtocolViolation(*fault)
        self._receipts.append(receipt)
        self._seen = _Seen()
        if self.complete:
            self.phase = Phase.COMPLETE
        return CanvasVerified(
            receipt, Digest(self._domain.digest(receipt)), frame.signature, output, frame.leaves
        )

    def _previous(self) -> Digest:
        return (
            Digest(self._domain.digest(self._receipts[-1])) if self._receipts else Digest(self.id)
        )

    def _check_charge(self, receipt: Receipt, output: Output) -> None:
        """Hold what a receipt charges to the output, to its own totals, and to the price."""
        model, tokens = self._model, output.units
        if receipt.units != tokens or tokens > model.canvas_size:
            raise ProtocolViolation("4.4", f"{receipt.units} tokens charged for {tokens} delivered")
        if receipt.finish is not Finish.CANCELLED:
            fault = output.fault(self._outline, receipt.canvas, model.canvas_size, receipt.finish)
            if fault is not None:
                raise ProtocolViolation("4.5", fault)
        last = self._receipts[-1] if self._receipts else None
        broken = charge_fault(self._job, model, last, receipt, self.prompt_tokens or 0)
        if broken is not None:
            raise ProtocolViolation(*broken)

    def _check_cancelled(self, receipt: Receipt, data: bytes) -> None:
        """Hold the receipt of an unfinished canvas to what this client has seen of it."""
        if not (self._left or self._resumed):
            raise ProtocolViolation("3.8", "the worker charges for a canvas that it gave up")
        before = usage_of(self._receipts[-1]) if self._receipts else NOTHING_USED
        if usage_of(receipt) == before:
            raise ProtocolViolation("3.8", "a cancelled receipt for nothing")
        if self._resumed and receipt.canvas <= self._available:
            return  # its beginning was not seen here
        seen = self._seen
        if receipt.steps > seen.steps + MAX_STEPS_PAST_PROGRESS:
            raise ProtocolViolation(
                "3.8", f"{receipt.steps} steps charged, the last progress said {seen.steps}"
            )
        if receipt.units and keccak256(data) not in seen.drafts:
            raise ProtocolViolation("3.8", "tokens charged of a draft that was never shown")

    def _ended(self, frame: JobEnded) -> JobEnded:
        if frame.job != self.id or frame.canvases != self.received:
            raise ProtocolViolation(
                "4.1", f"the worker counts {frame.canvases} canvases, {self.received} came"
            )
        self.phase = Phase.ENDED
        return frame


def paid_amount(receipts: tuple[Receipt, ...]) -> Amount:
    """Add up the receipts' amounts, in base units."""
    return Amount(sum(r.amount for r in receipts))
