"""The worker's front: streams come in here, their jobs are admitted, and streams end here.

A job may be submitted again while its stream is open. The newer stream then takes the job over,
because the client that returns knows better than we do that the old one is dead.

A submission goes through these steps. Each one adds one guarantee:

    submit                a cancelled stream does not stop it half way
    _submit_identified    the authorizer signed it, for this worker
    _submit_once          one submission of a job at a time
    _admit_new            the job can run here, its channel can pay, its prompt opens
    _admit_locked         the verdict holds, because nothing else moves the channel meanwhile
    _record_and_open      the job is durable before the engine starts it
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any, Final

from piecework_model.kinds.open import encode
from piecework_model.requests import EncodedContent
from piecework_node.engine.link import EngineEvent, EnginePaused, EngineResumed
from piecework_node.errors import (
    EngineUnavailable,
    JobUnusable,
    JournalConflict,
    JournalError,
    PromptRejected,
    SaltUsed,
)
from piecework_node.jobs import admission, auditing, prompts
from piecework_node.jobs.engine_events import EngineEventHandler
from piecework_node.jobs.own_test import OwnTests
from piecework_node.jobs.pausing import Pausing
from piecework_node.jobs.prompts import LimitOf, PromptQueue, TokenLimit
from piecework_node.jobs.terms import JobTimeouts, OperatorTerms
from piecework_node.jobs.time_limits import TimeLimits
from piecework_node.jobs.views import AdmissionViews
from piecework_node.journal.records import (
    ChannelSeen,
    FundingAuthorized,
    JournalRecord,
    StoredJob,
)
from piecework_node.keys.sealing import SealingKeyring
from piecework_node.runtime.cards import EngineCard, EngineCards, EngineEntry
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.credit import CreditAccounts
from piecework_node.runtime.faults import Code
from piecework_node.runtime.funding import authorization_in, better_funding, usable_funding
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import NO_CONTENT, LiveChannel, LiveJob
from piecework_node.runtime.openings import OpeningCheck
from piecework_node.runtime.recent import RECENT_JOBS
from piecework_node.runtime.requests import unpack_ids
from piecework_node.runtime.signing import JOURNAL
from piecework_node.runtime.sink import FrameSink
from piecework_node.runtime.write_offs import written_off
from piecework_node.times import now
from piecework_protocol.content import content_digest
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import (
    CancelJob,
    ClientFrame,
    PayVoucher,
    SubmitJob,
)
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.objects import Kind
from piecework_protocol.sealing import check_key, content_context, resume_context
from piecework_protocol.states import ENDED_STATES, JobState
from piecework_protocol.types import JobId
from piecework_protocol.wire import SignedOffer
from piecework_protocol.worker_session import AcceptedJob, StateRecord, WorkerSession

RETRY_S: Final = 1.0
"""After which a client may try again when two of its own requests crossed."""


class Worker:
    """All jobs of one worker. Call `recover` once before anything else."""

    def __init__(
        self,
        runtime: JobRuntime,
        channels: Channels,
        keyring: SealingKeyring,
        *,
        terms: OperatorTerms,
        timeouts: JobTimeouts,
        openings: OpeningCheck,
        log: Any,
    ) -> None:
        """`openings` refuses an authorization that the worker would not submit."""
        self._runtime, self._channels, self._keyring = runtime, channels, keyring
        self._engine_events = EngineEventHandler(runtime, keyring)
        if runtime.openings is not None:
            runtime.openings.sink = self._engine_events.reported
        self._credit = runtime.credit = CreditAccounts(channels, terms.credit)
        runtime.contradicted = partial(channels.faults.failed, JOURNAL, Code.JOURNAL_OLD)
        self._limits = TimeLimits(runtime, timeouts)
        self._log = log
        self._openings = openings
        self.pausing = {
            card.name: Pausing(runtime, card, self._jobs, longest_s=timeouts.pause_s, log=log)
            for card in runtime.cards
        }
        """By the name of the card."""
        for card in runtime.cards:
            runtime.metrics.begin_card(card.name)
        self.views = AdmissionViews(runtime, channels, self._credit, terms)
        self._prompts = PromptQueue(terms.jobs_per_channel)
        self.own_tests = OwnTests(runtime.cards, runtime.clock)

    # --- what others look at

    @property
    def runtime(self) -> JobRuntime:
        """What makes things happen to jobs."""
        return self._runtime

    @property
    def channels(self) -> Channels:
        """The channels that jobs run on."""
        return self._channels

    @property
    def cards(self) -> EngineCards:
        """What the jobs run on."""
        return self._runtime.cards

    @property
    def terms(self) -> OperatorTerms:
        """What new jobs are held to."""
        return self.views.terms

    @terms.setter
    def terms(self, terms: OperatorTerms) -> None:
        self.views.terms = terms

    @property
    def active(self) -> int:
        """Jobs that run, wait for a slot, or are being admitted and have a place."""
        return self.views.active

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken on, because the daemon is stopping."""
        return self.views.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self.views.draining = draining

    @property
    def streams(self) -> int:
        """Jobs with an open stream."""
        return sum(job.sink is not None for job in self._jobs())

    def _jobs(self) -> list[LiveJob]:
        return [job for channel in self._channels for job in channel.jobs.values()]

    def remember_offer(self, signed: SignedOffer) -> None:
        """Let jobs name this offer from now on. Call it when the offer is journaled."""
        self.views.remember_offer(signed)

    def check_length(self, size: int) -> None:
        """Check the length of a submission, in bytes, before anything in it is looked at.

        Raises:
            Refusal: its prompt cannot fit.
        """
        contexts = [card.facts.max_context for card in self.cards if card.facts is not None]
        if contexts:
            prompts.check_sealed_length(size, max(contexts))

    def has_paid(self, submission: SubmitJob) -> bool:
        """Whether a submission is of a channel that has paid here, and is signed by it."""
        channel = self._channels.get(submission.job.channel)
        if channel is None or channel.ledger.cumulative <= 0:
            return False
        try:
            admission.check_identity(submission, self.views.worker(submission))
        except Refusal:
            return False
        return True

    # --- start

    async def recover(self) -> None:
        """Take up what the journal holds. Jobs that ran wait, suspended, for their clients."""
        await self._channels.recover()
        self._credit.write_off(await written_off(self._runtime.journal))
        self._runtime.recent.load(await self._runtime.journal.recent_jobs(RECENT_JOBS))
        for stored in await self._runtime.journal.open_jobs():
            try:
                job = await self._revive(stored)
            except JournalError:
                raise
            except Exception as error:  # noqa: BLE001  contained: it ends this job alone
                await self._give_up(stored, error)
            else:
                job.channel.jobs[job.id] = job
        for job in self._jobs():
            await self._runtime.attempt(self._recover_locked(job), job)

    async def _give_up(self, stored: StoredJob, error: Exception) -> None:
        """End a job that cannot be taken up again. What it delivered stays owed."""
        self._runtime.note(error)
        if stored.state not in ENDED_STATES:
            failed = StateRecord(stored.id, JobState.FAILED, Reason.INTERNAL)
            await self._runtime.journal.append([failed])

    async def _recover_locked(self, job: LiveJob) -> None:
        async with job.channel.lock:
            await self._recover_job(job)

    async def _recover_job(self, job: LiveJob) -> None:
        unopened = len(job.committed) < job.session.canvases
        if not job.ended and (unopened or self._limits.is_late(job)):
            await self._limits.expire(job)
        else:
            job.detached_at = self._runtime.clock.monotonic()
            await self._runtime.perform(job, job.session.recovered())

    async def _revive(self, stored: StoredJob) -> LiveJob:
        """Return a job from the journal, with its channel."""
        submission = stored.submission
        channel = await self._channels.find(submission.job.channel, submission.channel)
        signed = await self._runtime.journal.offer(submission.job.offer)
        model = signed.offer.entry(submission.job) if signed else None
        if model is None:
            raise JobUnusable(f"the offer of job {stored.id.hex()} is not in the journal")
        accepted = AcceptedJob(
            stored.id,
            submission.job,
            submission.channel,
            model,
            stored.prompt_tokens,
            stored.at,
        )
        session = WorkerSession(
            accepted,
            self._runtime.domain,
            state=stored.state,
            reason=stored.reason,
            stored=stored.canvases,
        )
        job = LiveJob(session, self._channels.hold(channel), revived=True)
        if not job.ended and not self._limits.is_late(job):
            job.committed = [self._open_committed(stored, i) for i in range(len(stored.canvases))]
        return job

    def _open_committed(self, stored: StoredJob, canvas: int) -> tuple[int, ...]:
        if stored.submission.job.kind is Kind.OPEN:
            return ()
        context = resume_context(self._runtime.domain, stored.id, canvas)
        try:
            return unpack_ids(self._keyring.open(stored.canvases[canvas].resume_secret, context))
        except MalformedInput as error:
            raise JobUnusable(
                f"canvas {canvas} of job {stored.id.hex()} cannot be resumed: {error}"
            ) from error

    # --- submissions

    async def submit(self, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        """Take a stream's first frame: a new job, or a return to one.

        If the caller is cancelled meanwhile, the job is detached as soon as it is admitted.

        Raises:
            Refusal: the job is not admitted.
        """
        submitting = asyncio.ensure_future(self._submit_identified(submission, sink))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(lambda done: self._detach_late(done, sink))
            raise

    def _detach_late(self, done: asyncio.Future[LiveJob], sink: FrameSink) -> None:
        if not done.cancelled() and done.exception() is None:
            job = done.result()
            self._runtime.spawn(self._detach_stream(job, sink), job)

    async def _submit_identified(self, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        try:
            admission.check_identity(submission, self.views.worker(submission))
            return await self._submit_once(
                submission, submission.job.id(self._runtime.domain), sink
            )
        except EngineUnavailable as error:
            raise Refusal(
                Reason.ENGINE_UNAVAILABLE, str(error), retry_after_s=admission.PENDING_RETRY_S
            ) from None

    async def _submit_once(self, submission: SubmitJob, job_id: JobId, sink: FrameSink) -> LiveJob:
        if job_id in self.views.admitting:
            raise Refusal(
                Reason.JOB_BUSY, "this job is being admitted right now", retry_after_s=RETRY_S
            )
        self.views.look_at(job_id, submission)
        try:
            known = await self._find_job(submission, job_id)
            if known is None:
                return await self._admit_new(submission, job_id, sink)
            self.views.vet(job_id, known.entry)
            returning = self._return_to(known, submission, sink)
            return await self._runtime.shielded(returning, known)
        finally:
            self.views.looked_at(job_id)

    async def _find_job(self, submission: SubmitJob, job_id: JobId) -> LiveJob | None:
        channel = self._channels.get(submission.job.channel)
        if channel is not None and job_id in channel.jobs:
            return channel.jobs[job_id]
        stored = await self._runtime.journal.job(job_id)
        return await self._revive(stored) if stored is not None else None

    async def _admit_new(self, submission: SubmitJob, job_id: JobId, sink: FrameSink) -> LiveJob:
        job = submission.job
        admission.check_terms(submission, self.views.worker(submission))
        channel = await self._channels.find(job.channel, submission.channel)
        await self._channels.refresh(channel, authorization_in(submission))
        admission.check_channel(
            submission, self.views.worker(submission), self.views.channel(channel, submission)
        )
        self.views.vet(job_id)
        await self._check_opening(channel, submission)
        limit = partial(self.views.token_limit, channel, submission)
        async with self._prompts.turn(job.channel):
            entry = self.views.entry(submission)
            content = await self._open_content(submission, job_id, entry, limit)
        return await self._runtime.shielded(self._admit_locked(channel, submission, content, sink))

    async def _check_opening(self, channel: LiveChannel, submission: SubmitJob) -> None:
        known = usable_funding(channel.stored.funding, now(self._runtime.clock))
        funding = better_funding(known, authorization_in(submission))
        if funding is not None:
            await self._openings(channel, funding, taken=funding == known)

    async def _admit_locked(
        self,
        channel: LiveChannel,
        submission: SubmitJob,
        content: EncodedContent,
        sink: FrameSink,
    ) -> LiveJob:
        async with channel.lock:
            if self._channels.hold(channel) is not channel:
                raise Refusal(
                    Reason.JOB_BUSY,
                    "the channel is being opened by another job",
                    retry_after_s=RETRY_S,
                )
            try:
                accepted = admission.admit(
                    submission,
                    self.views.worker(submission),
                    self.views.channel(channel, submission),
                    content,
                )
            except Refusal:
                self._channels.release(channel)
                raise
            job = LiveJob(WorkerSession(accepted, self._runtime.domain), channel, content)
            job.sink, job.drafts = sink, submission.drafts
            before = channel.stored
            try:
                await self._record_and_open(job, submission)
            except JournalConflict as error:
                channel.stored = before
                channel.jobs.pop(job.id, None)
                self._channels.release(channel)
                if isinstance(error, SaltUsed):
                    raise _salt_used() from None
                raise
            except Exception:
                # Whether it was recorded is not certain. `abandon` waits for the lock and looks.
                self._runtime.spawn(self._runtime.abandon(job))
                raise
            return job

    async def _record_and_open(self, job: LiveJob, submission: SubmitJob) -> None:
        channel, accepted = job.channel, job.session.accepted
        time = now(self._runtime.clock)
        known = channel.stored.funding
        facts: list[JournalRecord] = [ChannelSeen(channel.id, channel.stored.channel)]
        if not channel.journaled:
            facts.append(self._channels.observed(channel))
        funding = better_funding(usable_funding(known, time), authorization_in(submission))
        if funding is not None and funding != known:
            facts.append(FundingAuthorized(channel.id, funding))
        facts.append(StoredJob(job.id, submission, accepted.prompt_tokens, accepted.accepted_at))
        channel.jobs[job.id] = job
        channel.stored = replace(channel.stored, funding=funding)
        await self._runtime.perform(job, job.session.open(0, channel.ledger), before=facts)
        job.opened = job.sink
        channel.journaled = True
        if funding is not None and funding.authorization.funded > channel.stored.deposit:
            self._channels.want_funding(channel)

    async def _return_to(self, job: LiveJob, submission: SubmitJob, sink: FrameSink) -> LiveJob:
        """Send a returning client what it lacks, and go on if the job is not over."""
        if submission.received > job.session.canvases:
            admission.check_taking_jobs(submission, self.views.worker(submission))
            message = "more receipts are claimed than were ever signed"
            raise Refusal(Reason.BROKEN_CLAUSE, message, metadata={"clause": "3.5"})
        if not job.session.is_known(submission.received, submission.last_receipt):
            message = "that is not the last receipt that this worker signed for the job"
            raise Refusal(Reason.BROKEN_CLAUSE, message, metadata={"clause": "3.5"})
        content = NO_CONTENT
        if not job.leaving:
            running = int(job.sequence is not None)
            view = self.views.worker(submission, job.entry, running=running)
            admission.check_return(submission, view)
            known = job.session.accepted.prompt_tokens
            limit = TokenLimit(known, lambda _: None)
            async with self._prompts.turn(job.channel.id):
                content = await self._open_content(submission, job.id, job.entry, lambda *_: limit)
            if content.prompt_tokens != known:
                raise Refusal(Reason.PROMPT_MISMATCH, "the prompt has another length than before")
        async with job.channel.lock:
            await self._take_over(job)
            job.sink, job.drafts, job.content = sink, submission.drafts, content
            job.detached_at = None
            job.channel.jobs[job.id] = job
            opened = job.session.open(submission.received, job.channel.ledger)
            await self._runtime.perform(job, opened)
            job.opened = job.sink
            self._runtime.report(job)
        return job

    async def _take_over(self, job: LiveJob) -> None:
        old = job.sink
        if old is None:
            return
        await self._runtime.detach(job)
        old.close(Refusal(Reason.JOB_BUSY, "a newer stream took the job over"))

    # --- later frames

    async def receive(self, job: LiveJob, sink: FrameSink, frame: ClientFrame) -> None:
        """Take a later frame of a stream. A broken clause ends the stream and frees its slot."""
        await self._runtime.shielded(self._receive(job, sink, frame), job)

    async def _receive(self, job: LiveJob, sink: FrameSink, frame: ClientFrame) -> None:
        """Take a frame when it is its turn.

        A voucher names what every voucher before it may have left open. So of those that wait, the
        newest goes first and is journaled, and the others find their jobs paid.
        """
        channel = job.channel
        if isinstance(frame, PayVoucher):
            count = frame.voucher.count
            channel.arriving.append(count)
            try:
                async with channel.lock:
                    if count >= max(channel.arriving):
                        await self._take(job, sink, frame)
                        return
            finally:
                channel.arriving.remove(count)
        async with channel.lock:
            await self._take(job, sink, frame)

    async def _take(self, job: LiveJob, sink: FrameSink, frame: ClientFrame) -> None:
        """Take a frame. The caller holds the channel's lock."""
        if job.sink is not sink:
            return
        try:
            if isinstance(frame, PayVoucher):
                await self._channels.pay(job.channel, frame, sink)
            elif isinstance(frame, CancelJob):
                await self._runtime.cancel(job)
            else:
                raise ProtocolViolation("2.4", "a second submission on one stream")
        except ProtocolViolation as violation:
            self._log.warning("clause broken", job=job.id, clause=violation.clause)
            await self._runtime.detach(job)
            clause = {"clause": violation.clause}
            sink.close(Refusal(Reason.BROKEN_CLAUSE, violation.message, metadata=clause))

    async def detach(self, job: LiveJob, sink: FrameSink) -> None:
        """Note that a stream is gone. One that a job does not have any more is never given back."""
        if job.sink is not sink:
            return
        await self._runtime.shielded(self._detach_stream(job, sink), job)

    async def _detach_stream(self, job: LiveJob, sink: FrameSink) -> None:
        async with job.channel.lock:
            if job.sink is sink:
                await self._runtime.detach(job)

    async def engine_event(self, card: EngineCard, event: EngineEvent) -> None:
        """Take the events of a card's engine, one after the other."""
        if isinstance(event, EnginePaused):
            self.pausing[card.name].paused(event)
        elif isinstance(event, EngineResumed):
            self.pausing[card.name].resumed()
        elif not self.own_tests.take(card, event):
            await self._engine_events.take(card, event)

    # --- time

    async def tick(self) -> None:
        """Enforce deadlines and the timeouts of payments and pauses.

        Call it about once a second.
        """
        moment = self._runtime.clock.monotonic()
        for job in self._jobs():
            await self._runtime.attempt(self._limits.hold(job, moment), job)

    async def distrust(self, why: str) -> None:
        """Take no job, and sign nothing more for jobs from before this start.

        The journal lacks what this worker has signed. `piecework worker recover` ends it.
        """
        self._channels.faults.failed(JOURNAL, Code.JOURNAL_OLD, why)
        for job in self._jobs():
            sink = job.sink
            if job.revived and not job.ended and sink is not None:
                await self.detach(job, sink)
                message = self._channels.faults.stopping
                line = message.public if message is not None else why
                sink.close(Refusal(Reason.CHAIN_UNAVAILABLE, line))

    def heartbeat(self) -> None:
        """Tell every listening client where its job is. Call it every PROGRESS_INTERVAL_MS."""
        for job in self._jobs():
            self._runtime.report(job)

    async def suspend_all(self) -> None:
        """Suspend what still runs and end every stream, because the daemon is stopping."""
        for job in self._jobs():
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

    async def _open_content(
        self, submission: SubmitJob, job_id: JobId, entry: EngineEntry | None, limit_of: LimitOf
    ) -> EncodedContent:
        job, domain = submission.job, self._runtime.domain
        card = None if entry is None else self.cards.encoder(entry)
        facts = None if card is None else card.engine.facts
        try:
            prompt = self._keyring.open(submission.sealed_content, content_context(domain, job_id))
        except MalformedInput as error:
            raise Refusal(Reason.CANNOT_OPEN_PROMPT, str(error)) from None
        if content_digest(job.salt, prompt) != job.content:
            raise Refusal(
                Reason.PROMPT_MISMATCH, "the prompt is not the one that the job commits to"
            )
        try:
            if card is None or facts is None:
                raise EngineUnavailable("the engine is starting")
            content = await prompts.open_content(prompt, job, facts)
            check_key(job.reply_key)
            if isinstance(content, OpenContent):
                await self._runtime.check_opening(content, submission.channel.payer)
                encoded = encode(content)
                prompts.check_prompt(encoded.prompt_tokens, content, facts)
                return encoded
            limit = limit_of(content, facts)
            if isinstance(content, AuditContent):
                encoded = await auditing.encoded(card.engine, facts, content, limit.most)
            else:
                encoded = await card.engine.encode(content, limit.most)
            limit.hold(encoded.prompt_tokens)
            prompts.check_prompt(encoded.prompt_tokens, content, facts)
            return encoded
        except PromptRejected as error:
            raise Refusal(Reason.PROMPT_REFUSED, str(error)) from None
        except MalformedInput as error:
            raise Refusal(Reason.MALFORMED, str(error)) from None


def _salt_used() -> Refusal:
    return Refusal(Reason.JOB_CONFLICT, "the salt was used for another job on this channel")
