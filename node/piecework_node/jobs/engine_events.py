"""Apply the engines' events to jobs: drafts, canvases, failures, lost and returned processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    FailedEvent,
    ProgressEvent,
    StoppedEvent,
)
from piecework_node.engine.link import (
    EngineEvent,
    EngineGone,
    EngineLost,
    EnginePaused,
    EngineReady,
    EngineResumed,
)
from piecework_node.journal.records import EndedJob
from piecework_node.keys.sealing import SealingKeyring
from piecework_node.runtime.cards import EngineCard
from piecework_node.runtime.jobs import NO_CARD, JobRuntime
from piecework_node.runtime.live import LiveJob
from piecework_node.runtime.requests import pack_ids
from piecework_node.runtime.sink import FrameSink
from piecework_node.times import now
from piecework_protocol.content import output_digest
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.kinds import KINDS, Output
from piecework_protocol.kinds.open import OpenOutput
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import Finish, Kind, Service
from piecework_protocol.openings import KeptCanvas, pack_records
from piecework_protocol.sealing import canvas_context, draft_context, resume_context, seal
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Digest
from piecework_protocol.worker_session import CanvasResult, StoppedEngine, StoredCanvas

_OUTPUTS: Final[Mapping[Kind, Callable[[CanvasEvent], Output]]] = {
    Kind.TEXT: lambda event: TextOutput(event.charged_ids, event.segments),
    Kind.READ: lambda event: ReadOutput(event.answers),
    Kind.OPEN: lambda event: event.opened or OpenOutput(),
}
"""What a client gets of a canvas, by the job's kind."""


