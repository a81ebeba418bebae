"""The worker's end of one job's stream, without IO.

Every method returns an `Outcome` in three parts. The shell carries them out in this order: it makes
the `records` durable, sends the `frames`, and passes the `commands` to the engine. Frames are
signed as they are sent. So nothing has an effect before it is recorded (clause 9.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
from piecework_protocol.service import count_fault, receipt_fault
from piecework_protocol.states import ENDED_STATES, JobEvent, JobState, advance_job
from piecework_protocol.trace import trace_root
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
    itself. It is empty for the last canvas of a job. Of an opening it is the opened step's record.
    `leaves` are those under the trace root.
    """

    receipt: Receipt
    sealed_output: bytes
    resume_secret: bytes
    leaves: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class CanvasResult:
    """A finished canvas as the engine reports it, sealed by the shell.

    leaves: the canvas leaf and the step leaves, or none at best effort. `resume_secret` are the
    token ids sealed to the worker itself; journals hold no text.
    """

    canvas: int
    output_digest: Digest
    leaves: tuple[Digest, ...]
    steps: int
    units: int
    finish: Finish
    sealed_output: bytes
    resume_secret: bytes


@dataclass(frozen=True, slots=True)
class StoppedEngine:
    """What the engine had done when it stopped a sequence, sealed by the shell.

    prompt_tokens: prefilled so far. steps: taken of `canvas`. leaves: as in `CanvasResult`, none
    without steps. The output is the last draft of that canvas that was shown, of `units` tokens, or
    empty.
    """

    canvas: int
    prompt_tokens: int
    steps: int
    leaves: tuple[Digest, ...]
    output_digest: Digest
    units: int
    sealed_output: bytes


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
    """End the sequence. The engine answers with what it had done (`StoppedEngine`).

    With `finish_canvas` a canvas that has begun goes on to its end first. Without it the sequence
    ends at the next denoising step.
    """

    finish_canvas: bool


EngineCommand = StartEngine | AllowCanvases | StopEngine


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

    @property
    def to_sign(self) -> tuple[TypedData, ...]:
        """Give what the operator has to sign. Sign it only after `records` are durable."""
        return tuple(f.message for f in self.unsent if isinstance(f, UnsignedFrame))

    def frames(self, signatures: Iterable[Signature] = ()) -> tuple[WorkerFrame, ...]:
        """Make the frames to send. signatures: over `to_sign`, in its order."""
        each = iter(signatures)
        return tuple(
            f.build(next(each)) if isinstance(f, UnsignedFrame) else f for f in self.unsent
        )


