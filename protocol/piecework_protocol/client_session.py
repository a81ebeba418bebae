"""The client's end of one job's stream, without IO: verify everything, then pay.

`receive` checks each frame. What it returns holds. It raises `ProtocolViolation` with the clause
that the worker broke. After that the session takes nothing more, and the client stops paying
(clause 4.6).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from piecework_protocol.content import CanvasOutput, output_digest
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
from piecework_protocol.objects import Acceptance, Channel, Finish, Job, ModelOffer, Receipt
from piecework_protocol.pricing import Usage, canvases_for, price, usage_of
from piecework_protocol.service import receipt_fault
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Amount, Digest, JobId, Signature, Uint32

# A byte-fallback tokenizer makes at most one token of a byte; the 8 bytes of lengths and the role
# around each message outweigh the turn markers of a chat template, and this covers its preamble.
TEMPLATE_TOKENS = 256


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
    output: CanvasOutput


@dataclass(frozen=True, slots=True)
class CanvasVerified:
    """A canvas whose receipt holds: record it, then pay for it."""

    receipt: Receipt
    digest: Digest
    signature: Signature
    output: CanvasOutput


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


class ClientSession:
    """One job at the client. `receipts` were verified before a resume, oldest first."""

    def __init__(
        self,
        job: Job,
        channel: Channel,
        model: ModelOffer,
        domain: Domain,
        openers: Openers,
        *,
        prompt_bytes: int,
        receipts: tuple[Receipt, ...] = (),
    ) -> None:
        self.id: JobId = job.id(domain)
        self.phase = Phase.SUBMITTED
        self.prompt_tokens: int | None = None
        self._job, self._channel, self._model, self._domain = job, channel, model, domain
        self._openers = openers
        self._max_prompt_tokens = prompt_bytes + TEMPLATE_TOKENS
        self._receipts = list(receipts)

    @property
    def received(self) -> int:
        """Count the verified receipts, as a resumed submission states them."""
        return len(self._receipts)

    @property
    def complete(self) -> bool:
        """Say whether the last verified receipt ends the job."""
        return bool(self._receipts) and self._receipts[-1].finish is not Finish.MORE

    def receive(self, frame: WorkerFrame) -> ClientEvent:
        """Verify one frame of the worker. Return it, or what was sealed in it.

        Raises:
            ProtocolViolation: The frame breaks a clause.
        """
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
        if not 0 < frame.prompt_tokens <= self._max_prompt_tokens:
            raise ProtocolViolation(
                "3.4", f"{frame.prompt_tokens} prompt tokens cannot come from this prompt"
            )
        if frame.available < self.received:
            raise ProtocolViolation("3.5", "the worker has lost canvases that it has signed for")
        self._check_account(frame.account)
        self.phase, self.prompt_tokens = Phase.ACCEPTED, frame.prompt_tokens
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
        return frame

    def _draft(self, frame: Draft) -> DraftSeen:
        _, output = self._open(
            lambda: self._openers.draft(frame.sealed_output, frame.canvas, frame.step)
        )
        return DraftSeen(frame.canvas, frame.step, output)

    def _open(self, opener: Callable[[], bytes]) -> tuple[bytes, CanvasOutput]:
        """Give the opened bytes, which are digested, and what they decode to."""
        try:
            data = opener()
            return data, CanvasOutput.decode(data)
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
        self._check_charge(receipt, len(output.token_ids))
        self._receipts.append(receipt)
        if self.complete:
            self.phase = Phase.COMPLETE
        return CanvasVerified(
            receipt, Digest(self._domain.digest(receipt)), frame.signature, output
        )

    def _previous(self) -> Digest:
        return (
            Digest(self._domain.digest(self._receipts[-1])) if self._receipts else Digest(self.id)
        )

    def _check_charge(self, receipt: Receipt, tokens: int) -> None:
        parameters, model = self._job.parameters, self._model
        fault = receipt_fault(parameters, receipt)
        if fault is not None:
            raise ProtocolViolation(*fault)
        if receipt.units != tokens or tokens > model.canvas_size:
            raise ProtocolViolation("4.4", f"{receipt.units} tokens charged for {tokens} delivered")
        if receipt.finish not in tuple(Finish) or (
            receipt.finish is Finish.MORE and tokens != model.canvas_size
        ):
            raise ProtocolViolation("4.5", "a canvas that is not the job's last is full")
        after = self._usage(receipt)
        if after.output_tokens > parameters.max_tokens:
            raise ProtocolViolation(
                "4.4", f"more than the {parameters.max_tokens} tokens asked for"
            )
        last = self.received + 1 == canvases_for(model, parameters.max_tokens)
        if last and receipt.finish is Finish.MORE:
            raise ProtocolViolation(
                "4.5", "the job's token limit is reached and the receipt says more"
            )
        if usage_of(receipt) != after:
            raise ProtocolViolation("4.4", "the receipt's totals are not those of its job")
        total = price(model, after)
        charged = self._receipts[-1].total_amount if self._receipts else 0
        if receipt.total_amount != total or receipt.amount != total - charged:
            raise ProtocolViolation("4.4", f"charged {receipt.amount}, owed {total - charged}")
        if total > self._job.max_amount:
            raise ProtocolViolation(
                "3.4", f"the job's ceiling of {self._job.max_amount} is exceeded"
            )

    def _usage(self, receipt: Receipt) -> Usage:
        """Add one receipt to what the job had used."""
        last = self._receipts[-1] if self._receipts else None
        before = usage_of(last) if last is not None else Usage(0, 0, 0)
        return Usage(
            self.prompt_tokens or 0,
            before.output_tokens + receipt.units,
            before.denoising_steps + receipt.steps,
        )

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