class EngineEventHandler:
    """Takes the events of each engine, one after the other."""

    def __init__(self, runtime: JobRuntime, keyring: SealingKeyring) -> None:
        self._runtime, self._keyring = runtime, keyring

    async def take(self, card: EngineCard, event: EngineEvent) -> None:
        """Apply one event of a card."""
        if isinstance(event, EngineLost):
            self._runtime.metrics.engine_lost(card.name)
            self._runtime.metrics.note(now(self._runtime.clock), "engine", event.message)
            await self._each(self._on(card), self._sequence_lost)
        elif isinstance(event, EngineGone):
            self._runtime.metrics.note(now(self._runtime.clock), "engine", event.message)
            await self._each(self._on(card), self._move)
        elif isinstance(event, EngineReady):
            await self._each(self._on(card), self._move)
            await self._each(self._waiting_for(card), self._take_in)
        elif not isinstance(event, EnginePaused | EngineResumed):
            await self.reported(event)

    async def reported(self, event: Event) -> None:
        """Apply what is reported of a sequence, by its engine or by what serves openings."""
        if isinstance(event, DraftEvent):
            self._draft(event)
        elif isinstance(event, ProgressEvent):
            self._progress(event)
        else:
            job = self._runtime.sequences.get(event.request_id)
            if job is not None:
                await self._runtime.attempt(self._sequence_event(job, event), job)

    def _on(self, card: EngineCard) -> list[LiveJob]:
        return [job for job in self._runtime.sequences.values() if job.card is card]

    def _waiting_for(self, card: EngineCard) -> list[LiveJob]:
        """The jobs of a card's entry that are on no card that can take a step."""
        return [
            job
            for job in self._runtime.sequences.values()
            if job.entry == card.entry and (job.card is None or not job.card.ready)
        ]

    async def _each(self, jobs: list[LiveJob], work: Callable[[LiveJob], Awaitable[None]]) -> None:
        """Do something to sequences, one after the other. Some end or start again meanwhile."""

        async def locked(job: LiveJob, sequence: str | None) -> None:
            async with job.channel.lock:
                if sequence is not None and job.sequence == sequence:
                    await work(job)

        for job, sequence in [(job, job.sequence) for job in jobs]:
            await self._runtime.attempt(locked(job, sequence), job)

    def _progress(self, event: ProgressEvent) -> None:
        job = self._runtime.sequences.get(event.request_id)
        if job is not None:
            job.progress = event
            self._runtime.report(job)

    def _draft(self, event: DraftEvent) -> None:
        job = self._runtime.sequences.get(event.request_id)
        drafted = job is not None and job.session.accepted.job.kind is Kind.TEXT
        if job is None or not drafted or job.sink is None or not job.drafts:
            return
        try:
            self._send_draft(job, job.sink, event)
        except Exception as error:  # noqa: BLE001  contained: it ends this job alone
            self._runtime.contain(error, job)

    def _send_draft(self, job: LiveJob, sink: FrameSink, event: DraftEvent) -> None:
        output = TextOutput(event.token_ids, event.segments).encode()
        context = draft_context(self._runtime.domain, job.id, event.canvas, event.step)
        sealed = seal(output, job.session.accepted.job.reply_key, context)
        for frame in job.session.draft(event.canvas, event.step, sealed).frames():
            if sink.send(frame):
                job.shown = event

    async def _sequence_event(
        self, job: LiveJob, event: CanvasEvent | FailedEvent | StoppedEvent
    ) -> None:
        async with job.channel.lock:
            if job.sequence != event.request_id:
                return
            if isinstance(event, FailedEvent):
                await self._sequence_failed(job, event)
            elif isinstance(event, StoppedEvent):
                await self._stopped(job, event)
            else:
                await self._canvas(job, event)

    async def _canvas(self, job: LiveJob, event: CanvasEvent) -> None:
        try:
            result = self._result(job, event)
        except MalformedInput as error:
            await self._runtime.perform(job, job.session.failed(Reason.ENGINE_FAILED, str(error)))
            return
        kept = _kept(job, event)
        outcome, ledger = job.session.canvas_finished(result, job.channel.ledger)
        job.committed.append(event.token_ids)
        job.shown = None
        if result.finish is not Finish.MORE:
            self._runtime.sequence_ended(job)
        await self._runtime.perform(job, outcome, ledger=ledger)
        self._keep(job, kept)
        for record in outcome.records:
            if isinstance(record, StoredCanvas):
                self._runtime.metrics.delivered(record.receipt)
                self._runtime.recent.ended(EndedJob(job.session.accepted.job.model, record.receipt))

    async def _stopped(self, job: LiveJob, event: StoppedEvent) -> None:
        """Charge what was done of a canvas whose client has left."""
        try:
            report = self._report_of(job, event)
        except MalformedInput as error:
            self._runtime.sequence_ended(job)
            await self._runtime.perform(job, job.session.failed(Reason.ENGINE_FAILED, str(error)))
            return
        kept = _kept(job, event)
        self._runtime.sequence_ended(job)
        outcome, ledger = job.session.stopped(report, job.channel.ledger)
        await self._runtime.perform(job, outcome, ledger=ledger)
        self._keep(job, kept)
        for record in outcome.records:
            if isinstance(record, StoredCanvas):
                self._runtime.metrics.delivered(record.receipt)

    def _keep(self, job: LiveJob, kept: KeptCanvas | None) -> None:
        if kept is not None and self._runtime.steps is not None:
            self._runtime.steps.keep(job.id, job.session.accepted.job.deadline, kept)

    def _report_of(self, job: LiveJob, event: StoppedEvent) -> StoppedEngine:
        if len(event.step_leaves) != event.steps:
            raise MalformedInput("the engine did not commit to every step")
        shown = job.shown if job.shown and job.shown.canvas == event.canvas else None
        nothing = KINDS[job.session.accepted.job.kind].nothing
        output = TextOutput(shown.token_ids, shown.segments) if shown else nothing
        data = output.encode()
        context = canvas_context(self._runtime.domain, job.id, event.canvas)
        return StoppedEngine(
            canvas=event.canvas,
            prompt_tokens=event.prompt_tokens,
            steps=event.steps,
            leaves=_leaves(job, event),
            output_digest=output_digest(job.id, event.canvas, data),
            units=output.units,
            sealed_output=seal(data, job.session.accepted.job.reply_key, context),
        )

    def _result(self, job: LiveJob, event: CanvasEvent) -> CanvasResult:
        work, secret = job.session.accepted.job, b""
        output = _OUTPUTS[work.kind](event)
        data = output.encode()
        if len(event.step_leaves) != event.steps:
            raise MalformedInput("the engine did not commit to every step")
        if (work.parameters.service is Service.REPLAYABLE) != bool(event.steps):
            raise MalformedInput("the engine's canvas does not fit the job's class of service")
        finish = Finish(int(event.finish))
        kept = _needed_again(work.kind, event)
        if kept is not None:
            current = self._keyring.current
            if current is None:
                raise MalformedInput("there is no sealing key")
            context = resume_context(self._runtime.domain, job.id, event.canvas)
            secret = seal(kept, current, context)
        return CanvasResult(
            canvas=event.canvas,
            output_digest=output_digest(job.id, event.canvas, data),
            leaves=_leaves(job, event),
            steps=event.steps,
            units=output.units,
            finish=finish,
            sealed_output=seal(
                data, work.reply_key, canvas_context(self._runtime.domain, job.id, event.canvas)
            ),
            resume_secret=secret,
        )

    async def _sequence_failed(self, job: LiveJob, event: FailedEvent) -> None:
        self._runtime.drop_sequence(job)
        self._runtime.metrics.note(
            now(self._runtime.clock), "engine", f"{event.kind}: {event.message}"
        )
        reason = Reason.BAD_PARAMETERS if event.kind == "invalid_request" else Reason.ENGINE_FAILED
        message = f"the engine reports {event.kind.replace('_', ' ')}"
        await self._runtime.perform(job, job.session.failed(reason, message))

    async def _sequence_lost(self, job: LiveJob) -> None:
        """Note that a running request is lost. The caller holds the channel's lock.

        A job resumes once, after its last finished canvas: at another card of its entry that has
        room, or at its own when that is back. A second loss fails it.
        """
        job.engine_losses += 1
        if job.leaving or job.sink is None:
            self._runtime.sequence_ended(job)
            await self._runtime.perform(job, job.session.engine_lost())
        elif job.engine_losses > 1:
            await self._fail(job, "the engine was lost twice under this job")
        else:
            await self._take_in(job)

    async def _take_in(self, job: LiveJob) -> None:
        """Start a job at a card of its entry that has room for it."""
        if self._runtime.cards.has_room(job.entry, self._runtime.load, job.context):
            await self._move(job)

    async def _move(self, job: LiveJob) -> None:
        """Start a job again at a card of its entry. A job is never moved to another profile.

        What is served beside the engines may go on still, so its sequence is dropped first.
        """
        self._runtime.drop_sequence(job)
        if job.leaving:
            await self._runtime.perform(job, job.session.engine_lost())
        elif self._runtime.cards.can_keep(job.entry, self._runtime.load, job.context):
            await self._runtime.perform(job, job.session.engine_restarted(job.channel.ledger))
        else:
            await self._fail(job, NO_CARD)

    async def _fail(self, job: LiveJob, message: str) -> None:
        self._runtime.drop_sequence(job)
        await self._runtime.perform(job, job.session.failed(Reason.ENGINE_FAILED, message))


def _leaves(job: LiveJob, event: CanvasEvent | StoppedEvent) -> tuple[Digest, ...]:
    if job.running is None:
        raise MalformedInput("the canvas is of a sequence that is not running")
    committed = job.committed[: event.canvas]
    return job.running.leaves(job.session.accepted, committed, event.step_leaves)


def _needed_again(kind: Kind, event: CanvasEvent) -> bytes | None:
    """Return what the worker itself needs of a canvas later. None: nothing.

    That is its token ids, to go on after a restart. Of an opening it is what the step's leaf
    commits to, because a challenge may come when the job whose step it is has been let go of.
    """
    if kind is Kind.OPEN:
        opened = event.opened or OpenOutput()
        return pack_records((StepRecord.parse(opened.fields),))
    return pack_ids(event.token_ids) if event.finish is CanvasFinish.MORE else None


def _kept(job: LiveJob, event: CanvasEvent | StoppedEvent) -> KeptCanvas | None:
    """Return what is kept of a canvas, while its sequence is still known."""
    if job.running is None or not event.records:
        return None
    committed = job.committed[: event.canvas]
    record = job.running.canvas_record(job.session.accepted, committed)
    return KeptCanvas(record, event.records)
