"""Audits of a client's own jobs, in the background and on demand.

What a failure takes follows here: the relation with the worker ends, and the evidence is kept.
A mismatch of profiles is never held against a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from piecework.base.errors import PieceworkError
from piecework.base.files import FileError, write_private
from piecework.client.audits.auditor import Auditor, CanvasReport, CanvasToAudit, More
from piecework.client.audits.confirmation import confirmed_audit
from piecework.client.audits.drawing import choose_canvas
from piecework.client.evidence import Texts, make_evidence, output_of
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.events import (
    CanvasText,
    JobEvent,
    JobFinished,
    JobStarted,
    ReadAnswers,
)
from piecework.client.jobs.run import Caller
from piecework.client.jobs.spending import AuditPurse
from piecework.client.journal.learning import learn_broken
from piecework.client.journal.records import Part
from piecework.client.limits import MAX_WAITING_AUDITS
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.outlines import Outline
from piecework_protocol.types import Address, JobId

AUDIT_CLAUSE: Final = "7.2 in an audit"
"""The trace is that of the model, the seed and the steps that the receipt names."""
RULES_CLAUSE: Final = "7.5 in an audit"
"""What the worker opened of the trace keeps the rules."""


@dataclass(slots=True)
class Audits:
    """Audits accepted jobs in the background, at the rate of the settings. One at a time.

    A failure counts once a second audit or auditor confirms it. Then the worker gets no more jobs,
    and the evidence is written beside the journal.

    Attributes:
        on_report: Told each report, with the file of the evidence if there is one.
    """

    context: JobContext
    auditor: Auditor
    on_report: Callable[[CanvasReport, Path | None], None] = lambda report, file: None
    _waiting: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def watching(self, caller: Caller, content: bytes, part: Callable[[], Part]) -> Caller:
        """Return a caller that has some of its jobs audited.

        content: what the job asks. part: tells what the budgets hold for it.
        """
        if self.context.config.audit_rate <= 0:
            return caller
        return _Watched(self, caller, content, part)

    def finished(self, job: JobId, texts: Texts, part: Part) -> None:
        """Audit a job that has ended, if chance says so and few wait.

        What `part` holds for audits is kept until then. If chance says no, it is free with the
        request.
        """
        draw = int.from_bytes(self.context.entropy(8), "big") / 2**64
        if draw >= self.context.config.audit_rate or self._waiting >= MAX_WAITING_AUDITS:
            return
        self._waiting += 1
        purse = self.context.spending.purse(part)
        task = asyncio.create_task(self._audit(job, texts, purse), name="piecework audit")
        # Also for one that is cancelled before it begins.
        task.add_done_callback(lambda _: purse.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def done(self) -> None:
        """Wait for the audits that run or wait."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End what runs. Audits are not a promise to anybody."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _audit(self, job: JobId, texts: Texts, purse: AuditPurse) -> None:
        try:
            async with self._turn:
                evidence = await make_evidence(self.context, job, texts)
                canvas = choose_canvas(evidence, self.context.entropy)
                if canvas is not None:
                    await self.audit(evidence, canvas, purse=purse)
        except PieceworkError as error:
            reason = f"the evidence cannot be made: {error}"
            level = AuditLevel.REPLAY
            self.on_report(CanvasReport(level, AuditOutcome.NO_VERDICT, 0, reason=reason), None)
        finally:
            self._waiting -= 1

    async def audit(
        self,
        evidence: EvidenceFile,
        canvas: int,
        level: AuditLevel = AuditLevel.REPLAY,
        openings: bytes = b"",
        *,
        purse: AuditPurse | None = None,
        outline: Outline | None = None,
        others: More | None = None,
    ) -> CanvasReport:
        """Audit a canvas. A failure that is confirmed ends the relation with its worker.

        `purse`, `outline` and `others` are as `confirmed_audit` has them.

        Raises:
            EvidenceRefused: Level RULES alone: the evidence does not hold.
            MalformedInput: Level RULES alone: the openings are malformed, or of another canvas.
        """
        report = await confirmed_audit(
            self.auditor,
            evidence,
            canvas,
            level,
            openings,
            purse=purse,
            outline=outline,
            others=others,
        )
        file: Path | None = None
        if report.outcome is AuditOutcome.FAIL:
            failed = CanvasToAudit(evidence, report.canvas, openings)
            report, file = await self._end(failed, report)
        self.on_report(report, file)
        return report

    async def _end(
        self, failed: CanvasToAudit, report: CanvasReport
    ) -> tuple[CanvasReport, Path | None]:
        """Give this worker no more jobs and keep the evidence. The report says if that failed.

        Returns the file of the canvas that was audited first. Of several canvases the evidence of
        every job is kept. So are the steps that were opened.
        """
        operator = Address(failed.evidence.channel.operator)
        now, workers = self.context.now(), self.context.store.workers
        clause = RULES_CLAUSE if report.level is AuditLevel.RULES else AUDIT_CLAUSE
        await workers.run(
            workers.remember, operator, lambda memory: learn_broken(memory, now, clause)
        )
        try:
            file = await asyncio.to_thread(self._keep, failed)
            for other in report.beside:
                await asyncio.to_thread(self._keep, other)
        except (FileError, MalformedInput) as error:
            return replace(report, reason=f"the evidence was not written: {error}"), None
        return report, file

    def _keep(self, canvas: CanvasToAudit) -> Path:
        """Write the evidence of a canvas's job, and its openings if there are any."""
        job = canvas.evidence.job.job.id(canvas.evidence.domain)
        file = self.context.store.folder / f"audit-{job.hex()[:16]}.json"
        write_private(file, write_evidence(canvas.evidence), replace=True)
        if canvas.openings:
            opened = file.with_name(f"{file.stem}-openings-{canvas.canvas}.json")
            write_private(opened, canvas.openings, replace=True)
        return file


class _Watched:
    """Passes events on, and keeps what an audit needs of them. Implements `Caller`."""

    def __init__(
        self, audits: Audits, caller: Caller, content: bytes, part: Callable[[], Part]
    ) -> None:
        self._audits, self._caller, self._content, self._part = audits, caller, content, part
        self._outputs: dict[int, bytes] = {}
        self.cancelled = caller.cancelled

    async def emit(self, event: JobEvent) -> None:
        """Deliver an event. The last one may start an audit."""
        if isinstance(event, JobStarted):
            self._outputs.clear()  # the next worker took it
        elif isinstance(event, CanvasText | ReadAnswers):
            self._outputs[event.canvas] = output_of(event)
        elif isinstance(event, JobFinished):
            texts = Texts(self._content, dict(self._outputs))
            self._audits.finished(event.job, texts, self._part())
        await self._caller.emit(event)

    def offer(self, event: JobEvent) -> None:
        """Deliver a draft."""
        self._caller.offer(event)
