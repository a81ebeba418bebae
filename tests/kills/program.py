"""A program of ours as a child process that can be killed and started again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.system.worker_process import PASSWORD

READY_S = 90.0
END_S = 120.0


@dataclass(slots=True)
class Program:
    """`python -P -m ARGUMENTS`. `silent` ones print no line when they are ready."""

    name: str
    arguments: list[str]
    log: Path
    silent: bool = False
    process: asyncio.subprocess.Process | None = None
    kills: int = 0

    async def start(self) -> None:
        """Start it, and wait for its ready line."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m"),
                *self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PIECEWORK_PASSWORD": PASSWORD},
            )
        if self.silent:
            return
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_S):
            line = await self.process.stdout.readline()
        if not line:
            await self.process.wait()
            raise RuntimeError(f"{self.name} did not start: {self.tail()}")

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            self.kills += 1
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(END_S):
            return await self.process.wait()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.returncode is None

    def tail(self) -> str:
        """The end of what it logged."""
        return self.log.read_text(errors="replace")[-3000:]
