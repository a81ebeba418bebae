"""Driving one job over its stream: verify, record, pay; come back when the stream breaks.

The order is fixed: a canvas is verified by `ClientSession`, its receipt and the voucher that pays
for it are committed in one transaction, and only then is the voucher signed and sent. A crash at
any point costs nothing: the journal knows what was promised, and signatures are deterministic.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace

from piecework.base.clock import Clock
from piecework.client.config import ClientConfig
from piecework.client.errors import JobFailed, JobInterrupted, WorkerUnreachable
from piecework.client.jobs.channels import ChannelManager
from piecework.client.jobs.delivered import delivered, finish_reason
from piecework.client.jobs.events import (
    DraftText,
    JobFinished,
    JobResuming,
    JobStarted,
)
from piecework.client.jobs.run import Caller
from piecework.client.jobs.selection import claimed_seconds, usual_steps
from piecework.client.jobs.showing import show_lacking
from piecework.client.jobs.spending import Spending
from piecework.client.jobs.watchdog import Watchdog
from piecework.client.journal.learning import learn, learn_broken, learn_length, learn_measure
from piecework.client.journal.memory import JobDone, Lesson
from piecework.client.journal.records import (
    AnswerLength,
    ChannelRow,
    JobRow,
    JobStatus,
    Measured,
    PaidTariff,
)
from piecework.client.journal.store import Store
from piecework.client.limits import (
    CANCEL_TIMEOUT_S,
    GOODBYE_TIMEOUT_S,
    RESUME_FIRST_WAIT_S,
    RESUME_LONGEST_WAIT_S,
)
from piecework.client.network.reachability import Reachability
from piecework.client.network.transport import JobLink, JobLinks, JobStream
from piecework.client.wallet import Wallet
from piecework_protocol import objects
from piecework_protocol.client_session import (
    CanvasVerified,
    ClientSession,
    DraftSeen,
    Openers,
    paid_amount,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import (
    Accepted,
    Account,
    CancelJob,
    JobEnded,
    Progress,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.kinds.open import OpenOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import ModelOffer, Receipt, Voucher
from piecework_protocol.pricing import Usage, usage_of
from piecework_protocol.sealing import (
    canvas_context,
    draft_context,
    unseal,
)
from piecework_protocol.signing import sign
from piecework_protocol.types import JobId, Timestamp

LATER = frozenset(
    {
        Reason.JOB_BUSY,
        Reason.BUSY,
        Reason.CREDIT_EXHAUSTED,
        Reason.RATE_LIMITED,
        Reason.DRAINING,
        Reason.PAUSED,
        Reason.CHAIN_UNAVAILABLE,
        Reason.ENGINE_UNAVAILABLE,
    }
)
"""Refusals of a job that had been accepted which only mean that it cannot go on yet."""


NOTHING = Usage(0, 0, 0)


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every job needs: one per client."""

    store: Store
    channels: ChannelManager
    links: JobLinks
    wallet: Wallet
    domain: Domain
    config: ClientConfig
    clock: Clock
    entropy: Callable[[int], bytes]
    reachability: Reachability
    spending: Spending
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    """Waits for seconds before a job is presented again; a simulation moves its clock instead."""

    def now(self) -> Timestamp:
        return Timestamp(int(self.clock.wall()))


