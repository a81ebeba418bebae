"""All questions go through one module, which asks on the main thread."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import pytest

import piecework.commands
from piecework.commands import _questions
from piecework.commands._questions import answered

COMMANDS = Path(piecework.commands.__file__).parent
ASKS = re.compile(r"typer\.(confirm|prompt)\b|\bgetpass\b|\binput\(|\bOption\([^)]*prompt=")


def test_no_other_module_of_the_commands_asks_a_person() -> None:
    files = [file for file in COMMANDS.rglob("*.py") if file.name != "_questions.py"]
    assert len(files) > 20
    asking = [file.name for file in files if ASKS.search(file.read_text())]
    assert asking == []
    assert ASKS.search(Path(_questions.__file__).read_text())


async def test_a_question_in_a_thread_is_a_defect() -> None:
    """There Ctrl-C would not end it."""
    with pytest.raises(RuntimeError, match="on the main thread"):
        await asyncio.to_thread(answered, lambda: "never asked")
    assert answered(lambda: "asked") == "asked"


def test_a_question_gives_the_signal_back() -> None:
    def ours(number: int, frame: object) -> None:
        raise AssertionError("nobody pressed Ctrl-C")

    before = signal.signal(signal.SIGINT, ours)  # whoever runs the tests may ignore it
    try:
        assert answered(lambda: signal.getsignal(signal.SIGINT)) is signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_question_leaves_the_signal_ignored_where_whoever_started_us_wants_that() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert answered(lambda: signal.getsignal(signal.SIGINT)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
