"""Piecework's own roles as child processes, for the demo and for the tests that use real processes.

Every server of ours prints one JSON line on stdout when it is ready; `Role.start` waits for it,
with a bound, and a role that dies first is an error that carries the end of its log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from piecework.base.errors import PieceworkError

# Importing torch and transformers on two busy cores, with the start-up benchmark behind it.
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 15
MAX_READY_LINE_BYTES = 64 * 1024
SAFE_PATH: Final[Mapping[str, str]] = {"PYTHONSAFEPATH": "1"}
"""What `-P` says to the child, for its own children too.

Without it `python -m` puts the current folder first in the import path. A file there that is named
like one of our imports would run.
"""


class RoleFailed(PieceworkError):
    """A child process did not become ready, or ended when it should not have."""


@dataclass(slots=True)
class Role:
    """One running role. `ready` is what it said about itself: addresses, ports, urls."""

    name: str
    process: asyncio.subprocess.Process
    ready: dict[str, Any]
    log: Path

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> Self:
        """Run `piecework ARGUMENTS`; returns when it is ready, `RoleFailed` when it is not in
        time."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "piecework"),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {}), **SAFE_PATH},
                limit=MAX_READY_LINE_BYTES,
            )
        role = cls(name, process, {}, log)
        try:
            async with asyncio.timeout(timeout_s):
                role.ready = await role._read_ready()
        except TimeoutError:
            await role.kill()
            raise RoleFailed(
                f"{name} was not ready after {timeout_s:.0f} s. {role.log_tail()}"
            ) from None
        except BaseException:
            await role.kill()
            raise
        return role

    async def _read_ready(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise RoleFailed(f"{self.name} has no output to read")
        line = await self.process.stdout.readline()
        if not line:
            code = await self.process.wait()
            raise RoleFailed(
                f"{self.name} ended with exit code {code} before it was ready. {self.log_tail()}"
            )
        try:
            ready: dict[str, Any] = json.loads(line)
        except ValueError:
            raise RoleFailed(f"{self.name} printed something else than its ready line") from None
        return ready

    def log_tail(self) -> str:
        """The end of what it logged, for an error message."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "Its log ends:\n  " + "\n  ".join(lines) if lines else "It logged nothing."

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, then SIGKILL after `timeout_s`; returns the exit code."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self.process.wait()
            finally:  # also when whoever stops us loses patience
                await self.kill()
        return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL, at once."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()


class ProcessGroup:
    """The roles that were started together. Leaving the block stops them all: the first one, which
    the others may need while they drain, last."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.roles: list[Role] = []
        self.resources = contextlib.AsyncExitStack()
        """What uses the roles: closed before they are stopped."""
        self.on_ready: Callable[[Role], None] = lambda role: None
        """Called with each role that is ready."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.resources.aclose()
        await asyncio.gather(*(role.stop() for role in self.roles[1:]))
        for role in self.roles[:1]:
            await role.stop()

    async def start(
        self, name: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None
    ) -> Role:
        """Start a role that this group will stop."""
        role = await Role.start(name, arguments, self.logs / f"{name}.log", environment=environment)
        self.roles.append(role)
        self.on_ready(role)
        return role
