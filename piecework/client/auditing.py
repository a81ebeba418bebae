"""Auditing canvases that were paid: by the rules here, or by the engine in a child process.

Which canvas is audited comes from the client's own randomness, drawn after the receipt was signed.
The worker is not asked and cannot know. A mismatch of profiles is never held against it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base.errors import PieceworkError
from piecework.base.files import FileError, write_private
from piecework.base.jsons import loads
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
from piecework.client.journal.learning import learn_broken
from piecework.client.limits import AUDIT_TIMEOUT_S, MAX_WAITING_AUDITS
from piecework_protocol.evidence.check import broken_rules, check_evidence
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.openings import read_openings
from piecework_protocol.types import Address, Amount, JobId, parse_hex

AUDIT_CLAUSE: Final = "7.2 in an audit"
"""The trace is that of the model, the seed and the steps that the receipt names."""
MAX_REPORT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class CanvasReport:
    """What an audit of one canvas found.

    Attributes:
        findings: What is wrong, one line each. Empty unless the outcome is FAIL.
        reason: Why there is no verdict, or empty.
        steps: Denoising steps of the canvas.
        seconds: What the audit took, without loading the model.
        by: The workers that audited. None of them: the client itself.
        jobs: The jobs that bought their reports, in the same order.
        cost: What they were paid, in base units.
        confirmed: Whether a second auditor has found the same failure.
        remarks: What there is to say about auditors: who gave no report, who is trusted no more.
        leaves: The step leaves that a replay here has computed.
    """

    level: AuditLevel
    outcome: AuditOutcome
    canvas: int
    findings: tuple[str, ...] = ()
    reason: str = ""
    steps: int = 0
    seconds: float = 0.0
    by: tuple[Address, ...] = ()
    jobs: tuple[JobId, ...] = ()
    cost: Amount = Amount(0)
    confirmed: bool = False
    remarks: tuple[str, ...] = ()
    leaves: tuple[bytes, ...] = ()


class Auditor(Protocol):
    """Whoever audits a canvas with a model."""

    async def audit(
        self, evidence: bytes, canvas: int, level: AuditLevel, openings: bytes = b""
    ) -> CanvasReport:
        """Audit one canvas of a job. A failure of the auditor is no verdict."""
        ...


class EngineAuditor:
    """Audits in a child process that loads the model and ends. It needs the extra `worker`."""

    def __init__(self, model: Path | None = None, device: str = "auto") -> None:
        """`model` is the checkpoint's folder, None for the bundled one."""
        self._model, self._device = model, device

    async def audit(
        self, evidence: bytes, canvas: int, level: AuditLevel, openings: bytes = b""
    ) -> CanvasReport:
        """Start the process, give it the evidence and read its report."""
        if importlib.util.find_spec("torch") is None:
            reason = "the engine is not installed here. Install it: pip install 'piecework[worker]'"
            return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason)
        command = ["-P", "-m", "piecework_model.audit", "--canvas", str(canvas)]
        command += ["--level", level.name.lower(), "--device", self._device]
        if self._model is not None:
            command += ["--model", str(self._model)]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
        except OSError as error:
            reason = f"the engine process cannot be started: {error}"
            return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason)
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S):
                out, _ = await process.communicate(evidence + openings)
        except TimeoutError:
            reason = f"the audit took longer than {AUDIT_TIMEOUT_S:.0f} s"
            return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return _report(out, level, canvas)


