"""`piecework relay start` as a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 180.0


@dataclass
class RelayProcess:
    """`piecework relay start`."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.ready["name"])

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.ready["port"])

    async def end(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 20)


async def start_relay(deployment: Path, port: int = 0, *, name: str | None = None) -> RelayProcess:
    """Start one and wait for its ready line. Port 0: a free one. name: where others dial it."""
    named = () if name is None else ("--name", name)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "relay", "start"),
        *("--deployment", str(deployment), "--port", str(port), *named),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_S)
    assert line, "the relay ended"
    return RelayProcess(process, json.loads(line))
