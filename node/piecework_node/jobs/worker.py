"""The worker's front: streams come in here, are admitted, and go away again.

A job that is submitted again while its stream is open is taken over by the newer stream: the client
that comes back knows better than we do that the old one is dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from piecework_node.engine.link import EngineEvent
from piecework_node.errors import EngineUnavailable, JournalError, PromptRejected
from piecework_node.jobs import admission
from piecework_node.jobs.admission import AcceptedTerms, AdmissionView, Terms
from piecework_node.jobs.channels import Cashier, ChannelSource, Payments
from piecework_node.jobs.engine_events import EngineEventHandler
from piecework_node.jobs.live import (
    FrameSink,
    LiveChannel,
    LiveJob,
    better_funding,
    unpack_ids,
    usable_funding,
)
from piecework_node.jobs.runtime import Execution
from piecework_node.journal.records import (
    ChannelSeen,
    FundingAuthorized,
    JobAdmitted,
    JournalRecord,
    StoredJob,
)
from piecework_protocol.content import decode_prompt, prompt_digest
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import CancelJob, ClientFrame, PayVoucher, SubmitJob
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel, CloseChannel, Offer
from piecework_protocol.pricing import worst_case
from piecework_protocol.sealing import canvas_context, prompt_context, resume_context, seal
from piecework_protocol.states import JobState
from piecework_protocol.types import Address, Amount, ChannelId, Digest, JobId, Signature
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import AcceptedJob, WorkerSession

RETRY_S = 1.0
"""After which a client may try again when two of its own requests crossed."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Times after which the worker stops waiting, in seconds."""

    payment_timeout_s: float
    """For a voucher, while a row is held or after a job's end."""
    channel_refresh_s: float
    """Age at which the chain's word on a channel is asked for again."""
    chain_outage_s: float
    """Age at which it can no longer be relied on."""


