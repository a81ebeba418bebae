"""Carry out what the sessions decide: records, then frames, then commands (clause 9.1).

One lock per channel is held from a decision until its records are durable and its frames are
queued. A unit of work that has begun is never cancelled half way (`shielded`). A stream that breaks
off waits for it.

An error of ours in a unit of work ends the job that the unit belongs to, and no other (`abandon`).
When the disk fails, nothing is promised any more: `failure` raises and the daemon stops.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final, NoReturn, Protocol, TypeVar

from piecework.base.clock import Clock
from piecework.chain.errors import SignerRefuses
from piecework.signer.policy import CONTRADICTS
from piecework_model.jobs import generation_request
from piecework_model.requests import Event, GenerationRequest
from piecework_node.engine.link import EngineLink
from piecework_node.errors import EngineUnavailable, JournalError
from piecework_node.evidence.steps import StepKeeper
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import ROLLED_BACK, JournalRecord, MetaSet
from piecework_node.metrics import Metrics
from piecework_node.runtime.cards import EngineCard, EngineCards
from piecework_node.runtime.credit import BLOCK_S, CreditAccounts
from piecework_node.runtime.live import NO_CONTENT, LiveJob
from piecework_node.runtime.pause import Pause
from piecework_node.runtime.recent import RecentJobs
from piecework_node.runtime.traces import RunningRequest
from piecework_node.times import now
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import Progress
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.pricing import canvases_for
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.states import ENDED_STATES, JobState
from piecework_protocol.types import Address, Signature, Timestamp
from piecework_protocol.worker_session import AllowCanvases, Outcome, StartEngine, StateRecord

T = TypeVar("T")
NO_CARD: Final = "no card with the profile of this job has a place for it"


class OpeningService(Protocol):
    """Where openings and audits are served (`jobs.opening.OpeningServer`).

    Its sequences are named as those of an engine, and their events are the same.
    """

    sink: Callable[[Event], Awaitable[None]] | None
    """Takes the events of what is served there."""

    async def check(self, content: OpenContent, payer: Address) -> None:
        """Raise `Refusal` if the steps cannot be asked for by this payer."""
        ...

    def start(self, request: GenerationRequest, engine: EngineLink) -> None:
        """Start a request for steps or an audit. engine: of the card that the job is on."""
        ...

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Let a sequence go on up to, not including, canvas `canvas_limit`."""
        ...

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        """End a sequence, at once or with the canvas that has begun.

        A `StoppedEvent` with what was done follows, or its last canvas.
        """
        ...

    async def close(self) -> None:
        """End what is served."""
        ...


