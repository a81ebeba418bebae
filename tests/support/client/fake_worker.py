"""A small worker that speaks the real protocol over real sockets: gRPC, TLS, sealing, signatures,
vouchers.

It is `protocol.worker_session` with an engine that tells a fixed story and an in-memory journal.
`Script` makes it misbehave in one precise way: decline, drop the stream, fall silent, or lie about
one clause.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from piecework_node.keys.tls import create_tls
from piecework_protocol import wire
from piecework_protocol.content import output_digest
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    CanvasDelivered,
    CloseChannelRequest,
    CloseChannelResponse,
    Funding,
    GetAccountRequest,
    JobEnded,
    LeafRef,
    OpeningAuthorization,
    PayVoucher,
    Progress,
    ShowReceiptsRequest,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.kinds import KINDS, Content
from piecework_protocol.kinds.read import ONE, ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import (
    Channel,
    Endpoint,
    Finish,
    Kind,
    ModelOffer,
    Offer,
    Route,
    Service,
)
from piecework_protocol.sealing import (
    canvas_context,
    content_context,
    draft_context,
    public_key,
    seal,
    unseal,
)
from piecework_protocol.service import NO_TRACE
from piecework_protocol.signing import LocalSigner, Signer, sign, signed_by
from piecework_protocol.states import JobState
from piecework_protocol.types import (
    Address,
    Amount,
    ChannelId,
    Digest,
    JobId,
    PublicKey,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import (
    AcceptedJob,
    CanvasResult,
    Outcome,
    StoppedEngine,
    UnsignedFrame,
    WorkerSession,
    acknowledgement,
)
from tests.support.chain.fake_chain import TOKEN, FakeChain
from tests.support.market.offers import NO_CREDIT_TERMS
from tests.support.network.relays import BehindRelays
from tests.support.protocol.traces import made_up_leaves
from tests.support.waiting import pass_time

CANVAS = 8
CERTIFIED_AT = Timestamp(1_600_000_000)
STORY = tuple(
    "Once upon a time a fox found a lantern by the river . It lit the lantern and the "  # noqa: SIM905
    "river shone like silver . The fox slept well that night .".split()
)
STEPS = 10


class Lie(enum.Enum):
    """What a dishonest worker tries, with the clause that a client must name."""

    UNSIGNED_ACCEPTANCE = "3.5"
    TOO_MANY_PROMPT_TOKENS = "3.4"
    RECEIPT_BY_ANOTHER_KEY = "4.3"
    HIGHER_AMOUNT = "4.4"
    MORE_UNITS_THAN_TOKENS = "4.4 units"
    MORE_STEPS_THAN_ALLOWED = "4.4 steps"
    SKIPPED_CANVAS = "4.1"
    CANVAS_CHARGED_TWICE = "4.1 twice"
    OTHER_OUTPUT = "4.2"
    OUTPUT_THAT_DOES_NOT_OPEN = "8.2"
    FALSE_COUNT_AT_THE_END = "4.1 end"
    PAYMENTS_NEVER_MADE = "5.6"
    VOUCHER_NEVER_SIGNED = "5.7"
    NO_TRACE = "7.4"
    OTHER_LEAVES = "7.2"
    FEWER_LEAVES = "7.2 count"
    GARBAGE = "2.3"

    @property
    def clause(self) -> str:
        return self.value.split()[0]


@dataclass
class Script:
    """How this worker behaves.

    `gate` is awaited before each canvas: tests decide when one is made. With a `heartbeat_s` it
    sends progress. With a `slot` jobs wait for one in its queue.
    """

    story: Sequence[str] = STORY
    lie: Lie | None = None
    lie_at: int = 1
    refusals: list[Refusal] = field(default_factory=list)
    drop_after: list[int] = field(default_factory=list)
    fail_at: int | None = None
    acknowledges: bool = True
    drafts: int = 2
    gate: Callable[[int], Any] | None = None
    refuse_close: Refusal | None = None
    heartbeat_s: float | None = None
    slot: asyncio.Semaphore | None = None
    shows_account: bool = True


@dataclass
class Job:
    """A job in the fake's memory, which outlives its streams."""

    submission: SubmitJob
    session: WorkerSession
    content: Content
    limit: int = 0
    begun: bool = False
    shown: tuple[int, bytes] | None = None
    """Step and bytes of the last draft of the canvas in progress."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    live: bool = False


def model_offer(name: str = "tale-1", *, price: int = 2_000_000, speed: int = 400) -> ModelOffer:
    """A model with all three prices."""
    return ModelOffer(
        name=name,
        digest=Digest(keccak256(name.encode())),
        profile="fake",
        kinds=Uint32(Kind.TEXT.bit | Kind.READ.bit),
        service=Service.REPLAYABLE,
        price_per_million_prompt_tokens=Amount(price),
        price_per_million_output_tokens=Amount(2 * price),
        price_per_thousand_steps=Amount(price // 1000),
        max_context=Uint32(4096),
        max_output=Uint32(2048),
        canvas_size=Uint32(CANVAS),
        max_steps=Uint32(48),
        tokens_per_second=Uint32(speed),
        first_canvas_ms=Uint32(200),
    )


class FakeWorker:
    """One worker: `async with FakeWorker(chain, clock) as worker`."""

    def __init__(
        self,
        chain: FakeChain,
        clock: Callable[[], float],
        *,
        name: str = "worker",
        script: Script | None = None,
        models: tuple[ModelOffer, ...] = (),
        mines: bool = True,
        relays: tuple[str, ...] = (),
    ) -> None:
        """`relays`: listen on no address, and be reached through these."""
        self.chain, self.clock, self.mines = chain, clock, mines
        self.script = script or Script()
        self.domain: Domain = chain.domain
        self.operator = LocalSigner(bytes(keccak256(name.encode())))
        self.receiver = Address(bytes(keccak256(b"cold " + name.encode()))[:20])
        self.sealing_secret = bytes(keccak256(b"seal " + name.encode()))
        self.models = models or (model_offer(),)
        self.jobs: dict[JobId, Job] = {}
        self.books: dict[ChannelId, WorkerLedger] = {}
        self.deposits: dict[ChannelId, Amount] = {}
        self.vouchers: list[PayVoucher] = []
        self.submissions: list[SubmitJob] = []
        self.violations: list[ProtocolViolation] = []
        self.cancels = 0
        self.closed: list[Channel] = []
        self.slots_free, self.min_deposit, self.sequence = 2, 0, 1
        self.endpoint = ""
        self.seen_deposit = Amount(0)
        """What the chain shows of a channel that this worker did not open."""
        self.terms: dict[str, Any] = {}
        """Members that every offer has instead of the usual ones."""
        self.token = TOKEN
        self.ways = tuple(Endpoint(Route.RELAYED, relay) for relay in relays)
        """What offers name instead of `endpoint`, if there is something."""
        self._behind = BehindRelays(self.operator, relays) if relays else None
        self._certificate, self._key = create_tls(self.operator.address, CERTIFIED_AT)

    async def __aenter__(self) -> FakeWorker:
        self._server = grpc.aio.server()
        handlers = {
            "Run": grpc.stream_stream_rpc_method_handler(self._run),
            "GetOffer": grpc.unary_unary_rpc_method_handler(self._get_offer),
            "GetAccount": grpc.unary_unary_rpc_method_handler(self._get_account),
            "ShowReceipts": grpc.unary_unary_rpc_method_handler(self._show_receipts),
            "CloseChannel": grpc.unary_unary_rpc_method_handler(self._close_channel),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("piecework.v2.Worker", handlers),)
        )
        credentials = grpc.ssl_server_credentials([(self._key, self._certificate)])
        target = "127.0.0.1:0" if self._behind is None else self._behind.front.target
        port = self._server.add_secure_port(target, credentials)
        await self._server.start()
        self.endpoint = f"127.0.0.1:{port}" if self._behind is None else self.ways[0].address
        self.chain.register(self.operator.address, self.receiver, self.endpoint)
        if self._behind is not None:
            await self._behind.join()
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._behind is not None:
            await self._behind.leave()
        await self._server.stop(None)

    async def go_away(self) -> None:
        """Stop at once, with everything that runs."""
        await self._server.stop(0)

    @property
    def certificate_digest(self) -> Digest:
        der = x509.load_pem_x509_certificate(self._certificate).public_bytes(
            serialization.Encoding.DER
        )
        return Digest(hashlib.sha256(der).digest())

    def offer(self, **changes: Any) -> SignedOffer:
        """The signed offer as it stands now."""
        now = int(self.clock())
        offer = Offer(
            operator=self.operator.address,
            receiver=self.receiver,
            sequence=Uint64(self.sequence),
            issued_at=Timestamp(now),
            expires_at=Timestamp(now + 300),
            endpoints=self.ways or (Endpoint(Route.DIRECT, self.endpoint),),
            tls_certificate=self.certificate_digest,
            sealing_key=public_key(self.sealing_secret),
            tokens=(self.token,),
            models=self.models,
            slots=Uint32(2),
            slots_free=Uint32(self.slots_free),
            queue_free=Uint32(0 if self.slots_free == 0 else 4),
            **NO_CREDIT_TERMS,
            min_withdrawal_delay=Seconds(3600),
            min_deposit=Amount(self.min_deposit),
            details="{}",
        ).replace(**{**self.terms, **changes})
        return SignedOffer(offer, sign(self.domain, offer, self.operator))

    def paid(self) -> int:
        """Base units promised by accepted vouchers, over all channels."""
        return sum(book.cumulative for book in self.books.values())

    # --- gRPC

    async def _get_offer(self, _: bytes, __: Any) -> bytes:
        return wire.encode_offer(self.offer())

    async def _close_channel(self, request: bytes, context: Any) -> bytes:
        asked = wire.decode_call(CloseChannelRequest, request)
        channel, final, signature = asked.channel, asked.final, asked.signature
        if self.script.refuse_close is not None:
            await _refuse(context, self.script.refuse_close)
        key = channel.id(self.domain)
        book = self.books.get(key, WorkerLedger(key))
        mine = (book.cumulative, book.accumulator.count, book.accumulator.root())
        if (final.cumulative, final.count, final.receipts_root) != mine or not signed_by(
            self.domain, final, signature, channel.authorizer
        ):
            await _refuse(context, Refusal(Reason.UNPAID_RECEIPTS, "not my last voucher"))
        self.closed.append(channel)
        agreed = CloseChannelResponse(sign(self.domain, final, self.operator), None)
        return wire.encode_call(agreed)

    async def _get_account(self, request: bytes, context: Any) -> bytes:
        asked = wire.decode_call(GetAccountRequest, request)
        channels = {j.submission.job.channel: j.submission.channel for j in self.jobs.values()}
        key = asked.request.channel
        account = self.books[key].account() if key in self.books else None
        if account is None or not self.script.shows_account:
            await _refuse(context, Refusal(Reason.CHANNEL_UNKNOWN, "no voucher on it"))
            raise AssertionError("a refusal ends the call")
        assert signed_by(self.domain, asked.request, asked.signature, channels[key].authorizer)
        return wire.encode_call(account)

    async def _show_receipts(self, request: bytes, _: Any) -> bytes:
        return wire.encode_call(self.show(wire.decode_call(ShowReceiptsRequest, request)))

    def show(self, asked: ShowReceiptsRequest) -> Account:
        """Take receipts of its own that a client shows."""
        key, shown, refs = asked.channel.id(self.domain), asked.voucher, []
        book = self.books.get(key, WorkerLedger(key))
        for receipt, signature in ((s.receipt, s.signature) for s in asked.receipts):
            assert signed_by(self.domain, receipt, signature, self.operator.address)
            refs.append(LeafRef(JobId(receipt.job), receipt.canvas))
            if refs[-1] not in book.unpaid:
                book = book.issue(refs[-1], Digest(self.domain.digest(receipt)), receipt.amount)
        payment = PayVoucher(shown.voucher, shown.signature, shown.base_count, tuple(refs))
        after = book.apply(payment, shown.voucher.cumulative)
        self.books[key] = after or book
        account = self.books[key].account()
        assert account is not None
        return account

    async def _run(self, _: Any, context: Any) -> None:
        await self.serve(context)

    async def serve(self, context: Any) -> None:
        """Serve one stream over any context that reads, writes and aborts as gRPC's."""
        submission = wire.decode_client_frame(await context.read())
        assert isinstance(submission, SubmitJob)
        self.submissions.append(submission)
        if self.script.refusals:
            await _refuse(context, self.script.refusals.pop(0))
        try:
            job = self._admit(submission)
        except Refusal as refusal:
            await _refuse(context, refusal)
        await _Stream(self, job, context).serve(submission.received)

    def _total_of(self, funding: Funding, payer: Address) -> Amount:
        """What a channel holds with an authorization. The chain checks one of the token itself."""
        if isinstance(funding, OpeningAuthorization):
            return funding.amount
        assert signed_by(self.domain, funding.authorization, funding.signature, payer)
        return funding.authorization.funded

    def _admit(self, submission: SubmitJob) -> Job:
        channel, signed = submission.channel, submission.job
        key, job_id = channel.id(self.domain), signed.id(self.domain)
        if channel.operator != self.operator.address or channel.receiver != self.receiver:
            raise Refusal(Reason.WRONG_WORKER, "another worker's channel")
        if not signed_by(self.domain, signed, submission.signature, channel.authorizer):
            raise Refusal(Reason.BAD_SIGNATURE, "not the authorizer's")
        if submission.funding is not None:
            funding = submission.funding
            total = self._total_of(funding, channel.payer)
            self.deposits[key] = Amount(max(self.deposits.get(key, 0), total))
            if self.mines:
                self.chain.fund(key, self.deposits[key], channel.payer)
        if self.deposits.setdefault(key, self.seen_deposit) < signed.max_amount:
            raise Refusal(Reason.UNDERFUNDED, "deposit too small")
        book = self.books.setdefault(key, WorkerLedger(key))
        owing = {
            ref.job for ref in book.unpaid if ref.job != job_id and not self.jobs[ref.job].live
        }
        if owing:
            raise Refusal(Reason.UNPAID_RECEIPTS, "an earlier job is not paid")
        if job_id in self.jobs:
            return self.jobs[job_id]
        model = next(m for m in self.models if m.digest == signed.model)
        prompt = unseal(
            submission.sealed_content, self.sealing_secret, content_context(self.domain, job_id)
        )
        content = KINDS[signed.kind].decode_content(prompt)
        now = Timestamp(int(self.clock()))
        # A template stands in the canvas, so it is not of the prompt.
        tokens = min(1 + len(prompt) // 4, content.outline.prompt_tokens)
        accepted = AcceptedJob(job_id, signed, channel, model, tokens, now)
        self.jobs[job_id] = Job(submission, WorkerSession(accepted, self.domain), content)
        return self.jobs[job_id]

    def _answers(self, content: ReadContent, accepted: AcceptedJob, canvas: int) -> CanvasResult:
        """The first label of every question is the likelier one, more so with every draw."""
        share = ONE // (3 + canvas)
        answers = []
        for index in content.on_canvas(canvas, CANVAS):
            others = (share,) + (0,) * (len(content.questions[index].labels) - 2)
            answers.append((ONE - share, *others))
        output = ReadOutput(tuple(answers)).encode()
        last = canvas + 1 == content.canvases(CANVAS)
        key = PublicKey(accepted.job.reply_key)
        return CanvasResult(
            canvas=canvas,
            output_digest=output_digest(accepted.id, canvas, output),
            leaves=made_up_leaves(output, 1),
            steps=1,
            units=0,
            finish=Finish.END_OF_TEXT if last else Finish.MORE,
            sealed_output=seal(output, key, canvas_context(self.domain, accepted.id, canvas)),
            resume_secret=b"",
        )

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        """The next words of the story, or the next answers."""
        if isinstance(job.content, ReadContent):
            return self._answers(job.content, job.session.accepted, canvas)
        accepted, words = job.session.accepted, self.script.story
        left = accepted.job.parameters.max_tokens - canvas * CANVAS
        mine = words[canvas * CANVAS : (canvas + 1) * CANVAS][: max(0, left)]
        over = (canvas + 1) * CANVAS >= len(words)
        finish = (
            Finish.TOKEN_LIMIT
            if left <= CANVAS and not over
            else Finish.END_OF_TEXT
            if over
            else Finish.MORE
        )
        if over and left < len(mine):
            finish = Finish.TOKEN_LIMIT
        text = "".join(" " * (canvas + i > 0) + word for i, word in enumerate(mine))
        output = TextOutput.plain(tuple(range(len(mine))), text).encode()
        key = PublicKey(accepted.job.reply_key)
        traced = accepted.job.parameters.service is Service.REPLAYABLE
        return CanvasResult(
            canvas=canvas,
            output_digest=output_digest(accepted.id, canvas, output),
            leaves=made_up_leaves(output, STEPS if traced else 0),
            steps=STEPS if traced else 0,
            units=len(mine),
            finish=finish,
            sealed_output=seal(output, key, canvas_context(self.domain, accepted.id, canvas)),
            resume_secret=b"",
        )


class _Stream:
    """One stream of one job."""

    def __init__(self, worker: FakeWorker, job: Job, context: Any) -> None:
        self.worker, self.job, self.context = worker, job, context
        self.key = job.session.accepted.job.channel
        self.writing = asyncio.Lock()
        self.delivered = 0
        self.queued = True

    @property
    def book(self) -> WorkerLedger:
        return self.worker.books[self.key]

    async def serve(self, received: int) -> None:
        session, self.job.live = self.job.session, True
        self.delivered = received
        try:
            outcome = session.open(received, self.book)
            self.job.limit = session.canvas_limit(self.book)
            await self.carry_out(outcome)
            tasks = [asyncio.create_task(self.engine_in_turn())]
            if self.worker.script.heartbeat_s is not None:
                tasks.append(asyncio.create_task(self.heart(self.worker.script.heartbeat_s)))
            try:
                await self.read()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except ProtocolViolation as violation:
            self.worker.violations.append(violation)
            await _refuse(self.context, Refusal(Reason.BROKEN_CLAUSE, str(violation)))
        finally:
            self.job.live = False
            if session.state.value in ("accepted", "running"):
                session.disconnected()
                session.engine_lost()

    async def heart(self, pause_s: float) -> None:
        """Tell where the job is until it ends."""
        session, key = self.job.session, self.job.session.accepted.id
        while session.state.value == "running":
            place = 1 if self.queued else 0
            await self.send(Progress(key, session.canvases, 0, 1, queue_position=place))
            await pass_time(pause_s)

    async def engine_in_turn(self) -> None:
        """Run the engine when there is a slot."""
        async with self.worker.script.slot or contextlib.nullcontext():
            self.queued = False
            await self.engine()

    async def engine(self) -> None:
        session, script = self.job.session, self.worker.script
        while session.state.value == "running":
            canvas = session.canvases
            if canvas >= self.job.limit:
                self.job.changed.clear()
                await self.job.changed.wait()
                continue
            self.job.begun, self.job.shown = True, None
            if script.fail_at == canvas:
                await self.carry_out(session.failed(Reason.ENGINE_FAILED, "the engine broke"))
                return
            if script.gate is not None:
                await script.gate(canvas)
            await self.drafts(canvas)
            result = self.worker.denoise(self.job, canvas)
            self.job.begun, self.job.shown = False, None
            if session.state.value != "running":
                return
            outcome, book = session.canvas_finished(result, self.book)
            self.worker.books[self.key] = book
            await self.carry_out(outcome)

    async def stop(self) -> None:
        """The engine ends the sequence of a client that has left."""
        session, job = self.job.session, self.job
        if session.state is not JobState.STOPPING:
            return
        canvas, accepted = session.canvases, session.accepted
        step, data = job.shown or (-1, TextOutput.plain((), "").encode())
        traced = accepted.job.parameters.service is Service.REPLAYABLE
        steps = step + 1 if traced else 0
        key = PublicKey(accepted.job.reply_key)
        report = StoppedEngine(
            canvas=canvas,
            prompt_tokens=accepted.prompt_tokens if job.begun else 0,
            steps=steps,
            leaves=made_up_leaves(b"stopped", steps),
            output_digest=output_digest(accepted.id, canvas, data),
            units=len(TextOutput.decode(data).token_ids),
            sealed_output=seal(data, key, canvas_context(self.worker.domain, accepted.id, canvas)),
        )
        outcome, self.worker.books[self.key] = session.stopped(report, self.book)
        await self.carry_out(outcome)

    async def drafts(self, canvas: int) -> None:
        accepted = self.job.session.accepted
        if not self.job.submission.drafts:
            return
        for step in range(self.worker.script.drafts):
            text = TextOutput.plain((step,), f"draft {canvas}.{step}").encode()
            context = draft_context(self.worker.domain, accepted.id, canvas, step)
            sealed = seal(text, accepted.job.reply_key, context)
            self.job.shown = (step, text)
            await self.carry_out(self.job.session.draft(canvas, step, sealed))

    async def read(self) -> None:
        session = self.job.session
        while True:
            data = await self.context.read()
            if data == grpc.aio.EOF:  # type: ignore[attr-defined]
                return
            frame = wire.decode_client_frame(data)
            if isinstance(frame, CancelJob):
                self.worker.cancels += 1
                await self.carry_out(session.cancel())
                await self.stop()
            elif isinstance(frame, PayVoucher):
                await self.pay(frame)

    async def pay(self, frame: PayVoucher) -> None:
        worker, session = self.worker, self.job.session
        authorizer = session.accepted.channel.authorizer
        assert signed_by(worker.domain, frame.voucher, frame.signature, authorizer)
        book = self.book.apply(frame, worker.deposits[self.key])
        if book is not None:
            worker.books[self.key] = book
            worker.vouchers.append(frame)
        if not worker.script.acknowledges:
            return
        if book is not None:
            session.paid(book)
            self.job.limit = session.canvas_limit(book)
            self.job.changed.set()
        await self.send(acknowledgement(self.book))

    async def carry_out(self, outcome: Outcome) -> None:
        for unsent in outcome.unsent:
            frame = self.signed(unsent) if isinstance(unsent, UnsignedFrame) else unsent
            drops = self.worker.script.drop_after
            if isinstance(frame, CanvasDelivered) and drops and self.delivered == drops[0]:
                drops.pop(0)
                await self.context.abort(grpc.StatusCode.UNAVAILABLE, "the machine is going away")
            await self.send(frame)
            if isinstance(frame, CanvasDelivered):
                self.delivered += 1

    def signed(self, unsigned: UnsignedFrame) -> WorkerFrame:
        return unsigned.build(sign(self.worker.domain, unsigned.message, self.worker.operator))

    async def send(self, frame: WorkerFrame) -> None:
        async with self.writing:
            for lied in on_wait(self.worker, frame, self.worker.script):
                await self.context.write(
                    lied if isinstance(lied, bytes) else wire.encode_worker_frame(lied)
                )


def on_wait(
    worker: FakeWorker, frame: WorkerFrame, script: Script
) -> Sequence[WorkerFrame | bytes]:
    """The frames that go out in place of an honest one."""
    lie = script.lie
    if lie is None:
        return (frame,)
    if isinstance(frame, Accepted):
        return (_false_acceptance(worker, frame, lie),)
    if isinstance(frame, CanvasDelivered) and frame.receipt.canvas == script.lie_at:
        return _false_canvas(worker, frame, lie)
    if isinstance(frame, VoucherAccepted) and lie is Lie.PAYMENTS_NEVER_MADE:
        return (VoucherAccepted(frame.count + 3),)
    if isinstance(frame, JobEnded) and lie is Lie.FALSE_COUNT_AT_THE_END:
        return (replace(frame, canvases=frame.canvases + 1),)
    return (frame,)


def _false_acceptance(worker: FakeWorker, frame: Accepted, lie: Lie) -> Accepted:
    if lie is Lie.UNSIGNED_ACCEPTANCE:
        return replace(frame, signature=Signature(bytes(65)))
    if lie is Lie.TOO_MANY_PROMPT_TOKENS:
        from piecework_protocol.objects import Acceptance

        many = 1_000_000
        promise = Acceptance(frame.job, Uint32(many), frame.accepted_at)
        return replace(
            frame, prompt_tokens=many, signature=sign(worker.domain, promise, worker.operator)
        )
    if lie is Lie.VOUCHER_NEVER_SIGNED:
        channel = worker.jobs[frame.job].session.accepted.job.channel
        book = WorkerLedger(channel).issue(LeafRef(frame.job, 0), Digest(bytes(32)), Amount(5))
        voucher = WorkerLedger(channel).accumulator.append(bytes(32))
        from piecework_protocol.objects import Voucher

        made_up = Voucher(channel, Amount(5), Uint64(1), voucher.root())
        del book
        account = Account(made_up, sign(worker.domain, made_up, worker.operator), voucher.peaks)
        return replace(frame, account=account)
    return frame


def _false_canvas(
    worker: FakeWorker, frame: CanvasDelivered, lie: Lie
) -> Sequence[WorkerFrame | bytes]:
    receipt = frame.receipt
    changes: dict[Lie, dict[str, Any]] = {
        Lie.HIGHER_AMOUNT: {"amount": Amount(receipt.amount + 1)},
        Lie.MORE_UNITS_THAN_TOKENS: {"units": Uint32(receipt.units + 1)},
        Lie.MORE_STEPS_THAN_ALLOWED: {"steps": Uint32(49)},
        Lie.SKIPPED_CANVAS: {"canvas": Uint32(receipt.canvas + 1)},
        Lie.OTHER_OUTPUT: {"output_digest": Digest(keccak256(b"other"))},
        Lie.NO_TRACE: {"trace_root": NO_TRACE},
    }
    signer: Signer = worker.operator
    if lie in changes:
        false = receipt.replace(**changes[lie])
        return (replace(frame, receipt=false, signature=sign(worker.domain, false, signer)),)
    if lie is Lie.RECEIPT_BY_ANOTHER_KEY:
        stranger = LocalSigner(bytes(keccak256(b"stranger")))
        return (replace(frame, signature=sign(worker.domain, receipt, stranger)),)
    if lie is Lie.OTHER_LEAVES:
        return (replace(frame, leaves=frame.leaves[::-1]),)
    if lie is Lie.FEWER_LEAVES:
        return (replace(frame, leaves=frame.leaves[:-1]),)
    if lie is Lie.CANVAS_CHARGED_TWICE:
        return (frame, frame)
    if lie is Lie.OUTPUT_THAT_DOES_NOT_OPEN:
        return (replace(frame, sealed_output=frame.sealed_output[:-1] + b"\x00"),)
    if lie is Lie.GARBAGE:
        return (b"\xff\xff\xff",)
    return (frame,)


async def _refuse(context: Any, refusal: Refusal) -> None:
    """Decline as a worker does: a gRPC status with ErrorInfo, and RetryInfo when there is a
    time."""
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason.name, domain="piecework", metadata=refusal.metadata
    )
    details = [info]
    if refusal.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(refusal.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code = grpc.StatusCode[refusal.reason.status.value]
    status = status_pb2.Status(code=code.value[0], message=str(refusal))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    await context.abort(code, str(refusal))
