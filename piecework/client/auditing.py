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
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from piecework.base.errors import PieceworkError
from piecework.base.explain import install_hint
from piecework.base.files import FileError, write_private
from piecework.base.jsons import loads
from piecework.client.audits.suspicion import MOST_CANVASES, MOST_TRIES, is_verdict
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
from piecework.client.limits import AUDIT_TIMEOUT_S, MAX_WAITING_AUDITS
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import broken_rules, check_evidence, unopened
from piecework_protocol.evidence.file import EvidenceFile, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.openings import read_openings
from piecework_protocol.outlines import Outline
from piecework_protocol.types import Address, Amount, JobId, parse_hex

AUDIT_CLAUSE: Final = "7.2 in an audit"
"""The trace is that of the model, the seed and the steps that the receipt names."""
RULES_CLAUSE: Final = "7.5 in an audit"
"""What the worker opened of the trace keeps the rules."""
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
        confirmed: Whether a second audit has found the same failure, or the worker's own signature
            shows it.
        remarks: What there is to say about auditors: who gave no report, who is trusted no more.
        leaves: The step leaves that a replay here has computed.
        statistical: Whether an honest canvas shows such findings now and then. Then they give
            no verdict before other canvases of the worker show them too.
        beside: The other canvases that failed with it.
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
    statistical: bool = False
    beside: tuple[CanvasToAudit, ...] = ()


class CanvasToAudit(NamedTuple):
    """A canvas of a job, with the openings file of its steps, or nothing."""

    evidence: EvidenceFile
    canvas: int
    openings: bytes = b""

    def __str__(self) -> str:
        job = self.evidence.job.job.id(self.evidence.domain)
        return f"canvas {self.canvas} of job {job.hex()[:16]}"


@dataclass(frozen=True, slots=True)
class NotOpened:
    """A canvas that could not be looked at, and why."""

    reason: str


More = AsyncGenerator[CanvasToAudit | NotOpened, None]
"""More canvases of one worker. It is closed when no more are wanted."""


class Auditor(Protocol):
    """Whoever audits a canvas with a model."""

    async def audit(
        self,
        evidence: bytes,
        canvas: int,
        level: AuditLevel,
        openings: bytes = b"",
        purse: AuditPurse | None = None,
    ) -> CanvasReport:
        """Audit one canvas of a job. A failure of the auditor is not a verdict.

        `purse` pays for reports that are bought. Without one the client's own budget pays.
        """
        ...

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        """Say why a forced audit of a canvas has no verdict whatever is opened, or return "".

        It costs nothing. Ask before the steps are bought.
        """
        ...


def lacking_engine() -> str:
    """Say what to do if the engine is not installed, or return ""."""
    if importlib.util.find_spec("torch") is not None:
        return ""
    return f"the engine is not installed here. Install it: {install_hint(['worker'])}"


