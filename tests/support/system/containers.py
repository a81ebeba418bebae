"""Services of a compose file without Docker: their commands as processes of this machine.

What a container gives is put there by substitution in the text: service names become 127.0.0.1,
fixed ports free ones, and the folders of the image temporary ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from piecework.demo.market import free_port
from tests.support.waiting import until

HEALTHY_WITHIN_S: Final = 120.0
CHECK_TIMEOUT_S: Final = 30.0
COMMAND_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.2
LOOPBACK: Final = "127.0.0.1"
FOLDERS: Final = ("/market", "/home/piecework", "/run/secrets")


@dataclass
class ComposePlace:
    """This machine in the part of all the containers."""

    root: Path
    services: dict[str, dict[str, Any]]
    image: Mapping[str, str] = field(default_factory=dict)
    """The environment that the image sets."""
    more: Mapping[str, str] = field(default_factory=dict)
    """Other words, and what stands for them here."""
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in FOLDERS:
            (self.root / folder.strip("/")).mkdir(parents=True)

    def here(self, text: str) -> str:
        """A text of the compose file as it has to read on this machine."""
        hosts = "|".join(re.escape(host) for host in (*self.services, "0.0.0.0", LOOPBACK))  # noqa: S104
        folders = "|".join(FOLDERS)
        if text in self.more:
            return self.more[text]
        text = re.sub(rf"(?<![\w/])({folders})(?=/|$)", lambda m: f"{self.root}{m[1]}", text)
        text = re.sub(
            rf"(?<![\w.])({hosts}):(\d+)", lambda m: f"{LOOPBACK}:{self.port(m[2])}", text
        )
        text = re.sub(r"(?<=port[ =])\d+", lambda m: str(self.port(m[0])), text)
        return re.sub(r"--host([ =])0\.0\.0\.0", rf"--host\g<1>{LOOPBACK}", text)

    def port(self, number: str) -> int:
        """A free port in the place of a fixed one; the same for the same."""
        return self.ports.setdefault(number, free_port())

    def command(self, parts: Sequence[str]) -> list[str]:
        """A command with its words substituted; the value of an option may be a word of its own."""
        found = []
        for option, part in zip(["", *parts], parts, strict=False):
            if option in ("--port", "--admin-port"):
                found.append(str(self.port(part)))
            else:
                found.append(LOOPBACK if option == "--host" else self.here(part))
        return found

    def environment(self, name: str) -> dict[str, str]:
        """What the container would see, and the programs of this installation first in the path."""
        given = {**self.image, **self.services[name].get("environment", {})}
        said = {
            key: LOOPBACK if value in self.services else self.here(value)
            for key, value in given.items()
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, **said, "PATH": path}

    @asynccontextmanager
    async def started(self, name: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """One service, with its log in a file; ended with everything that it started."""
        with self.log(name).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command(self.services[name]["command"]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(name),
                cwd=self.root,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            await _end(process)

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"

    async def wait_until_healthy(self, name: str, service: asyncio.subprocess.Process) -> None:
        """Ask the service's own health check again and again, with a bound."""
        said = b""
        healthy = False

        async def over() -> bool:
            nonlocal said, healthy
            if service.returncode is not None:
                return True
            code, said = await self._check(name)
            healthy = code == 0
            return healthy

        with contextlib.suppress(TimeoutError):
            await until(over, within_s=HEALTHY_WITHIN_S, poll_s=POLL_S)
        if healthy:
            return
        log = self.log(name).read_text()[-3000:]
        raise AssertionError(
            f"{name} is not healthy (exit {service.returncode}): {said.decode()}\n{log}"
        )

    async def _check(self, name: str) -> tuple[int, bytes]:
        _, *command = self.services[name]["healthcheck"]["test"]
        return await self.run(name, command, within_s=CHECK_TIMEOUT_S)

    async def run(
        self, name: str, command: Sequence[str], *, within_s: float = COMMAND_TIMEOUT_S
    ) -> tuple[int, bytes]:
        """Run another command in a service's container. Return its exit code and its output."""
        process = await asyncio.create_subprocess_exec(
            *self.command(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment(name),
            cwd=self.root,
        )
        try:
            async with asyncio.timeout(within_s):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the service, then SIGKILL to whatever is left of its group."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
