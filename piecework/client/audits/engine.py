"""The auditor that runs here: the engine in a child process, which loads the model and ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from piecework.base.explain import install_hint
from piecework.base.jsons import loads
from piecework.client.audits.auditor import CanvasReport
from piecework.client.jobs.spending import AuditPurse
from piecework.client.limits import AUDIT_TIMEOUT_S
from piecework_protocol.objects import AuditLevel, AuditOutcome
from piecework_protocol.types import parse_hex

MAX_REPORT_BYTES: Final = 64 * 1024


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
        *,
        control: bool = True,
    ) -> CanvasReport:
        """Start the process, give it the evidence and read its report."""
        flags = () if control else ("--no-control",)
        return await self._told(evidence + openings, canvas, level, *flags)

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