class WorkerSession:
    """One job at the worker: its state, its canvases, and what may happen next."""

    def __init__(
        self,
        accepted: AcceptedJob,
        domain: Domain,
        *,
        state: JobState = JobState.NEW,
        reason: Reason | None = None,
        stored: Sequence[StoredCanvas] = (),
    ) -> None:
        self.accepted = accepted
        self.state, self._reason = state, reason
        self._in_engine = False
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
        if self.state is JobState.STOPPING:
            return Outcome(tuple(records), tuple(frames))
        records.append(self._move(JobEvent.START))
        limit = self.canvas_limit(ledger)
        go_on = AllowCanvases(limit) if self._in_engine else self._start(limit)
        return Outcome(tuple(records), tuple(frames), (go_on,))

    def _start(self, limit: int) -> StartEngine:
        self._in_engine = True
        return StartEngine(self.canvases, limit)

    def canvas_limit(self, ledger: WorkerLedger) -> int:
        """Give the first canvas that may not start before more is paid (clause 3.7)."""
        paid = self.canvases - ledger.unpaid_canvases(self.accepted.id)
        return paid + MAX_CANVASES_AHEAD

    def canvas_finished(
        self, result: CanvasResult, ledger: WorkerLedger
    ) -> tuple[Outcome, WorkerLedger]:
        """The engine finished a canvas: record it, then deliver it with its receipt.

        A canvas that had begun is owed, also while the client is away or has left.
        """
        stored, book = self._store(self._receipt(result), result, ledger)
        last = result.finish is not Finish.MORE
        if last:
            self._in_engine = False
        moved = self._move(JobEvent.LAST_CANVAS if last else JobEvent.CANVAS)
        frames: tuple[WorkerFrame | UnsignedFrame, ...] = (self._delivery(stored),)
        if last:
            frames += (self._ended(),)
        return Outcome((stored, moved), frames), book

    def stopped(self, work: StoppedEngine, ledger: WorkerLedger) -> tuple[Outcome, WorkerLedger]:
        """The engine has ended the sequence. What it had begun is owed (clause 3.8)."""
        self._in_engine = False
        if self.state is JobState.RUNNING:
            # The client came back while the engine was ending a sequence that had nothing to do.
            return Outcome(commands=(self._start(self.canvas_limit(ledger)),)), ledger
        if self.state is not JobState.STOPPING:
            return Outcome(), ledger
        receipt = self._cancelled(work)
        if receipt is None:
            return Outcome((self._move(JobEvent.STOPPED),), (self._ended(),)), ledger
        stored, book = self._store(receipt, work, ledger)
        moved = self._move(JobEvent.STOPPED)
        return Outcome((stored, moved), (self._delivery(stored), self._ended())), book

    def engine_lost(self) -> Outcome:
        """The engine is gone. What it had begun is lost, and never charged."""
        self._in_engine = False
        if self.state is not JobState.STOPPING:
            return Outcome()
        return Outcome((self._move(JobEvent.STOPPED),), (self._ended(),))

    def engine_restarted(self, ledger: WorkerLedger) -> Outcome:
        """Start a running job again behind its last recorded canvas, after the engine was lost."""
        if self.state is not JobState.RUNNING:
            return Outcome()
        return Outcome(commands=(self._start(self.canvas_limit(ledger)),))

    def recovered(self) -> Outcome:
        """Take the job up in a new process. It waits for its client, unless that had left."""
        if self.state is JobState.STOPPING:
            return Outcome((self._move(JobEvent.STOPPED),))
        if self.state in (JobState.ACCEPTED, JobState.RUNNING):
            return Outcome((self._move(JobEvent.DISCONNECT),))
        return Outcome()

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

    def cancel(self, reason: Reason | None = None, *, paused: bool = False) -> Outcome:
        """End the job: its client leaves, or stays away, or its deadline has passed.

        The work done until then is owed (clause 3.8). `reason` is None when the client asked. Of a
        job that the worker has `paused`, the canvas in progress is not charged (clause 3.12).
        """
        if self.state in ENDED_STATES or self.state is JobState.STOPPING:
            return Outcome()
        self._reason = reason
        leaving = self._move(JobEvent.CANCEL, reason)
        stop = (StopEngine(finish_canvas=False),) if self._in_engine else ()
        if stop and not paused:
            return Outcome((leaving,), (), stop)
        self._in_engine = False
        return Outcome((leaving, self._move(JobEvent.STOPPED)), (self._ended(),), stop)

    def disconnected(self) -> Outcome:
        """Let the begun canvas go on to its end after the stream broke, and start no further one.

        The job waits for its client (clause 3.8).
        """
        running = self.state is JobState.RUNNING and self._in_engine
        record = self._move(JobEvent.DISCONNECT)
        return Outcome((record,), (), (StopEngine(finish_canvas=True),) if running else ())

    def failed(self, reason: Reason, message: str) -> Outcome:
        """End a job that cannot go on. Its delivered canvases stay owed, and nothing else."""
        if self.state in ENDED_STATES:
            return Outcome()
        if self.state is JobState.STOPPING:
            return self.engine_lost()
        running, self._in_engine, self._reason = self._in_engine, False, reason
        record = self._move(JobEvent.FAIL, reason)
        ended = JobEnded(self.accepted.id, self.canvases, reason, message)
        return Outcome((record,), (ended,), (StopEngine(finish_canvas=False),) if running else ())

    def _move(self, event: JobEvent, reason: Reason | None = None) -> StateRecord:
        self.state = advance_job(self.state, event)
        return StateRecord(self.accepted.id, self.state, reason)

    def _store(
        self, receipt: Receipt, work: CanvasResult | StoppedEngine, ledger: WorkerLedger
    ) -> tuple[StoredCanvas, WorkerLedger]:
        """Make the record of a receipt, and the channel's book after it."""
        secret = work.resume_secret if isinstance(work, CanvasResult) else b""
        stored = StoredCanvas(receipt, work.sealed_output, secret, work.leaves)
        self._stored.append(stored)
        digest = Digest(self._domain.digest(receipt))
        ref = LeafRef(self.accepted.id, receipt.canvas)
        return stored, ledger.issue(ref, digest, receipt.amount)

    def _receipt(self, result: CanvasResult) -> Receipt:
        invariant(result.canvas == self.canvases, "canvases are finished in order")
        before = self.usage()
        after = Usage(
            before.prompt_tokens,
            before.output_tokens + result.units,
            before.denoising_steps + result.steps,
        )
        return self._sign_for(result, after, result.finish)

    def _cancelled(self, work: StoppedEngine) -> Receipt | None:
        """Make the receipt of a canvas that was not finished, or None when nothing was begun."""
        invariant(work.prompt_tokens <= self.accepted.prompt_tokens, "no prompt grows")
        before = self.usage() if self._stored else Usage(0, 0, 0)
        after = Usage(
            max(before.prompt_tokens, work.prompt_tokens),
            before.output_tokens + work.units,
            before.denoising_steps + work.steps,
        )
        if after == before:
            return None
        invariant(work.canvas == self.canvases, "the canvas after the last is the one in progress")
        return self._sign_for(work, after, Finish.CANCELLED)

    def _sign_for(
        self, work: CanvasResult | StoppedEngine, after: Usage, finish: Finish
    ) -> Receipt:
        """Make the receipt of a piece of work. `after` is what the job has used then."""
        total = price(self.accepted.model, after)
        last = self._stored[-1].receipt if self._stored else None
        receipt = Receipt(
            job=self.accepted.id,
            canvas=Uint32(self.canvases),
            output_digest=work.output_digest,
            trace_root=trace_root(work.leaves),
            steps=Uint32(work.steps),
            units=Uint32(work.units),
            amount=Amount(total - self.charged),
            finish=finish,
            total_prompt_tokens=Uint32(after.prompt_tokens),
            total_units=Uint32(after.output_tokens),
            total_steps=Uint32(after.denoising_steps),
            total_amount=total,
            previous=Digest(self._domain.digest(last) if last else self.accepted.id),
        )
        fault = receipt_fault(self.accepted.job.parameters, receipt)
        fault = fault or count_fault(receipt, work.leaves)
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
            lambda signature: CanvasDelivered(
                stored.receipt, signature, stored.sealed_output, stored.leaves
            ),
        )

    def _ended(self) -> JobEnded:
        return JobEnded(self.accepted.id, self.canvases, self._reason)


def acknowledgement(ledger: WorkerLedger) -> VoucherAccepted:
    """Make the frame that confirms the latest recorded voucher."""
    return VoucherAccepted(ledger.accumulator.count)
