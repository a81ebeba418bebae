"""What the engine's events do to jobs: drafts, canvases, failures, a lost process."""

from __future__ import annotations

from piecework_model.requests import CanvasEvent, DraftEvent, FailedEvent
from piecework_node.engine.link import EngineEvent, EngineLost
from piecework_node.jobs.live import LiveJob, pack_ids
from piecework_node.jobs.runtime import Execution
from piecework_protocol import merkle
from piecework_protocol.content import CanvasOutput, output_digest
from piecework_protocol.errors import MalformedInput, Reason
from piecework_protocol.objects import Finish, Service
from piecework_protocol.sealing import canvas_context, draft_context, resume_context, seal
from piecework_protocol.worker_session import CanvasRecord, CanvasResult


class EngineEventHandler:
    """Takes the engine's events, one after the other."""

    def __init__(self, execution: Execution) -> None:
        self._x = execution

    async def take(self, event: EngineEvent) -> None:
        """Something happened in the engine."""
        if isinstance(event, DraftEvent):
            self._draft(event)
        elif isinstance(event, CanvasEvent | FailedEvent):
            job = self._x.rows.get(event.request_id)
            if job is not None:
                await self._x.whole(self._row_event(job, event))
        elif isinstance(event, EngineLost):
            self._x.metrics.engine_lost()
            self._x.metrics.note(self._x.clock.now(), "engine", event.message)
            await self._x.whole(self._rows_lost())
        else:
            await self._x.whole(self._rows_restart())

    def _draft(self, event: DraftEvent) -> None:
        job = self._x.rows.get(event.request_id)
        if job is None or job.sink is None or not job.drafts:
            return
        output = CanvasOutput(event.token_ids, event.text).encode()
        context = draft_context(self._x.domain, job.id, event.canvas, event.step)
        sealed = seal(output, job.session.accepted.job.reply_key, context)
        for frame in job.session.draft(event.canvas, event.step, sealed).frames(self._x.sign):
            job.sink.send(frame)

    async def _row_event(self, job: LiveJob, event: CanvasEvent | FailedEvent) -> None:
        async with job.book.lock:
            if job.run != event.request_id:
                return
            if isinstance(event, FailedEvent):
                await self._row_failed(job, event)
            else:
                await self._canvas(job, event)

    async def _canvas(self, job: LiveJob, event: CanvasEvent) -> None:
        try:
            result = self._result(job, event)
        except MalformedInput as error:
            await self._x.perform(job, job.session.failed(Reason.ENGINE_FAILED, str(error)))
            return
        outcome, book = job.session.canvas_finished(result, job.book.ledger)
        job.committed.append(event.token_ids)
        if result.finish is not Finish.MORE:
            self._x.drop_row(job)
        await self._x.perform(job, outcome, ledger=book)
        for record in outcome.records:
            if isinstance(record, CanvasRecord):
                self._x.metrics.delivered(record.stored.receipt)

    def _result(self, job: LiveJob, event: CanvasEvent) -> CanvasResult:
        output = CanvasOutput(event.charged_ids, event.text).encode()
        work, secret = job.session.accepted.job, b""
        if len(event.step_leaves) != event.steps:
            raise MalformedInput("the engine gave no commitment for every step")
        if (work.parameters.service is Service.REPLAYABLE) != bool(event.steps):
            raise MalformedInput("the engine's canvas is not of the job's class of service")
        finish = Finish(int(event.finish))
        if finish is Finish.MORE:
            current = self._x.keys.current
            if current is None:
                raise MalformedInput("there is no sealing key")
            secret = seal(
                pack_ids(event.token_ids),
                current,
                resume_context(self._x.domain, job.id, event.canvas),
            )
        return CanvasResult(
            canvas=event.canvas,
            output_digest=output_digest(job.id, event.canvas, output),
            trace_root=merkle.root(event.step_leaves),
            steps=event.steps,
            units=len(event.charged_ids),
            finish=finish,
            sealed_output=seal(
                output, work.reply_key, canvas_context(self._x.domain, job.id, event.canvas)
            ),
            resume_secret=secret,
        )

    async def _row_failed(self, job: LiveJob, event: FailedEvent) -> None:
        self._x.drop_row(job)
        self._x.metrics.note(self._x.clock.now(), "engine", f"{event.kind}: {event.message}")
        reason = Reason.BAD_PARAMETERS if event.kind == "invalid_request" else Reason.ENGINE_FAILED
        message = f"the engine reports {event.kind.replace('_', ' ')}"
        await self._x.perform(job, job.session.failed(reason, message))

    async def _rows_lost(self) -> None:
        """Every row is gone. A job gets one more engine from its last canvas, not two."""
        for job in list(self._x.rows.values()):
            async with job.book.lock:
                if job.run is None:
                    continue
                job.engine_losses += 1
                if job.engine_losses > 1:
                    self._x.drop_row(job)
                    message = "the engine was lost twice under this job"
                    await self._x.perform(job, job.session.failed(Reason.ENGINE_FAILED, message))

    async def _rows_restart(self) -> None:
        for job in list(self._x.rows.values()):
            async with job.book.lock:
                if job.run is not None:
                    self._x.drop_row(job)
                    await self._x.perform(job, job.session.engine_restarted(job.book.ledger))
