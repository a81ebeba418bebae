"""The worker's end of one job's stream, without IO.

Every method returns an `Outcome` in three parts. The shell carries them out in this order: it makes
the `records` durable, sends the `frames`, and passes the `commands` to the engine. Frames are
signed as they are sent. So nothing has an effect before it is recorded (clause 9.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason, invariant
from piecework_protocol.frames import (
    Accepted,
    Account,
    CanvasDelivered,
    Draft,
    JobEnded,
    LeafRef,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.limits import MAX_CANVASES_AHEAD
from piecework_protocol.objects import Acceptance, Channel, Finish, Job, ModelOffer, Receipt
from piecework_protocol.pricing import Usage, price, usage_of
from piecework_protocol.service import receipt_fault
from piecework_protocol.states import ENDED_STATES, JobEvent, JobState, advance_job
from piecework_protocol.types import Amount, Digest, JobId, Signature, Timestamp, Uint32


@dataclass(frozen=True, slots=True)
class AcceptedJob:
    """A job that admission has let in, with the terms that it runs under."""

    id: JobId
    job: Job
    channel: Channel
    model: ModelOffer
    prompt_tokens: int
    accepted_at: Timestamp


@dataclass(frozen=True, slots=True)
class StoredCanvas:
    """A finished canvas: a record to journal before it is delivered, and what the journal holds.

    The output is sealed to the client. `resume_secret` holds the token ids, sealed to the worker
    itself. It is empty for the last canvas of a job.
    """

    receipt: Receipt
    sealed_output: bytes
    resume_secret: bytes


@dataclass(frozen=True, slots=True)
class CanvasResult:
    """A finished canvas as the engine reports it, sealed by the shell.

    `resume_secret` are the token ids sealed to the worker itself; journals hold no text.
    """

    canvas: int
    output_digest: Digest
    trace_root: Digest
    steps: int
    units: int
    finish: Finish
    sealed_output: bytes
    resume_secret: bytes


@dataclass(frozen=True, slots=True)
class StateRecord:
    """The job moved to `state`."""

    job: JobId
    state: JobState
    reason: Reason | None = None


Record = StateRecord | StoredCanvas


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Run the job from canvas `committed`, pausing before canvas `canvas_limit`."""

    committed: int
    canvas_limit: int


@dataclass(frozen=True, slots=True)
class AllowCanvases:
    """Let the sequence run up to canvas `canvas_limit`, which it may not start."""

    canvas_limit: int


@dataclass(frozen=True, slots=True)
class StopEngine:
    """Free the sequence at the next denoising step."""


EngineCommand = StartEngine | AllowCanvases | StopEngine
Sign = Callable[[TypedData], Signature]