class JobRuntime:
    """The one way to make something happen to a job. It owns the engine's sequences."""

    def __init__(
        self,
        journal: Journal,
        cards: EngineCards,
        *,
        domain: Domain,
        signer: AsyncSigner,
        clock: Clock,
        metrics: Metrics,
        log: Any,
        steps: StepKeeper | None = None,
        openings: OpeningService | None = None,
    ) -> None:
        """`steps` keeps what the leaves of finished canvases commit to.

        `openings` serves jobs of kinds `open` and `audit`, and the engines of the cards all others.
        """
        self.steps, self.openings = steps, openings
        self.journal, self.cards = journal, cards
        self._log = log
        self.domain, self.signer = domain, signer
        self.clock, self.metrics = clock, metrics
        self.sequences: dict[str, LiveJob] = {}
        """Jobs by the name of their sequence in the engine."""
        self.credit: CreditAccounts | None = None
        """What payers may owe. The worker sets it."""
        self.contradicted: Callable[[str], None] | None = None
        """Told that a signer knows better than the journal. The worker sets it."""
        self.recent = RecentJobs()
        self._sequence_number = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._failed = asyncio.Event()

    async def check_opening(self, content: OpenContent, payer: Address) -> None:
        """Check that steps can be asked for by this payer.

        Raises:
            Refusal: they cannot.
        """
        if self.openings is None:
            raise Refusal(Reason.NOT_OPENED, "this worker opens no steps")
        await self.openings.check(content, payer)

    async def perform(
        self,
        job: LiveJob,
        outcome: Outcome,
        *,
        before: Iterable[JournalRecord] = (),
        ledger: WorkerLedger | None = None,
    ) -> None:
        """Make an outcome durable, then visible. The caller holds the channel's lock.

        before: records that must be durable first, in the same commit.
        ledger: the channel's ledger after the outcome, if it changes.
        """
        channel = job.channel
        channel.committing = ledger
        try:
            await self.journal.append([*before, *outcome.records])
        finally:
            channel.committing = None
        if ledger is not None:
            channel.stored = replace(channel.stored, ledger=ledger)
        for record in outcome.records:
            if isinstance(record, StateRecord):
                self.metrics.moved(record.state)
        if job.sink is not None:
            again = not outcome.records  # of a job that is over, for a client that returns
            signed = [await self.sign(m, again=again) for m in outcome.to_sign]
            for frame in outcome.frames(signed):
                job.sink.send(frame)
        if self.command(job, outcome):
            self.rest(job)
        else:
            await self.perform(job, job.session.engine_lost())

    def command(self, job: LiveJob, outcome: Outcome) -> bool:
        """Pass an outcome's commands to the engine. Call it when the records are durable.

        Return False when there was no engine to stop, so that no answer will come.
        """
        for command in outcome.commands:
            if isinstance(command, StartEngine):
                self._start(job, command)
            elif isinstance(command, AllowCanvases):
                self._allow(job, command.canvas_limit)
                self._end_wait(job)
            elif job.card is None or not job.card.engine.ready:
                self.drop_sequence(job)
                return False
            elif job.sequence is not None:
                self._stop(job, job.card, job.sequence, finish_canvas=command.finish_canvas)
        return True

    def _start(self, job: LiveJob, command: StartEngine) -> None:
        """Start a sequence if there is credit for its next canvas, and park the job otherwise."""
        job.granted = max(job.granted, command.committed)
        if self._limit(job, command.canvas_limit) <= command.committed < command.canvas_limit:
            job.parked = command
        else:
            job.parked = None
            self._start_sequence(job, command)

    def press(self, job: LiveJob) -> None:
        """Let a job go on that waits for credit. The caller holds the channel's lock."""
        if job.parked is not None:
            self._start(job, job.parked)
        elif job.short_of_credit and job.sequence is not None and not job.leaving:
            self._allow(job, job.session.canvas_limit(job.channel.ledger))
        self._end_wait(job)

    def _end_wait(self, job: LiveJob) -> None:
        """Tell a client that its job goes on, if it was told to wait (clause 3.12).

        It pays no cancelled receipt before that.
        """
        if job.waits_told and self._paused_until(job) is None:
            self.report(job)

    def _start_sequence(self, job: LiveJob, command: StartEngine) -> None:
        self._sequence_number += 1
        card = job.card = self.cards.choose(job.entry, self.load, job.context)
        job.sequence = f"{job.id.hex()}-{self._sequence_number}"
        self.sequences[job.sequence] = job
        job.progress = job.shown = None
        request = generation_request(
            job.sequence,
            job.content,
            job.session.accepted.job.parameters,
            canvas_limit=self._limit(job, command.canvas_limit),
            committed=tuple(job.committed[: command.committed]),
            drafts=job.drafts,
            tenant=job.channel.id.hex(),
            keep_records=self.steps is not None,
        )
        if card is not None:
            facts = card.facts
            job.running = RunningRequest(
                request, facts.vocab_size if facts else 0, facts.end_ids if facts else frozenset()
            )
            beside = request.opening or request.auditing
            if self.openings is not None and beside is not None:
                self.openings.start(request, card.engine)
            else:
                card.engine.start(request)

    def _allow(self, job: LiveJob, canvas_limit: int) -> None:
        """Let a job's sequence go on, if it has one, as far as there is credit."""
        if job.sequence is None or job.card is None:
            return
        limit = self._limit(job, canvas_limit)
        if self.openings is not None and job.is_beside:
            self.openings.allow(job.sequence, limit)
        else:
            job.card.engine.allow(job.sequence, limit)

    def _stop(self, job: LiveJob, card: EngineCard, sequence: str, *, finish_canvas: bool) -> None:
        if self.openings is not None and job.is_beside:
            self.openings.stop(sequence, finish_canvas=finish_canvas)
        else:
            card.engine.stop(sequence, finish_canvas=finish_canvas)

    async def detach(self, job: LiveJob) -> None:
        """Note that a job's stream is gone. The caller holds the channel's lock."""
        job.sink, job.content = None, NO_CONTENT
        job.detached_at = self.clock.monotonic()
        await self.perform(job, job.session.disconnected())

    async def cancel(self, job: LiveJob, reason: Reason | None = None) -> None:
        """End a job for its client, or for the clock. The caller holds the channel's lock.

        In a pause the canvas in progress is not charged (clause 3.12).
        """
        if self.pause_of(job) is not None and not job.leaving:
            await self.give_up(job, job.session.cancel(reason, paused=True))
        else:
            await self.perform(job, job.session.cancel(reason))

    async def give_up(self, job: LiveJob, outcome: Outcome) -> None:
        """Perform an outcome that charges nothing for the canvas in progress.

        The caller holds the channel's lock.
        """
        self.drop_sequence(job)
        await self.perform(job, outcome)

    def drop_sequence(self, job: LiveJob) -> None:
        """Free a job's place in the engine, if it has one. What it still reports is ignored."""
        sequence, card = job.sequence, job.card
        self.sequence_ended(job)
        if sequence is not None and card is not None:
            self._stop(job, card, sequence, finish_canvas=False)

    def sequence_ended(self, job: LiveJob) -> None:
        """Note that the engine has nothing of a job any more."""
        sequence, job.sequence = job.sequence, None
        job.progress = job.shown = job.parked = job.running = job.card = None
        job.granted, job.short_of_credit = job.session.canvases, False
        if sequence is not None:
            del self.sequences[sequence]

    def report(self, job: LiveJob) -> None:
        """Tell the client where its job is, if it listens and the job is not over."""
        if job.sink is None or job.sink is not job.opened or job.ended:
            return
        done, until = job.progress, self._paused_until(job)
        job.waits_told = until is not None
        if until is not None:
            step = (done.steps, done.prompt_tokens) if done else (0, 0)
            job.sink.send(Progress(job.id, job.session.canvases, *step, paused_until=until))
        elif done is None:
            position = self._place(job)
            job.sink.send(Progress(job.id, job.session.canvases, 0, 0, queue_position=position))
        else:
            job.sink.send(Progress(job.id, done.canvas, done.steps, done.prompt_tokens))

    def _paused_until(self, job: LiveJob) -> Timestamp | None:
        """When a job goes on that waits for the owner or for credit. None: it does not wait so.

        A canvas that has begun goes on while the next one waits for credit. A job whose client has
        left does not wait: what was done of its canvas is about to be charged.
        """
        if job.leaving:
            return None
        pause = self.pause_of(job)
        if pause is not None:
            return pause.until
        if job.short_of_credit and job.session.canvases >= job.granted:
            return Timestamp(now(self.clock) + int(BLOCK_S))
        return None

    def pause_of(self, job: LiveJob) -> Pause | None:
        """The pause in which a job waits: that of its card, or of every card of its entry."""
        return job.card.pause if job.card is not None else self.cards.pause_of(job.entry)

    @property
    def load(self) -> Counter[str]:
        """How many jobs run or wait on each card, by its name."""
        return Counter(job.card.name for job in self.sequences.values() if job.card is not None)

    def _place(self, job: LiveJob) -> int:
        """A job's place among those that wait for its card, from 1. 0: it does not wait there."""
        place = 0
        for other in self.sequences.values():
            place += other.card is job.card and other.progress is None
            if other is job:
                return place if job.progress is None else 0
        return 0

    def _limit(self, job: LiveJob, limit: int) -> int:
        """Give the first canvas that may not start: more are reserved as far as credit goes."""
        last = canvases_for(
            job.session.accepted.model, job.session.accepted.job.parameters.max_tokens
        )
        return self.credit.grant(job, min(limit, last)) if self.credit else limit

    def rest(self, job: LiveJob) -> None:
        """Note whether the client has to act next. Forget a job that is over and paid."""
        limit = job.session.canvas_limit(job.channel.ledger)
        waits = job.ended or job.session.canvases >= limit
        job.waiting_since = self.clock.monotonic() if waits else None
        if not job.ended or job.unpaid:
            return
        sink, job.sink, job.content = job.sink, None, NO_CONTENT
        if sink is not None:
            sink.close(None)
        job.channel.jobs.pop(job.id, None)

    async def sign(self, message: TypedData, *, again: bool = False) -> Signature:
        """Sign as the operator. A signer that is away is waited for, with the channel's lock held.

        Args:
            message: A typed object of the operator.
            again: Whether it says nothing new. A contradiction in it was noticed before, and a
                client that returns to its job must not stop a worker that is recovered since.

        Raises:
            Refusal: the daemon stops while the signer is away. The records are durable, so the
                next start signs again.
            SignerRefuses: it has signed something else about the same work. The journal knows from
                now on that it is old.
        """
        try:
            return await self.signer.typed(self.domain, message)
        except SignerRefuses as error:
            if error.refusal == CONTRADICTS and not again:
                await self.journal.append([MetaSet(ROLLED_BACK, str(error))])
                if self.contradicted is not None:
                    self.contradicted(str(error))
            raise

    # --- units of work

    async def shielded(self, work: Coroutine[Any, Any, T], job: LiveJob | None = None) -> T:
        """Run to the end even if the caller is cancelled, so that no decision loses its effects.

        job: it ends, alone, if an error of ours breaks the work off. The caller gets the error.
        """
        return await asyncio.shield(self.spawn(work, job))

    async def attempt(self, work: Coroutine[Any, Any, None], job: LiveJob) -> None:
        """As `shielded`, for work that no stream waits for. An error has ended the job by then."""
        try:
            await self.shielded(work, job)
        except JournalError:
            raise
        except Exception:  # noqa: BLE001  `_unit` has contained and logged it
            return

    def spawn(self, work: Coroutine[Any, Any, T], job: LiveJob | None = None) -> asyncio.Task[T]:
        """Start a unit of work that nobody can cancel."""
        task = asyncio.ensure_future(self._unit(work, job))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def wait_idle(self) -> None:
        """Wait for every unit of work that has begun."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def failure(self) -> NoReturn:
        """Wait for the first error that nothing can contain, and raise it."""
        await self._failed.wait()
        raise self._error or RuntimeError("a unit of work failed")

    async def _unit(self, work: Coroutine[Any, Any, T], job: LiveJob | None) -> T:
        try:
            return await work
        except (Refusal, EngineUnavailable, JournalError):
            raise
        except Exception as error:
            self.note(error, job)
            if job is not None:
                await self.abandon(job)
            raise

    def contain(self, error: Exception, job: LiveJob) -> None:
        """End a job after an error, once its channel's lock is free. For callers that hold it.

        Raises:
            JournalError: the error is one that ends the daemon.
        """
        if isinstance(error, JournalError):
            raise error
        self.note(error, job)
        self.spawn(self.abandon(job))

    def note(self, error: Exception, job: LiveJob | None = None) -> None:
        """Log an error of ours that was contained."""
        name, known = type(error).__name__, {"job": job.id} if job is not None else {}
        self._log.error("contained", error_class=name, error=str(error), **known)
        self.metrics.note(now(self.clock), "job", f"{name}: {error}")
        self.metrics.contained()

    async def abandon(self, job: LiveJob) -> None:
        """End one job whose state in memory may be wrong. What the journal holds is the truth.

        Its delivered canvases stay owed. The other jobs of its channel go on.
        """
        async with job.channel.lock:
            sink, job.sink, job.content = job.sink, None, NO_CONTENT
            job.channel.jobs.pop(job.id, None)
            self.drop_sequence(job)
            stored = await self.journal.job(job.id)
            if stored is not None and stored.state not in ENDED_STATES:
                failed = StateRecord(job.id, JobState.FAILED, Reason.INTERNAL)
                await self.journal.append([failed])
                self.metrics.moved(failed.state)
            known = await self.journal.channel(job.channel.id)
            if known is not None:
                job.channel.stored = replace(job.channel.stored, ledger=known.ledger)
        if sink is not None:
            sink.close(Refusal(Reason.INTERNAL, "the worker failed on this job"))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or (isinstance(error, Exception) and not isinstance(error, JournalError)):
            return
        if self._error is None:
            self._error = error
            self._failed.set()
