"""Two ends of a channel joined by lists of bytes: no sockets, no clock, no engine.

`PairedMarket` holds one channel with its two books; `PairedStream` is one job's stream over it. The
engine is a function of (seed, canvas), so that a rerun after a crash gives the same text, as the
real one does. Everything durable lives in `journal`; `crash_worker` throws away the rest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from piecework_protocol import merkle
from piecework_protocol.client_session import Openers
from piecework_protocol.content import CanvasOutput, output_digest
from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import (
    CancelJob,
    PayVoucher,
    SubmitJob,
)
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import (
    Channel,
    Finish,
    Job,
    Kind,
    ModelOffer,
    Parameters,
    Service,
)
from piecework_protocol.signing import LocalSigner, sign, signed_by
from piecework_protocol.states import JobState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import (
    decode_client_frame,
    encode_worker_frame,
)
from piecework_protocol.worker_session import (
    AcceptedJob,
    AllowCanvases,
    CanvasResult,
    Outcome,
    StartEngine,
    StopEngine,
    StoredCanvas,
    WorkerSession,
    acknowledgement,
)
from tests.support.scripted_client import ScriptedClient, ScriptedJob

DOMAIN = Domain(31337, Address(b"\x11" * 20))
PAYER = LocalSigner(bytes(keccak256(b"payer")))
OPERATOR = LocalSigner(bytes(keccak256(b"operator")))
CANVAS = 4
MODEL = ModelOffer(
    name="fake",
    digest=Digest(keccak256(b"fake model")),
    profile="fake",
    kinds=Uint32(Kind.TEXT.bit),
    service=Service.REPLAYABLE,
    price_per_million_prompt_tokens=Amount(1_500_000),
    price_per_million_output_tokens=Amount(2_300_000),
    price_per_thousand_steps=Amount(700),
    max_context=Uint32(1000),
    max_output=Uint32(1000),
    canvas_size=Uint32(CANVAS),
    max_steps=Uint32(48),
    tokens_per_second=Uint32(1),
    first_canvas_ms=Uint32(1),
)
NOW = Timestamp(1_800_000_000)


def channel() -> Channel:
    """A channel between the two fixed keys."""
    return Channel(
        payer=PAYER.address,
        authorizer=PAYER.address,
        receiver=Address(b"\x22" * 20),
        operator=OPERATOR.address,
        token=Address(b"\x33" * 20),
        withdrawal_delay=Seconds(3600),
        salt=Bytes32(bytes(32)),
    )


def job(seed: int, max_tokens: int, *, ceiling: int = 10**9) -> Job:
    """A job on that channel; the seed makes its id unique."""
    parameters = Parameters(
        seed=Uint64(seed),
        max_tokens=Uint32(max_tokens),
        max_steps=Uint32(48),
        temperature_start=Micros(800_000),
        temperature_end=Micros(400_000),
        entropy_bound=Micros(100_000),
        confidence_threshold=Micros(5_000),
        stability_steps=Uint32(1),
        service=Service.REPLAYABLE,
    )
    return Job(
        channel=channel().id(DOMAIN),
        salt=keccak256(seed.to_bytes(8, "big")),
        offer=Digest(bytes(32)),
        entry=Uint32(0),
        model=MODEL.digest,
        kind=Kind.TEXT,
        content=Digest(bytes(32)),
        parameters=parameters,
        max_amount=Amount(ceiling),
        deadline=Timestamp(2**40 - 1),
        reply_key=PublicKey(bytes(32)),
    )


def denoise(accepted: AcceptedJob, canvas: int) -> CanvasResult:
    """What the fake engine makes of a canvas: a function of the job's seed and the canvas alone."""
    parameters = accepted.job.parameters
    noise = keccak256(parameters.seed.to_bytes(8, "big") + canvas.to_bytes(4, "big"))
    left = parameters.max_tokens - canvas * CANVAS
    ends = noise[0] % 7 == 0
    units = noise[1] % (min(CANVAS, left) + 1) if ends else min(CANVAS, left)
    finish = Finish.END_OF_TEXT if ends else Finish.TOKEN_LIMIT if left <= CANVAS else Finish.MORE
    output = CanvasOutput(tuple(noise[2 : 2 + units]), noise.hex()[:units]).encode()
    return CanvasResult(
        canvas=canvas,
        output_digest=output_digest(accepted.id, canvas, output),
        trace_root=merkle.root([noise]),
        steps=1 + noise[8] % 48,
        units=units,
        finish=finish,
        sealed_output=output,
        resume_secret=b"",
    )


OPENERS = Openers(
    canvas=lambda sealed, _canvas: sealed, draft=lambda sealed, _canvas, _step: sealed
)


@dataclass
class WorkerJob:
    """One job as the worker holds it; `stored` and `state` are what its journal has."""

    accepted: AcceptedJob
    state: JobState = JobState.NEW
    stored: list[StoredCanvas] = field(default_factory=list)
    session: WorkerSession | None = None
    limit: int = 0
    running: bool = False

    def at_rest(self) -> WorkerSession:
        """The session as the journal gives it."""
        return WorkerSession(self.accepted, DOMAIN, state=self.state, stored=self.stored)


