"""`piecework` commands that run to their end, as a person would type them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMAND_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON object on stdout of a command that went well."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def line(self) -> str:
        """The one clear line on stderr of a command that failed as expected."""
        assert self.code == 1, (self.code, self.out, self.err)
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").strip()


async def piecework(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    within_s: float = COMMAND_TIMEOUT_S,
) -> Said:
    """Run a command to its end, with a bound; a traceback is a failure whatever the exit code."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        async with asyncio.timeout(within_s):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert b"Traceback" not in err, err.decode()
    return Said(process.returncode or 0, out.decode(), err.decode())