def _report(line: bytes, level: AuditLevel, canvas: int) -> CanvasReport:
    """Read what the process wrote. Anything else than a report is no verdict."""
    try:
        if len(line) > MAX_REPORT_BYTES:
            raise ValueError("too long")
        body: dict[str, Any] = loads(line)
        if "error" in body:
            raise ValueError(body["error"])
        return CanvasReport(
            level,
            AuditOutcome[body["outcome"].upper()],
            canvas,
            tuple(map(str, body["findings"])),
            str(body["reason"]),
            int(body["steps"]),
            float(body["seconds"]),
            leaves=tuple(parse_hex(one, 32, "leaf") for one in body["leaves"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if line else "the engine process ended without a report"
        return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason)


def audit_rules(evidence: EvidenceFile, canvas: int, openings: bytes = b"") -> CanvasReport:
    """Apply the rules to a canvas. Without openings they see receipts, leaves and output only.

    Raises:
        EvidenceRefused: The evidence does not hold.
        MalformedInput: The openings file is malformed, or is not of this canvas.
    """
    proven = check_evidence(evidence)
    opened = read_openings(openings) if openings else None
    found = tuple(map(str, broken_rules(evidence, proven, canvas, opened)))
    outcome = AuditOutcome.FAIL if found else AuditOutcome.PASS
    steps = evidence.canvases[canvas].receipt.steps
    return CanvasReport(AuditLevel.RULES, outcome, canvas, found, steps=steps)


def choose_canvas(evidence: EvidenceFile, entropy: Callable[[int], bytes]) -> int | None:
    """Draw a canvas among those with denoising steps. None: there is none.

    Draw after the receipts are signed, or the worker could know which one it will be.
    """
    traced = [c.receipt.canvas for c in evidence.canvases if c.receipt.steps]
    if not traced:
        return None
    return traced[int.from_bytes(entropy(8), "big") % len(traced)]


@dataclass(slots=True)
class Audits:
    """Audits accepted jobs in the background, at the rate of the settings. One at a time.

    A failure counts once a second replay or auditor confirms it. Then the worker gets no more jobs,
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

    def watching(self, caller: Caller, content: bytes) -> Caller:
        """Return a caller that has some of its jobs audited. content: what the job asks."""
        if self.context.config.audit_rate <= 0:
            return caller
        return _Watched(self, caller, content)

    def finished(self, job: JobId, texts: Texts) -> None:
        """Audit a job that has ended, if chance says so and few wait."""
        draw = int.from_bytes(self.context.entropy(8), "big") / 2**64
        if draw >= self.context.config.audit_rate or self._waiting >= MAX_WAITING_AUDITS:
            return
        self._waiting += 1
        task = asyncio.create_task(self._audit(job, texts), name="piecework audit")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def done(self) -> None:
        """Wait for the audits that run or wait."""
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """End what runs. Audits are no promise to anybody."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _audit(self, job: JobId, texts: Texts) -> None:
        try:
            async with self._turn:
                evidence = await make_evidence(self.context, job, texts)
                canvas = choose_canvas(evidence, self.context.entropy)
                if canvas is not None:
                    await self.audit(evidence, canvas)
        except PieceworkError as error:
            reason = f"the evidence cannot be made: {error}"
            level = AuditLevel.REPLAY
            self.on_report(CanvasReport(level, AuditOutcome.NO_VERDICT, 0, reason=reason), None)
        finally:
            self._waiting -= 1

    async def audit(self, evidence: EvidenceFile, canvas: int) -> CanvasReport:
        """Replay a canvas. A failure is replayed again, and then ends the relation."""
        data = await asyncio.to_thread(write_evidence, evidence)
        report = await self.auditor.audit(data, canvas, AuditLevel.REPLAY)
        file: Path | None = None
        if report.outcome is AuditOutcome.FAIL:
            again = report
            if not report.confirmed:
                again = await self.auditor.audit(data, canvas, AuditLevel.REPLAY)
            if again.outcome is AuditOutcome.FAIL:
                report, file = await self._end(evidence, data, report)
            else:
                reason = "the first replay failed and the second did not, so this machine is unsure"
                report = CanvasReport(
                    report.level, AuditOutcome.NO_VERDICT, canvas, reason=reason, steps=report.steps
                )
        self.on_report(report, file)
        return report

    async def _end(
        self, evidence: EvidenceFile, data: bytes, report: CanvasReport
    ) -> tuple[CanvasReport, Path | None]:
        """Give this worker no more jobs and keep the evidence. The report says if that failed."""
        operator = Address(evidence.channel.operator)
        now, workers = self.context.now(), self.context.store.workers
        await workers.run(
            workers.remember, operator, lambda memory: learn_broken(memory, now, AUDIT_CLAUSE)
        )
        job = evidence.job.job.id(evidence.domain)
        file = self.context.store.folder / f"audit-{job.hex()[:16]}.json"
        try:
            await asyncio.to_thread(partial(write_private, file, data, replace=True))
        except FileError as error:
            return replace(report, reason=f"the evidence was not written: {error}"), None
        return report, file


class _Watched:
    """Passes events on, and keeps what an audit needs of them. Implements `Caller`."""

    def __init__(self, audits: Audits, caller: Caller, content: bytes) -> None:
        self._audits, self._caller, self._content = audits, caller, content
        self._outputs: dict[int, bytes] = {}
        self.cancelled = caller.cancelled

    async def emit(self, event: JobEvent) -> None:
        """Deliver an event. The last one may start an audit."""
        if isinstance(event, JobStarted):
            self._outputs.clear()  # the next worker took it
        elif isinstance(event, CanvasText | ReadAnswers):
            self._outputs[event.canvas] = output_of(event)
        elif isinstance(event, JobFinished):
            self._audits.finished(event.job, Texts(self._content, dict(self._outputs)))
        await self._caller.emit(event)

    def offer(self, event: JobEvent) -> None:
        """Deliver a draft."""
        self._caller.offer(event)