class JobDriver:
    """One job from its submission to its end, over as many streams as it takes.

    With `replay` the worker is asked for every canvas again, so that a restarted client shows the
    whole text; what was paid before is not paid twice. `admitted` is the channel of a job that was
    recorded a moment ago, and so has no receipts yet. `was_cancelled`: we ended the job ourselves
    before, so nothing is missing at its end.
    """

    def __init__(
        self,
        context: JobContext,
        job: JobRow,
        caller: Caller,
        *,
        replay: bool = False,
        admitted: ChannelRow | None = None,
        was_cancelled: bool = False,
    ) -> None:
        self.sent = self.over = False
        self.accepted = job.prompt_tokens is not None
        self._context, self._job, self._caller = context, job, caller
        self._receipts: list[Receipt] = []
        self._replay, self._admitted = replay, admitted
        self._was_cancelled = was_cancelled
        self._confirmed = 0
        """The count of paid receipts that the worker has confirmed on the open stream. The next
        change of the journal records it."""
        self._announced = False
        self._ended: JobEnded | None = None
        self._frame: WorkerFrame | None = None
        """The frame that is being looked at."""
        self._heard = self._stalled = False
        """Whether the worker has sent a frame on the stream that is open now, and whether that
        stream was given up on because the worker does not get on."""
        self._streams, self._new = 0, not replay
        self._worked_s = 0.0

    @property
    def canvases(self) -> int:
        """Canvases that were verified and paid."""
        return len(self._receipts)

    async def run(self) -> JobFinished:
        """Until the job's end. Raises `JobFailed`, `JobInterrupted`, `Refusal`, `WorkerUnreachable`
        (never accepted), or `ProtocolViolation`, after which nothing more is paid to this worker.
        """
        if not self._replay and self._admitted is None:
            rows = await self._context.store.run(self._context.store.receipts, job=self._job.id)
            self._receipts = [r.receipt for r in sorted(rows, key=lambda r: r.receipt.canvas)]
            self._new = not rows
        try:
            return await self._conclude(await self._follow())
        except ProtocolViolation as violation:
            await self._broken(violation)
            raise

    async def _follow(self) -> bool:
        """Present the job until a stream reaches its end. The wait doubles; progress starts it
        over."""
        attempt, lost = 0, False
        while True:
            before = self.canvases
            try:
                return await self._stream()
            except WorkerUnreachable as error:
                offer = self._job.offer.offer
                if not self._heard or len(offer.endpoints) > 1:
                    self._context.links.retire(offer)
                if not self.sent:
                    raise
                lost, why, wait = True, str(error), None
            except Refusal as refusal:
                # After a stream that broke the worker may have taken the job: "not now" does not
                # end it.
                if not (self.accepted or lost) or refusal.reason not in LATER:
                    raise
                why, wait = str(refusal), refusal.retry_after_s
            attempt = 1 if self.canvases > before else attempt + 1
            if attempt > self._attempts or self._context.now() >= self._deadline:
                raise self._given_up(why)
            pause = min(
                RESUME_LONGEST_WAIT_S, max(RESUME_FIRST_WAIT_S * 2 ** (attempt - 1), wait or 0.0)
            )
            await self._caller.emit(JobResuming(attempt, pause, why))
            await self._context.sleep(pause)

    @property
    def _must_come_back(self) -> bool:
        """Whether there is text at this worker that has been shown or paid for."""
        return bool(self._receipts) or self._replay

    @property
    def _has_next_way(self) -> bool:
        """Whether the job was presented over one address of several."""
        return self._streams == 1 < len(self._job.offer.offer.endpoints)

    @property
    def _attempts(self) -> int:
        """How often the job is presented again.

        Before the first canvas somebody else may deliver sooner: a stream that broke gets one more
        try. A worker that said nothing gets one over its next address, and none if it has no other.
        """
        most = self._context.config.resume_attempts
        if self._must_come_back:
            return most
        return 0 if self._stalled else min(1, most)

    @property
    def _deadline(self) -> Timestamp:
        return self._job.submission.job.deadline

    def _given_up(self, why: str) -> Exception:
        if self.accepted and self._must_come_back:
            return JobInterrupted(self._job.id, why)
        return WorkerUnreachable(why)

    # --- one stream

    async def _stream(self) -> bool:
        """One stream from submission to end; whether the worker confirmed the last voucher."""
        context, job = self._context, self._job
        row, self._admitted = self._admitted, None
        if row is None:
            row = await context.channels.refresh_funding(job.channel_id)
        link = await context.links.to(job.offer.offer)
        session = self._session(row)
        self._heard = self._stalled = False
        self._confirmed = 0
        self._streams += 1
        # The worker ends a job at its deadline; the stream outlives it by the time for the last
        # words.
        stream = link.run(max(1, self._deadline - context.now()) + CANCEL_TIMEOUT_S)
        try:
            funding = await context.channels.funding(row)
            submission = replace(
                job.submission,
                received=session.received,
                last_receipt=session.last_receipt,
                funding=funding,
            )
            self.sent = True
            await stream.send(submission)
            watchdog = self._new_watchdog()
            return await self._frames(link, stream, session, row, watchdog)
        finally:
            stream.abort()
            context.channels.under_way.ended(row.id, stream)

    async def _frames(
        self,
        link: JobLink,
        stream: JobStream,
        session: ClientSession,
        row: ChannelRow,
        watchdog: Watchdog,
    ) -> bool:
        book, loop = row.book, asyncio.get_running_loop()
        started = loop.time()
        async with contextlib.aclosing(self._read(stream, session, watchdog)) as frames:
            async for frame in frames:
                self._frame = frame
                event, came = session.receive(frame, self._context.now()), loop.time()
                if isinstance(event, Accepted):
                    started = came
                    watchdog.accepted(came)
                    self._context.reachability.heard(self._job.offer.offer.operator)
                    book = await self._on_accepted(event, link, stream, row)
                elif isinstance(event, DraftSeen):
                    watchdog.working(came, event.canvas, event.step)
                    if isinstance(event.output, TextOutput):
                        draft = DraftText(event.canvas, event.step, event.output.segments)
                        self._caller.offer(draft)
                elif isinstance(event, Progress):
                    if _told(watchdog, event, came, self._context.clock.wall()):
                        started = came  # time in a queue is not the worker's slowness
                elif isinstance(event, CanvasVerified):
                    watchdog.canvas(came)
                    self._worked_s += came - started
                    book = await self._on_canvas(event, stream, book)
                    started = loop.time()  # a slow reader of ours is not the worker's slowness
                elif isinstance(event, VoucherAccepted):
                    self._confirmed = max(self._confirmed, event.count)
                elif isinstance(event, JobEnded):
                    self._ended = event
                self._frame = None
                if self._ended is not None and self._is_confirmed(book):
                    break
        if self._ended is None:
            raise WorkerUnreachable("the stream ended before the job did")
        if self._is_confirmed(book):
            stream.leave()
            return True
        # Another job's stream may have brought the confirmation of a voucher that covers this job's
        # canvases.
        return self._is_confirmed(
            (await self._context.store.run(self._context.store.channel, row.id)).book
        )

    def _is_confirmed(self, book: PayerLedger) -> bool:
        """Whether the worker has confirmed all that this job has paid."""
        return max(book.acknowledged, self._confirmed) >= self._owed(book)

    def _owed(self, book: PayerLedger) -> int:
        """The count that the worker must confirm before this stream may go: that of this job's last
        leaf."""
        mine = [i for i, ref in enumerate(book.unacknowledged) if ref.job == self._job.id]
        return book.acknowledged + mine[-1] + 1 if mine else 0

    async def _read(
        self, stream: JobStream, session: ClientSession, watchdog: Watchdog
    ) -> AsyncGenerator[WorkerFrame, None]:
        """Frames until the end of the stream; passes on the caller's cancel; bounds every wait.

        A cancel waits for the worker's first answer: gRPC keeps one error a stream, and a cancel
        that cannot be written any more would take the place of the refusal that ended it.
        """
        cancel = asyncio.create_task(self._caller.cancelled.wait())
        reading: asyncio.Task[tuple[WorkerFrame, ...]] | None = None
        loop, answered, cancelling = asyncio.get_running_loop(), False, False
        try:
            while True:
                reading = reading or asyncio.create_task(stream.receive())
                may_cancel = answered and not cancelling
                await asyncio.wait(
                    {reading, cancel} if may_cancel else {reading},
                    timeout=max(0.0, self._wait_s(watchdog.left(loop.time()))),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if reading.done():
                    came, reading = reading.result(), None
                    if not came:
                        return
                    answered = self._heard = True
                    watchdog.frame(loop.time())
                    for frame in came:
                        yield frame
                elif cancel.done() and may_cancel:
                    cancelling = True
                    if self._ended is None:
                        session.leave()
                        await stream.send(CancelJob())
                elif self._ended is not None:
                    return  # the next voucher carries this one's receipts again
                elif self._caller.cancelled.is_set():
                    self._stalled = True
                    raise WorkerUnreachable("the worker has fallen silent")
                elif watchdog.left(loop.time()) <= 0:
                    self._stalled = not (watchdog.silent and self._has_next_way)
                    if self._stalled:
                        await self._say_goodbye(stream)
                    raise WorkerUnreachable(watchdog.why)
        finally:
            tasks = [task for task in (cancel, reading) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wait_s(self, left: float) -> float:
        """How long the next frame may take."""
        if self._ended is not None:
            return self._context.config.acknowledgement_timeout_s
        return CANCEL_TIMEOUT_S if self._caller.cancelled.is_set() else left

    def _new_watchdog(self) -> Watchdog:
        config, model = self._context.config, self._model
        return Watchdog(
            asyncio.get_running_loop().time(),
            stall_s=config.stall_timeout_s,
            start_s=config.start_timeout_s,
            first_canvas_s=model.first_canvas_ms / 1000,
            canvases=self.canvases,
        )

    async def _say_goodbye(self, stream: JobStream) -> None:
        """Cancel a job that is left to somebody else: what a worker has not begun is not owed."""
        if self._must_come_back:
            return
        with contextlib.suppress(WorkerUnreachable, Refusal, TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT_S):
                await stream.send(CancelJob())

    async def _on_accepted(
        self, event: Accepted, link: JobLink, stream: JobStream, row: ChannelRow
    ) -> PayerLedger:
        """Take the acceptance over. `row` is the channel before this stream."""
        context, job = self._context, self._job
        book = await context.store.run(context.store.accepted, job.id, event)
        self.accepted = True
        if not self._announced:
            self._announced = True
            offer, model = job.offer.offer, self._model
            signed = job.submission.job
            await self._caller.emit(
                JobStarted(
                    job=job.id,
                    channel=job.channel_id,
                    operator=offer.operator,
                    model=model.name,
                    model_digest=model.digest,
                    prompt_tokens=event.prompt_tokens,
                    ceiling=signed.max_amount,
                    service=model.service,
                )
            )
        if _recorded(event.account) < row.book.acknowledged:
            # It had confirmed more: its journal was set back, and a voucher would name receipts
            # that it does not know any more.
            known = await context.store.run(context.store.channel, row.id)
            account = await show_lacking(context, link, known, event.account)
            return await context.store.run(context.store.adopt_account, row.id, account)
        count = book.accumulator.count
        lacking = count > _recorded(event.account)
        if lacking and not context.channels.under_way.covers(job.channel_id, count):
            await self._send_voucher(stream, book, book.voucher())
        return book

    async def _on_canvas(
        self, event: CanvasVerified, stream: JobStream, book: PayerLedger
    ) -> PayerLedger:
        context, receipt = self._context, event.receipt
        text = event.output.text if isinstance(event.output, TextOutput) else None
        keeps = context.config.keep_text and not isinstance(event.output, OpenOutput)
        payment = await context.store.run(
            context.store.pay,
            event,
            self._job.channel_id,
            text if context.config.keep_text else None,
            output=event.output.encode() if keeps else None,
            acknowledged=self._confirmed,
        )
        self._receipts.append(receipt)
        cost = paid_amount(tuple(self._receipts))
        canvas = delivered(event, payment, cost, self._job, self._model)
        try:
            if payment.voucher is not None:
                await self._send_voucher(stream, payment.book, payment.voucher)
        finally:
            await self._caller.emit(canvas)
        return book if payment.again else payment.book

    async def _send_voucher(self, stream: JobStream, book: PayerLedger, voucher: Voucher) -> None:
        """Sign the voucher that was recorded with the book, and send it."""
        self._context.channels.under_way.sent(voucher.channel, stream, voucher.count)
        signature = sign(self._context.domain, voucher, self._context.wallet.authorizer)
        await stream.send(book.payment(voucher, signature))

    # --- the end

    async def _conclude(self, acknowledged: bool) -> JobFinished:
        job, end = self._job, self._ended
        last = self._receipts[-1].finish if self._receipts else objects.Finish.MORE
        complete = last not in (objects.Finish.MORE, objects.Finish.CANCELLED)
        reason = end.reason if end is not None else None
        left = self._was_cancelled or self._caller.cancelled.is_set()
        if not complete and reason is None and not left:
            reason = (
                Reason.JOB_ENDED
            )  # it had been cancelled before, or the worker stopped for no reason
        if reason is not None:
            message = end.message if end is not None else ""
            await self._over(JobStatus.FAILED, f"{reason.name} {message}")
            raise JobFailed(job.id, reason, message)
        status = JobStatus.COMPLETE if complete else JobStatus.CANCELLED
        usage = usage_of(self._receipts[-1]) if self._receipts else NOTHING
        await self._over(status, lesson=self._lesson(usage, last))
        ended = JobFinished(
            finish=finish_reason(last),
            job=job.id,
            channel=job.channel_id,
            operator=job.offer.offer.operator,
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.output_tokens,
            denoising_steps=usage.denoising_steps,
            canvases=len(self._receipts),
            cost=paid_amount(tuple(self._receipts)),
            acknowledged=acknowledged,
        )
        await self._caller.emit(ended)
        return ended

    async def _broken(self, violation: ProtocolViolation) -> None:
        """Stop paying: end the job here and leave the worker alone from now on.

        What it signed against itself is kept first.
        """
        now, store, job = self._context.now(), self._context.store, self._job
        operator = job.submission.channel.operator
        keep = store.contradictions.keep
        await store.run(keep, job.id, operator, self._frame, violation, now)
        self._confirmed = 0
        lesson = Lesson(lambda memory: learn_broken(memory, now, violation.clause))
        await self._over(JobStatus.BROKEN, str(violation), lesson=lesson)

    async def _over(
        self, status: JobStatus, detail: str = "", *, lesson: Lesson | None = None
    ) -> None:
        """Record that the job is over."""
        store = self._context.store
        await store.run(
            store.finish,
            self._job.id,
            status,
            detail,
            lesson=lesson,
            acknowledged=self._confirmed,
        )
        self.over = True

    def _lesson(self, usage: Usage, last: objects.Finish) -> Lesson:
        """What a job that ran to its end teaches: what it took, if one stream saw all of it, and
        what was paid."""
        now, model = self._context.now(), self._model
        parameters = self._job.submission.job.parameters
        seen_whole = self._streams == 1 and self._new and not self._caller.cancelled.is_set()
        # What a read takes says nothing about the speed of text.
        seen_whole = seen_whole and self._job.submission.job.kind is objects.Kind.TEXT

        def measure(memory: Measured) -> Measured:
            if not seen_whole:
                return memory
            tokens = usage.output_tokens
            return learn_measure(
                memory,
                now,
                seconds=self._worked_s,
                claimed_seconds=claimed_seconds(model, tokens),
                steps=usage.denoising_steps,
                usual_steps=usual_steps(model, tokens, parameters.max_steps),
            )

        # A template decides the length, not the model.
        free = seen_whole and not self._job.outline.templated
        by_itself = last is objects.Finish.END_OF_TEXT

        def length(memory: AnswerLength) -> AnswerLength:
            if not free:
                return memory
            return learn_length(memory, now, usage.output_tokens, ended=by_itself)

        paid = PaidTariff(
            model.digest,
            model.price_per_million_prompt_tokens,
            model.price_per_million_output_tokens,
            model.price_per_thousand_steps,
        )
        done = JobDone(measure, length, paid)
        return Lesson(lambda memory: learn(memory, now, success=True), done)

    # --- session

    @property
    def _model(self) -> ModelOffer:
        model = self._job.offer.offer.entry(self._job.submission.job)
        if model is None:
            raise ProtocolViolation("3.1", "the offer does not list the job's model")
        return model

    def _session(self, row: ChannelRow) -> ClientSession:
        job, domain, secret = self._job, self._context.domain, self._job.reply_secret
        key: JobId = job.id
        openers = Openers(
            canvas=lambda sealed, canvas: unseal(
                sealed, secret, canvas_context(domain, key, canvas)
            ),
            draft=lambda sealed, canvas, step: unseal(
                sealed, secret, draft_context(domain, key, canvas, step)
            ),
        )
        return ClientSession(
            job.submission.job,
            row.channel,
            self._model,
            domain,
            openers,
            outline=job.outline,
            receipts=tuple(self._receipts),
            resumed=self.sent or self._replay or job.prompt_tokens is not None,
        )


def _recorded(account: Account | None) -> int:
    """How many paid receipts the worker shows."""
    return account.voucher.count if account is not None else 0


def _told(watchdog: Watchdog, progress: Progress, now: float, wall: float) -> bool:
    """Tell the watchdog where the job is. Return whether it only waits."""
    if progress.queue_position:
        watchdog.queued(now)
    elif progress.paused_until:
        watchdog.paused(now, progress.paused_until - wall)
    else:
        watchdog.working(now, progress.canvas, progress.step, progress.prompt_tokens)
    return bool(progress.queue_position or progress.paused_until)
