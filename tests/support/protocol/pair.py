"""Two ends of a channel joined by lists of bytes: no sockets, no clock, no engine.

`PairedMarket` holds one channel with its two books; `PairedStream` is one job's stream over it. The
engine is a function of (seed, canvas), so that a rerun after a crash gives the same text, as the
real one does. Everything durable lives in `journal`; `crash_worker` throws away the rest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from piecework_protocol.client_session import DraftSeen, Openers
from piecework_protocol.content import output_digest
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason
from piecework_protocol.frames import (
    CancelJob,
    Draft,
    LeafRef,
    PayVoucher,
    Progress,
    SubmitJob,
    WorkerFrame,
)
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import (
    Channel,
    Finish,
    Job,
    Kind,
    ModelOffer,
    Parameters,
    Receipt,
    Service,
)
from piecework_protocol.outlines import Outline
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
    Signature,
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
    StoppedEngine,
    StoredCanvas,
    WorkerSession,
    acknowledgement,
)
from tests.support.client.scripted_client import ScriptedClient, ScriptedJob
from tests.support.protocol.traces import made_up_leaves

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
MAX_STEPS = 48
PROMPT_TOKENS = 7


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
    output = TextOutput.plain(tuple(noise[2 : 2 + units]), noise.hex()[:units]).encode()
    steps = steps_of(accepted, canvas)
    return CanvasResult(
        canvas=canvas,
        output_digest=output_digest(accepted.id, canvas, output),
        leaves=made_up_leaves(noise, steps),
        steps=steps,
        units=units,
        finish=finish,
        sealed_output=output,
        resume_secret=b"",
    )


def steps_of(accepted: AcceptedJob, canvas: int) -> int:
    """How many denoising steps a canvas takes."""
    seed = accepted.job.parameters.seed
    return 1 + keccak256(seed.to_bytes(8, "big") + canvas.to_bytes(4, "big"))[8] % MAX_STEPS


OPENERS = Openers(
    canvas=lambda sealed, _canvas: sealed, draft=lambda sealed, _canvas, _step: sealed
)


@dataclass
class EngineRow:
    """A sequence in the fake engine. `steps` are taken of canvas `canvas`."""

    canvas: int
    limit: int
    steps: int = 0
    begun: bool = False
    stop: bool = False
    finish: bool = False


@dataclass
class WorkerJob:
    """One job as the worker holds it; `stored` and `state` are what its journal has."""

    accepted: AcceptedJob
    state: JobState = JobState.NEW
    reason: Reason | None = None
    stored: list[StoredCanvas] = field(default_factory=list)
    session: WorkerSession | None = None
    attached: bool = False
    row: EngineRow | None = None
    shown: TextOutput | None = None
    """The last draft of the canvas in progress that went to the client."""

    def at_rest(self) -> WorkerSession:
        """The session as the journal gives it."""
        return WorkerSession(
            self.accepted, DOMAIN, state=self.state, reason=self.reason, stored=self.stored
        )


OUTLINE = Outline(prompt_tokens=266)


class WorkerKilled(Exception):
    """The worker dies here."""


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
        self.signed: dict[LeafRef, set[Digest]] = {}
        """Every receipt that was ever signed."""
        self.read: dict[LeafRef, int] = {}
        """The most tokens of a canvas that its client has seen in a draft."""
        self.points_to_live: int | None = None
        """The worker dies at this many moments from now. There are three in every outcome."""

    # --- the client's shell

    def submit(self, work: Job) -> PairedStream:
        """Start a job, or come back to it."""
        key = work.id(DOMAIN)
        if key not in self.lines:
            submission = SubmitJob(work, sign(DOMAIN, work, PAYER), self.client.channel, b"")
            self.lines[key] = PairedStream(submission, DOMAIN, MODEL, OPENERS, OUTLINE)
        self.lines[key].open(drafts=True)
        return self.lines[key]

    def client_reads(self, line: PairedStream) -> None:
        """Take one frame from the line, verify it, and pay when there is something to pay."""
        event = self.client.take(line, line.downward.popleft())
        if isinstance(event, DraftSeen):
            ref = LeafRef(line.id, event.canvas)
            tokens = event.output.units
            self.read[ref] = max(self.read.get(ref, 0), tokens)

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
            accepted = AcceptedJob(key, frame.job, frame.channel, MODEL, PROMPT_TOKENS, NOW)
            self.worker_jobs[key] = WorkerJob(accepted)
        work = self.worker_jobs[key]
        if work.session is None:
            work.session = work.at_rest()
            self._carry_out(line, work, work.session.recovered())
        assert work.session.is_known(frame.received, frame.last_receipt)
        work.attached = True
        self._carry_out(line, work, work.session.open(frame.received, self.worker_book))
        if work.row is not None and work.row.steps:
            self._say(line, Progress(line.id, work.row.canvas, work.row.steps, PROMPT_TOKENS))

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

    # --- the engine

    def engine_step(self, line: PairedStream) -> bool:
        """Let the engine go on to this job's next canvas, or to the end of its sequence."""
        while self.engine_steps(line, MAX_STEPS):
            work = self.worker_jobs[line.id]
            if work.row is None or not work.row.steps:
                return True
        return False

    def engine_steps(self, line: PairedStream, most: int) -> bool:
        """Let the engine take up to `most` denoising steps of this job."""
        work = self.worker_jobs.get(line.id)
        if work is None or work.session is None or work.row is None:
            return False
        row, session = work.row, work.session
        if row.stop or (row.finish and not row.begun):
            self._report_stop(line, work, row)
            return True
        if row.canvas >= row.limit:
            return False
        result = denoise(work.accepted, row.canvas)
        row.begun, row.steps = True, min(row.steps + most, steps_of(work.accepted, row.canvas))
        if row.steps < steps_of(work.accepted, row.canvas):
            self._show(line, work, row)
            return True
        row.canvas, row.steps, row.begun, work.shown = row.canvas + 1, 0, False, None
        if result.finish is not Finish.MORE:
            work.row = None
        outcome, book = session.canvas_finished(result, self.worker_book)
        self._carry_out(line, work, outcome, book)
        return True

    def _show(self, line: PairedStream, work: WorkerJob, row: EngineRow) -> None:
        if not work.attached:
            return
        self._say(line, Progress(line.id, row.canvas, row.steps, PROMPT_TOKENS))
        output = TextOutput.decode(denoise(work.accepted, row.canvas).sealed_output)
        tokens = len(output.token_ids) * row.steps // steps_of(work.accepted, row.canvas)
        work.shown = TextOutput.plain(output.token_ids[:tokens], output.text[:tokens])
        self._say(line, Draft(line.id, row.canvas, row.steps, work.shown.encode()))

    def _report_stop(self, line: PairedStream, work: WorkerJob, row: EngineRow) -> None:
        work.row = None
        assert work.session is not None
        shown = work.shown or TextOutput.plain((), "")
        data = shown.encode()
        report = StoppedEngine(
            canvas=row.canvas,
            prompt_tokens=PROMPT_TOKENS if row.begun else 0,
            steps=row.steps,
            leaves=made_up_leaves(b"stopped", row.steps),
            output_digest=output_digest(line.id, row.canvas, data),
            units=len(shown.token_ids),
            sealed_output=data,
        )
        outcome, book = work.session.stopped(report, self.worker_book)
        self._carry_out(line, work, outcome, book)

    def _carry_out(
        self,
        line: PairedStream,
        work: WorkerJob,
        outcome: Outcome,
        book: WorkerLedger | None = None,
    ) -> None:
        self._point()
        self.worker_book = book or self.worker_book
        for record in outcome.records:
            if isinstance(record, StoredCanvas):
                work.stored.append(record)
            else:
                work.state, work.reason = record.state, record.reason or work.reason
        self._point()
        for frame in outcome.frames(map(self._sign, outcome.to_sign)):
            if work.attached:
                self._say(line, frame)
        self._point()
        for command in outcome.commands:
            if isinstance(command, StartEngine):
                work.row = EngineRow(command.committed, command.canvas_limit)
                work.shown = None
            elif work.row is None:
                continue
            elif isinstance(command, AllowCanvases):
                work.row.limit, work.row.finish = command.canvas_limit, False
            elif command.finish_canvas:
                work.row.finish = True
            else:
                work.row.stop = True

    def _sign(self, message: TypedData) -> Signature:
        if isinstance(message, Receipt):
            ref = LeafRef(message.job, message.canvas)
            self.signed.setdefault(ref, set()).add(Digest(DOMAIN.digest(message)))
        return sign(DOMAIN, message, OPERATOR)

    def _say(self, line: PairedStream, frame: WorkerFrame) -> None:
        line.downward.append(encode_worker_frame(frame))

    def _point(self) -> None:
        if self.points_to_live is None:
            return
        self.points_to_live -= 1
        if self.points_to_live < 0:
            self.points_to_live = None
            raise WorkerKilled

    # --- the world

    def drop(self, line: PairedStream) -> None:
        """The connection breaks: what was under way is lost, both ends notice."""
        line.upward.clear()
        line.downward.clear()
        work = self.worker_jobs.get(line.id)
        if work is not None and work.session is not None and work.attached:
            work.attached = False
            self._carry_out(line, work, work.session.disconnected())

    def abandon(self, line: PairedStream) -> None:
        """The client has stayed away for too long."""
        work = self.worker_jobs.get(line.id)
        if work is None or work.attached:
            return
        if work.session is None:
            work.session = work.at_rest()
            self._carry_out(line, work, work.session.recovered())
        self._carry_out(line, work, work.session.cancel(Reason.JOB_ENDED))

    def lose_engine(self) -> None:
        """The engine's process dies, and a new one takes its place."""
        for work in self.worker_jobs.values():
            if work.row is not None and work.session is not None:
                work.row = work.shown = None
                line = self.lines[work.accepted.id]
                self._carry_out(line, work, work.session.engine_lost())
                self._carry_out(line, work, work.session.engine_restarted(self.worker_book))

    def crash_worker(self) -> None:
        """kill -9: sessions, engine rows and frames under way are gone, the journal is not."""
        for line in self.lines.values():
            line.upward.clear()
            line.downward.clear()
        admitted = {k: w for k, w in self.worker_jobs.items() if w.state is not JobState.NEW}
        self.worker_jobs = admitted
        for work in self.worker_jobs.values():
            work.session = work.row = work.shown = None
            work.attached = False