@dataclass
class PairedStream(ScriptedJob):
    """One job's stream: the client's end, and the bytes on the way to it."""

    downward: deque[bytes] = field(default_factory=deque)


class PairedMarket:
    """One channel, its two books, any number of jobs."""

    def __init__(self, deposit: int) -> None:
        self.client = ScriptedClient(DOMAIN, PAYER, channel(), deposit)
        self.worker_book = WorkerLedger(self.client.id)
        self.worker_jobs: dict[JobId, WorkerJob] = {}
        self.lines: dict[JobId, PairedStream] = {}

    # --- the client's shell

    def submit(self, work: Job) -> PairedStream:
        """Start a job, or come back to it."""
        key = work.id(DOMAIN)
        if key not in self.lines:
            submission = SubmitJob(work, sign(DOMAIN, work, PAYER), self.client.channel, b"")
            self.lines[key] = PairedStream(submission, DOMAIN, MODEL, OPENERS, prompt_bytes=10)
        self.lines[key].open()
        return self.lines[key]

    def client_reads(self, line: PairedStream) -> None:
        """Take one frame from the line, verify it, and pay when there is something to pay."""
        self.client.take(line, line.downward.popleft())

    # --- the worker's shell

    def worker_reads(self, line: PairedStream) -> None:
        """Take one frame from the line."""
        frame = decode_client_frame(line.upward.popleft())
        if isinstance(frame, SubmitJob):
            self._open(line, frame)
        elif isinstance(frame, PayVoucher):
            self._paid(line, frame)
        elif isinstance(frame, CancelJob):
            work = self.worker_jobs[line.id]
            assert work.session is not None
            self._carry_out(line, work, work.session.cancel())

    def _open(self, line: PairedStream, frame: SubmitJob) -> None:
        assert signed_by(DOMAIN, frame.job, frame.signature, PAYER.address)
        key = frame.job.id(DOMAIN)
        if key not in self.worker_jobs:
            accepted = AcceptedJob(key, frame.job, frame.channel, MODEL, 7, NOW)
            self.worker_jobs[key] = WorkerJob(accepted)
        work = self.worker_jobs[key]
        work.session = work.at_rest()
        self._carry_out(line, work, work.session.open(frame.received, self.worker_book))

    def _paid(self, line: PairedStream, payment: PayVoucher) -> None:
        assert signed_by(DOMAIN, payment.voucher, payment.signature, PAYER.address)
        before = self.worker_book
        after = before.apply(payment, self.client.deposit)
        if after is not None:
            self.worker_book = after
            for key in {ref.job for ref in set(before.unpaid) - set(after.unpaid)}:
                work = self.worker_jobs[key]
                session = work.session or work.at_rest()  # its client may be away
                self._carry_out(self.lines[key], work, session.paid(after))
        line.downward.append(encode_worker_frame(acknowledgement(self.worker_book)))

    def engine_step(self, line: PairedStream) -> bool:
        """Let the engine finish this job's next canvas, if it may."""
        work = self.worker_jobs.get(line.id)
        if (
            work is None
            or work.session is None
            or not work.running
            or work.session.canvases >= work.limit
        ):
            return False
        result = denoise(work.accepted, work.session.canvases)
        work.running = result.finish is Finish.MORE
        outcome, self.worker_book = work.session.canvas_finished(result, self.worker_book)
        self._carry_out(line, work, outcome)
        return True

    def _carry_out(self, line: PairedStream, work: WorkerJob, outcome: Outcome) -> None:
        for record in outcome.records:
            if isinstance(record, StoredCanvas):
                work.stored.append(record)
            else:
                work.state = record.state
        for frame in outcome.frames(lambda message: sign(DOMAIN, message, OPERATOR)):
            line.downward.append(encode_worker_frame(frame))
        for command in outcome.commands:
            if isinstance(command, StartEngine):
                work.running, work.limit = True, command.canvas_limit
            elif isinstance(command, AllowCanvases):
                work.limit = command.canvas_limit
            elif isinstance(command, StopEngine):
                work.running = False

    # --- the world

    def drop(self, line: PairedStream) -> None:
        """The connection breaks: what was under way is lost, both ends notice."""
        line.upward.clear()
        line.downward.clear()
        work = self.worker_jobs.get(line.id)
        if work is not None and work.session is not None:
            self._carry_out(line, work, work.session.disconnected())
            line.downward.clear()
            work.session = None

    def crash_worker(self) -> None:
        """kill -9: sessions, engine rows and frames under way are gone, the journal is not."""
        for line in self.lines.values():
            line.upward.clear()
            line.downward.clear()
        for work in self.worker_jobs.values():
            work.session, work.running = None, False
            if work.state is JobState.RUNNING:
                work.state = JobState.SUSPENDED