@dataclass(frozen=True, slots=True)
class UnsignedFrame:
    """A frame that needs the operator's signature over `message`, applied after the records are
    durable."""

    message: TypedData
    build: Callable[[Signature], WorkerFrame]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to do, in this order: records, frames, commands."""

    records: tuple[Record, ...] = ()
    unsent: tuple[WorkerFrame | UnsignedFrame, ...] = ()
    commands: tuple[EngineCommand, ...] = ()

    def frames(self, sign: Sign) -> tuple[WorkerFrame, ...]:
        """Make the frames to send. Call this only after `records` are durable."""
        return tuple(
            f.build(sign(f.message)) if isinstance(f, UnsignedFrame) else f for f in self.unsent
        )


class WorkerSession:
    """One job at the worker: its state, its canvases, and what may happen next."""

    def __init__(
        self,
        accepted: AcceptedJob,
        domain: Domain,
        *,
        state: JobState = JobState.NEW,
        stored: Sequence[StoredCanvas] = (),
    ) -> None:
        self.accepted = accepted
        self.state = state
        self._domain = domain
        self._stored = list(stored)

    @property
    def canvases(self) -> int:
        """Count the finished canvases."""
        return len(self._stored)

    @property
    def charged(self) -> Amount:
        """Give the price of all receipts, in base units."""
        return self._stored[-1].receipt.total_amount if self._stored else Amount(0)

    def usage(self) -> Usage:
        """Give what the job has used so far."""
        if not self._stored:
            return Usage(self.accepted.prompt_tokens, 0, 0)
        return usage_of(self._stored[-1].receipt)

    def is_known(self, received: int, last: Digest | None) -> bool:
        """Say whether `last` is the digest of receipt `received - 1`. A client may leave it out."""
        if last is None:
            return True
        if not 1 <= received <= self.canvases:
            return False
        return bytes(last) == self._domain.digest(self._stored[received - 1].receipt)

    def open(self, received: int, ledger: WorkerLedger) -> Outcome:
        """Start the job for a client, or go on for one that has `received` receipts."""
        records: list[Record] = []
        if self.state is JobState.NEW:
            records.append(self._move(JobEvent.ACCEPT))
        frames: list[WorkerFrame | UnsignedFrame] = [self._acceptance(ledger.account())]
        frames += [self._delivery(s) for s in self._stored[received:]]
        if self.state in ENDED_STATES:
            return Outcome(tuple(records), (*frames, self._ended()))
        records.append(self._move(JobEvent.START))
        start = StartEngine(self.canvases, self.canvas_limit(ledger))
        return Outcome(tuple(records), tuple(frames), (start,))

    def canvas_limit(self, ledger: WorkerLedger) -> int:
        """Give the first canvas that may not start before more is paid (clause 3.7)."""
        paid = self.canvases - ledger.unpaid_canvases(self.accepted.id)
        return paid + MAX_CANVASES_AHEAD

    def canvas_finished(
        self, result: CanvasResult, ledger: WorkerLedger
    ) -> tuple[Outcome, WorkerLedger]:
        """The engine finished a canvas: record it, then deliver it with its receipt."""
        receipt = self._receipt(result)
        stored = StoredCanvas(receipt, result.sealed_output, result.resume_secret)
        last = result.finish is not Finish.MORE
        self._stored.append(stored)
        book = ledger.issue(
            LeafRef(self.accepted.id, result.canvas),
            Digest(self._domain.digest(receipt)),
            receipt.amount,
        )
        moved = self._move(JobEvent.LAST_CANVAS if last else JobEvent.CANVAS)
        frames: tuple[WorkerFrame | UnsignedFrame, ...] = (self._delivery(stored),)
        if last:
            frames += (self._ended(),)
        return Outcome((stored, moved), frames), book

    def engine_restarted(self, ledger: WorkerLedger) -> Outcome:
        """Start a running job again behind its last recorded canvas, after the engine was lost."""
        if self.state is not JobState.RUNNING:
            return Outcome()
        return Outcome(commands=(StartEngine(self.canvases, self.canvas_limit(ledger)),))

    def draft(self, canvas: int, step: int, sealed_output: bytes) -> Outcome:
        """Show a canvas as it is being denoised."""
        return Outcome(unsent=(Draft(self.accepted.id, canvas, step, sealed_output),))

    def paid(self, ledger: WorkerLedger) -> Outcome:
        """Use a voucher for canvases of this job, which `ledger` has recorded."""
        settled = self.state is JobState.DELIVERED and not ledger.unpaid_canvases(self.accepted.id)
        record = self._move(JobEvent.PAY_ALL if settled else JobEvent.PAY)
        running = self.state is JobState.RUNNING
        commands = (AllowCanvases(self.canvas_limit(ledger)),) if running else ()
        return Outcome((record,), (), commands)

    def cancel(self) -> Outcome:
        """End the job for its client. Delivered canvases stay owed (clause 3.8)."""
        if self.state in ENDED_STATES:
            return Outcome()
        return Outcome((self._move(JobEvent.CANCEL),), (self._ended(),), (StopEngine(),))

    def disconnected(self) -> Outcome:
        """Free the GPU after the stream broke, and keep the job for the client's return."""
        running = self.state is JobState.RUNNING
        record = self._move(JobEvent.DISCONNECT)
        return Outcome((record,), (), (StopEngine(),) if running else ())

    def failed(self, reason: Reason, message: str) -> Outcome:
        """End a job that cannot go on. Its delivered canvases stay owed, and nothing else."""
        if self.state in ENDED_STATES:
            return Outcome()
        running = self.state is JobState.RUNNING
        record = self._move(JobEvent.FAIL, reason)
        ended = JobEnded(self.accepted.id, self.canvases, reason, message)
        return Outcome((record,), (ended,), (StopEngine(),) if running else ())

    def _move(self, event: JobEvent, reason: Reason | None = None) -> StateRecord:
        self.state = advance_job(self.state, event)
        return StateRecord(self.accepted.id, self.state, reason)

    def _receipt(self, result: CanvasResult) -> Receipt:
        invariant(result.canvas == self.canvases, "canvases are finished in order")
        before = self.usage()
        after = Usage(
            before.prompt_tokens,
            before.output_tokens + result.units,
            before.denoising_steps + result.steps,
        )
        model = self.accepted.model
        previous = (
            self._domain.digest(self._stored[-1].receipt) if self._stored else self.accepted.id
        )
        receipt = Receipt(
            job=self.accepted.id,
            canvas=Uint32(result.canvas),
            output_digest=result.output_digest,
            trace_root=result.trace_root,
            steps=Uint32(result.steps),
            units=Uint32(result.units),
            amount=Amount(price(model, after) - self.charged),
            finish=result.finish,
            total_prompt_tokens=Uint32(after.prompt_tokens),
            total_units=Uint32(after.output_tokens),
            total_steps=Uint32(after.denoising_steps),
            total_amount=price(model, after),
            previous=Digest(previous),
        )
        fault = receipt_fault(self.accepted.job.parameters, receipt)
        invariant(fault is None, f"a receipt of ours keeps to its job's class of service: {fault}")
        return receipt

    def _acceptance(self, account: Account | None) -> UnsignedFrame:
        terms, available = self.accepted, self.canvases
        promise = Acceptance(terms.id, Uint32(terms.prompt_tokens), terms.accepted_at)
        return UnsignedFrame(
            promise,
            lambda signature: Accepted(
                terms.id, terms.prompt_tokens, terms.accepted_at, signature, available, account
            ),
        )

    def _delivery(self, stored: StoredCanvas) -> UnsignedFrame:
        return UnsignedFrame(
            stored.receipt,
            lambda signature: CanvasDelivered(stored.receipt, signature, stored.sealed_output),
        )

    def _ended(self) -> JobEnded:
        return JobEnded(self.accepted.id, self.canvases)


def acknowledgement(ledger: WorkerLedger) -> VoucherAccepted:
    """Make the frame that confirms the latest recorded voucher."""
    return VoucherAccepted(ledger.accumulator.count)
