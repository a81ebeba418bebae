"""What the engine process writes on its stderr: complaints of ours, tracebacks, lines of libraries.

They become lines of the worker's own log. A log of JSON lines then has no others, and no library
drives the operator's terminal.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

MAX_COMPLAINT_BYTES: Final = 8192
"""A longer line becomes several. The log shows the beginning of each."""
READ_BYTES: Final = 64 * 1024


async def forward(pipe: asyncio.StreamReader, log: Any) -> None:
    """Log each line that comes, until the end of the pipe."""
    kept = b""
    while data := await pipe.read(READ_BYTES):
        # Progress bars end their lines with a carriage return.
        *lines, kept = (kept + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            _log(line, log)
        while len(kept) > MAX_COMPLAINT_BYTES:
            _log(kept[:MAX_COMPLAINT_BYTES], log)
            kept = kept[MAX_COMPLAINT_BYTES:]
    _log(kept, log)


def _log(line: bytes, log: Any) -> None:
    text = line.decode(errors="replace").rstrip()
    if text:
        log.warning("engine process wrote", reason=text)
