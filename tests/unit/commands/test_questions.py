"""All questions go through one module, which asks on the main thread."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import piecework.commands
from piecework.base.explain import INTERRUPTED
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
        assert answered(lambda: "asked") == "asked"
        assert signal.getsignal(signal.SIGINT) is ours
        with pytest.raises(SystemExit) as ended:
            answered(lambda: signal.raise_signal(signal.SIGINT))
        assert ended.value.code == INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is ours
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_question_leaves_the_signal_ignored_where_whoever_started_us_wants_that() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert answered(lambda: signal.getsignal(signal.SIGINT)) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


TO_ANOTHER_THREAD = """
import os, signal, threading
from pathlib import Path
from piecework.commands._questions import answered

signal.signal(signal.SIGINT, signal.default_int_handler)
reads, _ = os.pipe()
main = Path(f"/proc/self/task/{threading.get_native_id()}")

def interrupt():
    while " S " not in (main / "stat").read_text() or "futex" in (main / "wchan").read_text():
        os.sched_yield()
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

def question():
    threading.Thread(target=interrupt).start()
    return os.read(reads, 1)

answered(question)
"""
"""Ctrl-C that does not end the system call of the main thread, as one that comes just before it."""


@pytest.mark.process
def test_a_ctrl_c_that_does_not_end_the_reading_ends_the_question() -> None:
    line = [sys.executable, "-P", "-c", TO_ANOTHER_THREAD]
    ended = subprocess.run(line, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 130, ended.stderr.decode()
    assert ended.stderr.decode() == "\nerror: interrupted\n"


TWICE = """
import os, signal, threading
from piecework.commands import _questions
from piecework.commands._questions import answered

_questions.REPETITION_S = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)
reads, _ = os.pipe()

class Swallows:
    def __del__(self):
        os.read(reads, 1)

def press():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

def question():
    for _ in range(2):
        press()
        Swallows()
        print("asked on", flush=True)
    press()
    return os.read(reads, 1)

answered(question)
"""
"""Python drops an exception in `__del__`."""


@pytest.mark.process
def test_a_later_ctrl_c_counts_where_an_earlier_one_was_dropped() -> None:
    line = [sys.executable, "-P", "-c", TWICE]
    ended = subprocess.run(line, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 130, ended.stderr.decode()
    assert ended.stdout == b"asked on\n" * 2


def test_a_signal_that_somebody_else_waits_for_is_passed_on() -> None:
    """Event loops are told of signals by the wakeup descriptor, which a question borrows."""
    told, tells = socket.socketpair()
    told.setblocking(False)
    tells.setblocking(False)
    former = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    before = signal.set_wakeup_fd(tells.fileno())
    try:
        answered(lambda: signal.raise_signal(signal.SIGUSR1))
        assert signal.set_wakeup_fd(before) == tells.fileno()
        assert told.recv(16) == bytes([signal.SIGUSR1])
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGUSR1, former)
        told.close()
        tells.close()
