"""`piecework` commands on a terminal of their own, with somebody who answers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import sys
import termios
from collections.abc import Mapping, Sequence

WITHIN_S = 180.0
MAX_READ = 65536
CTRL_C, CTRL_D = "\x03", "\x04"
"""Answers that are keys, with no line break behind them."""


def _own_terminal() -> None:
    """In the child: make the terminal the one that it controls, as a login does. Ctrl-C is not
    ignored there, as it may be where the tests run.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def on_terminal(
    *arguments: str,
    answers: Sequence[tuple[str, str]],
    within_s: float = WITHIN_S,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run a command. Each question (a pattern) has to come in its turn, and gets its answer.

    environment: in place of our own, which has no password then.

    Returns its exit code and all that the terminal showed.
    """
    ours, theirs = pty.openpty()
    own = {n: v for n, v in os.environ.items() if n != "PIECEWORK_PASSWORD"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=own if environment is None else environment,
        start_new_session=True,
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    try:
        async with asyncio.timeout(within_s):
            shown = await asyncio.to_thread(_talk, ours, list(answers))
            return await process.wait(), shown
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


def _talk(terminal: int, answers: list[tuple[str, str]]) -> str:
    """Read to the end, and answer. The end is an error of the terminal, as Linux has it."""
    shown, asked_from = "", 0
    while True:
        try:
            came = os.read(terminal, MAX_READ)
        except OSError:
            break
        if not came:
            break
        shown += came.decode(errors="replace")
        if answers and re.search(answers[0][0], shown[asked_from:]):
            asked_from = len(shown)
            answer = answers.pop(0)[1]
            os.write(terminal, answer.encode() + (b"" if answer in (CTRL_C, CTRL_D) else b"\n"))
    assert not answers, f"it did not ask {answers[0][0]!r}: {shown}"
    return shown