class EngineAuditor:
    """Audits in a child process that loads the model and ends. It needs the extra `worker`."""

    def __init__(self, model: Path | None = None, device: str = "auto") -> None:
        """`model` is the checkpoint's folder, None for the bundled one."""
        self._model, self._device = model, device

    async def audit(
        self,
        evidence: bytes,
        canvas: int,
        level: AuditLevel,
        openings: bytes = b"",
        purse: AuditPurse | None = None,
    ) -> CanvasReport:
        """Start the process, give it the evidence and read its report."""
        return await self._told(evidence + openings, canvas, level)

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        """Ask the process, which loads no weights for that."""
        return (await self._told(evidence, canvas, AuditLevel.FORCED, "--ask")).reason

    async def _told(self, data: bytes, canvas: int, level: AuditLevel, *flags: str) -> CanvasReport:
        """Run the process and read its report."""
        if lacking := lacking_engine():
            return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=lacking)
        command = ["piecework_model.audit", "--canvas", str(canvas), *flags]
        command += ["--level", level.name.lower(), "--device", self._device]
        if self._model is not None:
            command += ["--model", str(self._model)]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", *command),
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
                out, _ = await process.communicate(data)
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
    """Read what the process wrote. Anything else than a report is not a verdict."""
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
            statistical=bool(body["statistical"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if line else "the engine process ended without a report"
        return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason)


def audit_rules(
    evidence: EvidenceFile, canvas: int, openings: bytes = b"", outline: Outline | None = None
) -> CanvasReport:
    """Apply the rules to a canvas. It passes only if every step of it is opened.

    Without openings they see receipts, leaves and output only. What these break fails the canvas.

    outline: that of the job's content, if it is known and the evidence lacks the content.

    Raises:
        EvidenceRefused: The evidence does not hold.
        MalformedInput: The openings file is malformed, or is not of this canvas.
    """
    proven = check_evidence(evidence)
    opened = read_openings(openings) if openings else None
    found = tuple(map(str, broken_rules(evidence, proven, canvas, opened, outline)))
    lacking = "" if found else unopened(evidence, canvas, opened)
    outcome = AuditOutcome.NO_VERDICT if lacking else AuditOutcome.PASS
    steps = evidence.canvases[canvas].receipt.steps
    return CanvasReport(
        AuditLevel.RULES,
        AuditOutcome.FAIL if found else outcome,
        canvas,
        found,
        lacking,
        steps,
        # The worker has signed what breaks a rule. So nobody else has to be asked.
        confirmed=bool(found),
    )


async def confirmed_audit(
    auditor: Auditor,
    evidence: EvidenceFile,
    canvas: int,
    level: AuditLevel = AuditLevel.REPLAY,
    openings: bytes = b"",
    *,
    purse: AuditPurse | None = None,
    outline: Outline | None = None,
    others: More | None = None,
) -> CanvasReport:
    """Audit a canvas. A failure that nobody has confirmed is audited again by the same auditor.

    If the second audit does not fail, there is no verdict. A statistical failure gives none either
    before other canvases of the worker look wrong too.

    purse: as `Auditor.audit` has it. outline: as `audit_rules` has it. others: gives more canvases
        of the same worker, opened, and is asked for them if this one looks wrong.

    Raises:
        EvidenceRefused: Level RULES alone: the evidence does not hold.
        MalformedInput: Level RULES alone: the openings are malformed, or of another canvas.
    """
    if level is AuditLevel.RULES:
        return await asyncio.to_thread(audit_rules, evidence, canvas, openings, outline)
    shown = CanvasToAudit(evidence, canvas, openings)
    report = await _twice(auditor, shown, level, purse)
    if report.outcome is AuditOutcome.FAIL and report.statistical:
        return await _beside_others(auditor, report, others, purse)
    return report


async def _twice(
    auditor: Auditor, shown: CanvasToAudit, level: AuditLevel, purse: AuditPurse | None
) -> CanvasReport:
    """Audit a canvas, and once more if it fails and nobody has confirmed that."""
    data, canvas = await asyncio.to_thread(write_evidence, shown.evidence), shown.canvas
    report = await auditor.audit(data, canvas, level, shown.openings, purse=purse)
    passed, failed = (report.outcome is one for one in (AuditOutcome.PASS, AuditOutcome.FAIL))
    if level is AuditLevel.FORCED and (passed or (failed and report.statistical)):
        report = await asyncio.to_thread(_only_whole, report, shown.evidence, shown.openings)
    if report.outcome is not AuditOutcome.FAIL or report.confirmed:
        return report
    again = await auditor.audit(data, canvas, level, shown.openings, purse=purse)
    if again.outcome is AuditOutcome.FAIL:
        # What only one of them is certain of is not confirmed.
        both = replace(report, confirmed=True, statistical=report.statistical or again.statistical)
        if not both.statistical or report.statistical:
            return both
        return await asyncio.to_thread(_only_whole, both, shown.evidence, shown.openings)
    reason = (
        f"the first {level.name.lower()} failed and the second did not, so this machine is unsure"
    )
    if again.reason:
        reason = f"{reason}. It said: {again.reason}"
    return CanvasReport(level, AuditOutcome.NO_VERDICT, canvas, reason=reason, steps=report.steps)


async def _beside_others(
    auditor: Auditor, report: CanvasReport, others: More | None, purse: AuditPurse | None
) -> CanvasReport:
    """Hold a canvas that looks wrong beside others of its worker. Those without a verdict do not
    count. After `MOST_TRIES` of all kinds no more are asked for.

    A finding among the others that is certain needs no more of them.
    """
    findings, beside, lacking = list(report.findings), list[CanvasToAudit](), list[str]()
    seen = tries = 1
    try:
        async with contextlib.aclosing(others or _none()) as more:
            async for other in more:
                tries += 1
                found = await _looked_at(auditor, other, report.level, purse)
                if found.outcome is AuditOutcome.NO_VERDICT:
                    lacking.append(found.reason)
                else:
                    seen += 1
                if found.outcome is AuditOutcome.FAIL and isinstance(other, CanvasToAudit):
                    beside.append(other)
                    findings += [f"{other}: {line}" for line in found.findings]
                    if not found.statistical or is_verdict(1 + len(beside), seen):
                        return replace(report, findings=tuple(findings), beside=tuple(beside))
                if seen >= MOST_CANVASES or tries >= MOST_TRIES:
                    break
    except PieceworkError as error:  # what cannot be looked at takes nothing from what was seen
        lacking.append(str(error))
    return replace(
        report,
        outcome=AuditOutcome.NO_VERDICT,
        findings=(),
        reason=_too_few(findings, seen, len(beside), lacking),
        confirmed=False,
        statistical=False,
    )


async def _looked_at(
    auditor: Auditor, other: CanvasToAudit | NotOpened, level: AuditLevel, purse: AuditPurse | None
) -> CanvasReport:
    """Audit one of the others. What cannot be looked at has no verdict."""
    if isinstance(other, NotOpened):
        return CanvasReport(level, AuditOutcome.NO_VERDICT, 0, reason=other.reason)
    found = await _twice(auditor, other, level, purse)
    if found.outcome is not AuditOutcome.NO_VERDICT:
        return found
    return replace(found, reason=f"{other} has no verdict: {found.reason}")


async def _none() -> More:
    nothing: tuple[CanvasToAudit, ...] = ()
    for one in nothing:
        yield one


def _too_few(findings: Sequence[str], seen: int, beside: int, lacking: Sequence[str]) -> str:
    """Say why a canvas that looks wrong gives no verdict."""
    lines = ["it looks wrong, as an honest canvas does now and then"]
    if seen > 1:
        lines.append(f"{beside} of {seen - 1} other canvases of this worker do too: too few")
    elif not lacking:
        lines.append("there is no other canvas of this worker to hold beside it")
    if lacking:
        lines.append(f"{len(lacking)} others were not judged. The last: {lacking[-1]}")
    return ". ".join((*lines, *findings))


def _only_whole(report: CanvasReport, evidence: EvidenceFile, openings: bytes) -> CanvasReport:
    """Let a forced audit pass only if every step and its soft embedding were opened.

    Whoever saved the openings may have left out the step that is wrong.
    """
    steps = evidence.canvases[report.canvas].receipt.steps
    shown = {one.fields for one in read_openings(openings).steps if one.soft is not None}
    lacking = steps - len(shown)
    if lacking <= 0:
        return report
    reason = f"{lacking} of the canvas's {steps} steps are not opened with their soft embeddings"
    return replace(report, outcome=AuditOutcome.NO_VERDICT, reason=reason)


def choose_canvas(evidence: EvidenceFile, entropy: Callable[[int], bytes]) -> int | None:
    """Draw a canvas among those with denoising steps. None: there is none.

    Draw after the receipts are signed, or the worker could know which one it will be.
    """
    numbers = traced(evidence)
    if not numbers:
        return None
    return numbers[int.from_bytes(entropy(8), "big") % len(numbers)]


def traced(evidence: EvidenceFile) -> list[int]:
    """List the canvases of a job that have denoising steps."""
    return [int(c.receipt.canvas) for c in evidence.canvases if c.receipt.steps]


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