class Worker:
    """All jobs and channels of one worker. Transport, engine, chain and disk are handed in."""

    def __init__(
        self,
        execution: Execution,
        chain: ChannelSource,
        payments: Payments,
        *,
        receiver: Address,
        terms: Terms,
        policy: Policy,
    ) -> None:
        self._x = execution
        self._cashier = Cashier(execution, chain, payments, policy.channel_refresh_s)
        self._engine_events = EngineEventHandler(execution)
        self._payments = payments
        self.receiver, self.terms, self.policy = receiver, terms, policy
        self.draining = False
        self.fault: str | None = None
        """Why nothing new is taken on; None when all is well."""
        self._entering: set[JobId] = set()
        self._offers: dict[Digest, Offer] = {}

    # --- what others look at

    @property
    def books(self) -> Iterable[LiveChannel]:
        """Every channel that matters."""
        return self._x.books.values()

    def book(self, channel: ChannelId) -> LiveChannel | None:
        """One channel."""
        return self._x.books.get(channel)

    @property
    def active(self) -> int:
        """Jobs that run, wait for a row, or are being admitted."""
        return len(self._x.rows) + len(self._entering)

    @property
    def streams(self) -> int:
        """Jobs with an open stream."""
        return sum(job.sink is not None for book in self.books for job in book.jobs.values())

    @property
    def exposure(self) -> Amount:
        """Base units delivered and not paid for."""
        return Amount(sum(u.amount for book in self.books for u in book.ledger.unpaid.values()))

    def remember_offer(self, signed: SignedOffer) -> None:
        """Jobs may name this offer from now on. Call when it is journaled."""
        now = self._x.clock.now()
        kept = {
            digest: offer for digest, offer in self._offers.items() if offer.expires_at > now - 60
        }
        self._offers = {**kept, Digest(self._x.domain.digest(signed.offer)): signed.offer}

    # --- start

    async def recover(self) -> None:
        """Take up what the journal holds. Jobs that ran are suspended until their clients come
        back."""
        for stored in await self._x.journal.channels():
            self._x.books[stored.id] = LiveChannel.of(stored)
        for job in await self._x.journal.open_jobs():
            live = await self._revive(job)
            live.book.jobs[live.id] = live
        for book in list(self.books):
            for live in list(book.jobs.values()):
                live.pending = book.committed > book.deposit
                async with book.lock:
                    unopened = len(live.committed) < live.session.canvases
                    if not live.ended and (unopened or self._is_late(live)):
                        await self._x.perform(
                            live, live.session.failed(Reason.EXPIRED, "the deadline passed")
                        )
                    elif live.session.state in (JobState.ACCEPTED, JobState.RUNNING):
                        await self._x.perform(live, live.session.disconnected())

    async def _revive(self, stored: StoredJob) -> LiveJob:
        """A job from the journal, with its channel."""
        submission = stored.submission
        book = await self._find_book(submission)
        signed = await self._x.journal.offer(submission.job.offer)
        model = signed.offer.model(submission.job.model) if signed else None
        if model is None:
            raise JournalError(f"the offer of job {stored.id.hex()} is not in the journal")
        accepted = AcceptedJob(
            stored.id,
            submission.job,
            submission.channel,
            model,
            stored.prompt_tokens,
            stored.credit_window,
        )
        session = WorkerSession(
            accepted, self._x.domain, state=stored.state, stored=stored.canvases
        )
        reserve = worst_case(model, submission.job.parameters, stored.prompt_tokens)
        job = LiveJob(session, self._x.books.setdefault(book.id, book), reserve)
        if not job.ended and not self._is_late(job):
            job.committed = [self._open_committed(stored, i) for i in range(len(stored.canvases))]
        return job

    def _is_late(self, job: LiveJob) -> bool:
        """Whether the deadline has passed. Keys that its canvases are sealed to may be gone by
        then."""
        return job.session.accepted.job.deadline < self._x.clock.now()

    def _open_committed(self, stored: StoredJob, canvas: int) -> tuple[int, ...]:
        context = resume_context(self._x.domain, stored.id, canvas)
        try:
            return unpack_ids(self._x.keys.open(stored.resume_secrets[canvas], context))
        except MalformedInput as error:
            raise JournalError(
                f"canvas {canvas} of job {stored.id.hex()} cannot be resumed: {error}"
            ) from error

    # --- streams

    async def submit(self, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        """A stream's first frame: a new job, or the same one again. `Refusal` says why not.

        If the caller is cancelled meanwhile, the job is detached as soon as it has been let in.
        """
        entering = asyncio.ensure_future(self._submit(submission, sink))
        try:
            return await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(lambda done: self._left_while_entering(done, sink))
            raise

    def _left_while_entering(self, done: asyncio.Future[LiveJob], sink: FrameSink) -> None:
        if not done.cancelled() and done.exception() is None:
            self._x.spawn(self._detach_stream(done.result(), sink))

    async def _submit(self, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        try:
            admission.check_identity(submission, self._view(submission))
            return await self._enter(submission, submission.job.id(self._x.domain), sink)
        except EngineUnavailable as error:
            raise Refusal(
                Reason.ENGINE_UNAVAILABLE, str(error), retry_after_s=admission.PENDING_RETRY_S
            ) from None

    async def _enter(self, submission: SubmitJob, job_id: JobId, sink: FrameSink) -> LiveJob:
        if job_id in self._entering:
            raise Refusal(
                Reason.JOB_BUSY, "this very job is being let in right now", retry_after_s=RETRY_S
            )
        self._entering.add(job_id)
        try:
            known = await self._known(submission, job_id)
            if known is None:
                return await self._let_in(submission, job_id, sink)
            return await self._x.whole(self._come_back(known, submission, sink))
        finally:
            self._entering.discard(job_id)

    async def _known(self, submission: SubmitJob, job_id: JobId) -> LiveJob | None:
        book = self._x.books.get(submission.job.channel)
        if book is not None and job_id in book.jobs:
            return book.jobs[job_id]
        stored = await self._x.journal.job(job_id)
        return await self._revive(stored) if stored is not None else None

    async def _find_book(self, submission: SubmitJob) -> LiveChannel:
        channel = submission.job.channel
        known = self._x.books.get(channel)
        if known is not None:
            return known
        stored = await self._x.journal.channel(channel)
        if stored is not None:
            return self._x.books.setdefault(channel, LiveChannel.of(stored))
        return self._x.books.get(channel) or LiveChannel(
            channel, submission.channel, WorkerLedger(channel)
        )

    async def _let_in(self, submission: SubmitJob, job_id: JobId, sink: FrameSink) -> LiveJob:
        admission.check_terms(submission, self._own_view(submission))
        other = await self._x.journal.job_with_salt(submission.job.channel, submission.job.salt)
        if other is not None:
            raise Refusal(Reason.JOB_CONFLICT, "the salt was used for another job on this channel")
        book = await self._find_book(submission)
        await self._cashier.refresh(book, submission)
        admission.check_channel(
            submission, self._own_view(submission), self._channel_view(book, submission)
        )
        prompt_ids = await self._open_prompt(submission, job_id)
        return await self._x.whole(self._admit(book, submission, prompt_ids, sink))

    async def _admit(
        self, book: LiveChannel, submission: SubmitJob, prompt_ids: tuple[int, ...], sink: FrameSink
    ) -> LiveJob:
        async with book.lock:
            if self._x.books.setdefault(book.id, book) is not book:
                raise Refusal(
                    Reason.JOB_BUSY,
                    "the channel is being opened by another job",
                    retry_after_s=RETRY_S,
                )
            try:
                verdict = admission.admit(
                    submission,
                    self._own_view(submission),
                    self._channel_view(book, submission),
                    len(prompt_ids),
                )
                if any(
                    j.session.accepted.job.salt == submission.job.salt for j in book.jobs.values()
                ):
                    raise Refusal(
                        Reason.JOB_CONFLICT, "the salt was used for another job on this channel"
                    )
            except Refusal:
                if not book.journaled and not book.jobs:
                    del self._x.books[book.id]
                raise
            return await self._begin(book, submission, verdict, prompt_ids, sink)

    async def _begin(
        self,
        book: LiveChannel,
        submission: SubmitJob,
        verdict: AcceptedTerms,
        prompt_ids: tuple[int, ...],
        sink: FrameSink,
    ) -> LiveJob:
        accepted, now = verdict.accepted, self._x.clock.now()
        session = WorkerSession(accepted, self._x.domain)
        job = LiveJob(session, book, verdict.reserve, prompt_ids, pending=verdict.pending)
        job.sink, job.drafts = sink, submission.drafts
        facts: list[JournalRecord] = [ChannelSeen(book.id, book.channel)]
        if not book.journaled:
            facts.append(self._cashier.observed(book))
        funding = better_funding(usable_funding(book.funding, now), submission.funding)
        if funding is not None and funding != book.funding:
            facts.append(FundingAuthorized(book.id, funding))
        facts.append(JobAdmitted(job.id, submission, len(prompt_ids), accepted.credit_window, now))
        book.jobs[job.id], book.funding = job, funding
        await self._x.perform(job, session.open(0, book.ledger), before=facts)
        book.journaled = True
        if funding is not None and funding.authorization.deposit > book.deposit:
            self._payments.funding_wanted(book.id)
        return job

    async def _come_back(self, job: LiveJob, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        """The client returned to a job: replay what it lacks, and go on if the job is not over."""
        if submission.received > job.session.canvases:
            message = "more receipts are claimed than were ever signed"
            raise Refusal(Reason.BROKEN_CLAUSE, message, metadata={"clause": "3.5"})
        prompt_ids: tuple[int, ...] = ()
        if not job.ended:
            running = int(job.run is not None)
            admission.check_return(submission, _with_fewer(self._own_view(submission), running))
            prompt_ids = await self._open_prompt(submission, job.id)
            if len(prompt_ids) != job.session.accepted.prompt_tokens:
                raise Refusal(Reason.PROMPT_MISMATCH, "the prompt has another length than before")
        async with job.book.lock:
            await self._take_over(job)
            job.sink, job.drafts, job.prompt_ids = sink, submission.drafts, prompt_ids
            job.book.jobs[job.id] = job
            await self._x.perform(job, job.session.open(submission.received, job.book.ledger))
        return job

    async def _take_over(self, job: LiveJob) -> None:
        old = job.sink
        if old is None:
            return
        await self._detach(job)
        old.close(Refusal(Reason.JOB_BUSY, "a newer stream took the job over"))

    async def receive(self, job: LiveJob, sink: FrameSink, frame: ClientFrame) -> None:
        """A later frame of a stream. A broken clause ends the stream and frees the row."""
        await self._x.whole(self._receive(job, sink, frame))

    async def _receive(self, job: LiveJob, sink: FrameSink, frame: ClientFrame) -> None:
        async with job.book.lock:
            if job.sink is not sink:
                return
            try:
                if isinstance(frame, PayVoucher):
                    await self._cashier.paid(job.book, frame, sink)
                elif isinstance(frame, CancelJob):
                    await self._x.perform(job, job.session.cancel())
                else:
                    raise ProtocolViolation("2.4", "a second submission on one stream")
            except ProtocolViolation as violation:
                self._x.log.warning("clause broken", job=job.id, clause=violation.clause)
                await self._detach(job)
                clause = {"clause": violation.clause}
                sink.close(Refusal(Reason.BROKEN_CLAUSE, violation.message, metadata=clause))

    async def detach(self, job: LiveJob, sink: FrameSink) -> None:
        """The stream is gone."""
        await self._x.whole(self._detach_stream(job, sink))

    async def _detach_stream(self, job: LiveJob, sink: FrameSink) -> None:
        async with job.book.lock:
            if job.sink is sink:
                await self._detach(job)

    async def _detach(self, job: LiveJob) -> None:
        job.sink, job.prompt_ids = None, ()
        await self._x.perform(job, job.session.disconnected())

    # --- the other parts

    async def engine_event(self, event: EngineEvent) -> None:
        """Something happened in the engine. Call with one event after the other."""
        await self._engine_events.take(event)

    async def close_channel(
        self, channel: Channel, final: CloseChannel, signature: Signature
    ) -> tuple[Signature, bytes]:
        """Agree that a channel's latest voucher is its last, and bring that to the chain.

        Returns the operator's signature and the transaction's hash, which is empty when the chain
        does not take it now. Asking again gives the same answer. `Refusal` says why not.
        """
        return await self._cashier.close(channel, final, signature)

    async def observe(self, channel: ChannelId) -> None:
        """Ask the chain where a channel stands, and act on it. `PieceworkError` when it does not
        answer."""
        await self._cashier.observe(channel)

    # --- time

    async def tick(self) -> None:
        """Deadlines and patience. Call about once a second."""
        moment = self._x.clock.monotonic()
        for book in list(self.books):
            for job in list(book.jobs.values()):
                await self._x.whole(self._tick_job(job, moment))

    async def _tick_job(self, job: LiveJob, moment: float) -> None:
        async with job.book.lock:
            if not job.ended and self._is_late(job):
                await self._x.perform(
                    job, job.session.failed(Reason.EXPIRED, "the deadline passed")
                )
            since, sink = job.waiting_since, job.sink
            if sink is None or since is None or moment - since < self.policy.payment_timeout_s:
                return
            refusal = (
                Refusal(Reason.UNPAID_RECEIPTS, "no voucher came in time") if job.unpaid else None
            )
            await self._detach(job)
            sink.close(refusal)

    async def suspend_all(self) -> None:
        """Suspend what still runs and end every stream: the daemon is stopping."""
        for book in list(self.books):
            for job in list(book.jobs.values()):
                sink = job.sink
                if sink is not None:
                    await self.detach(job, sink)
                    sink.close(
                        Refusal(
                            Reason.DRAINING,
                            "the worker is shutting down",
                            retry_after_s=admission.CHAIN_RETRY_S,
                        )
                    )

    # --- views

    async def _open_prompt(self, submission: SubmitJob, job_id: JobId) -> tuple[int, ...]:
        job, domain = submission.job, self._x.domain
        try:
            prompt = self._x.keys.open(submission.sealed_prompt, prompt_context(domain, job_id))
        except MalformedInput as error:
            raise Refusal(Reason.CANNOT_OPEN_PROMPT, str(error)) from None
        if prompt_digest(job.salt, prompt) != job.prompt:
            raise Refusal(
                Reason.PROMPT_MISMATCH, "the prompt is not the one that the job commits to"
            )
        try:
            messages = decode_prompt(prompt)
            seal(b"", job.reply_key, canvas_context(domain, job_id, 0))
            return await self._x.engine.encode_prompt(messages)
        except (MalformedInput, PromptRejected) as error:
            raise Refusal(Reason.MALFORMED, str(error)) from None

    def _view(self, submission: SubmitJob) -> AdmissionView:
        facts = self._x.engine.facts
        return AdmissionView(
            now=self._x.clock.now(),
            domain=self._x.domain,
            operator=self._x.signer.address,
            receiver=self.receiver,
            terms=self.terms,
            offer=self._offers.get(submission.job.offer),
            serving={facts.digest: facts.service} if facts else {},
            active=self.active,
            engine_ready=self._x.engine.ready,
            draining=self.draining,
            fault=self.fault,
        )

    def _own_view(self, submission: SubmitJob) -> AdmissionView:
        """The view of a job that is itself being admitted and must not count against itself."""
        return _with_fewer(self._view(submission), 1)

    def _channel_view(self, book: LiveChannel, submission: SubmitJob) -> admission.ChannelView:
        now = self._x.clock.now()
        mine = (book.channel.payer, book.channel.token)
        elsewhere = sum(
            other.pending_funding(now)
            for other in self.books
            if other.id != book.id and (other.channel.payer, other.channel.token) == mine
        )
        return book.view(
            fresh=self._cashier.age(book) < self.policy.chain_outage_s,
            offered=submission.funding,
            now=now,
            pooled=max(0, book.pooled - elsewhere),
        )


def _with_fewer(view: AdmissionView, count: int) -> AdmissionView:
    return replace(view, active=max(0, view.active - count))
