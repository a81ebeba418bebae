"""Everything that a command asks a person on the terminal.

One Ctrl-C ends the command, with the line and the exit code of every other interruption. An event
loop takes Ctrl-C for itself and only cancels its task, which does not see it before the question is
answered. A thread that reads the terminal sees it even later. So questions are asked on the main
thread, also from coroutines, and take the signal for as long as they wait.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, TypeVar

import typer

from piecework.base.entry import fail, guard
from piecework.base.files import read
from piecework.base.text import write

T = TypeVar("T")
MAX_PASSWORD_BYTES: Final = 4096
SEND_AGAIN_S: Final = 0.05
REPETITION_S: Final = 1.0
"""No second interruption comes within so long: a person or the sender has repeated the first."""
SIGNALS_AT_ONCE: Final = 64


def ask(option: str, question: str) -> str:
    """Ask for an option that was not given; without a terminal it is missing, and said so."""
    if not sys.stdin.isatty():
        fail(f"{option} is missing", 2)
    return answered(lambda: str(typer.prompt(question)))


def agrees(question: str) -> bool:
    """Ask a person on the terminal, who says yes or no. Nothing is no."""
    return answered(lambda: typer.confirm(question))


def password(file: Path | None, *, confirm: bool = False) -> str:
    """The key password: $PIECEWORK_PASSWORD, a file, or asked for on the terminal.

    With `confirm` it is for a new key: it is asked for twice, and may not be empty.
    """
    secret = _password(file, confirm)
    if confirm and not secret:
        fail("the password is empty, and everybody who can read the key's file could use the key")
    return secret


def _password(file: Path | None, confirm: bool) -> str:
    from_environment = os.environ.get("PIECEWORK_PASSWORD")
    if from_environment is not None:
        return from_environment
    if file is not None:
        chosen = file
        return guard(lambda: read(chosen, MAX_PASSWORD_BYTES).decode()).rstrip("\r\n")
    if not sys.stdin.isatty():
        fail("no password: set PIECEWORK_PASSWORD or give --password-file")
    import getpass

    first = answered(lambda: getpass.getpass("Key password: "))
    if confirm and answered(lambda: getpass.getpass("Again: ")) != first:
        fail("the two passwords differ")
    return first


def answered(question: Callable[[], T]) -> T:
    """Wait for the answer to a question.

    Raises:
        SystemExit: after Ctrl-C or the end of the input.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a question is asked on the main thread, or Ctrl-C does not end it")
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):  # whoever started us wants it so
        return guard(lambda: _plain(question))
    with _one_ctrl_c():
        return guard(lambda: _plain(question))


@contextmanager
def _one_ctrl_c() -> Iterator[None]:
    """Make of Ctrl-C one KeyboardInterrupt, also when it comes just before the terminal is read.

    Python's handlers run between two of its own steps. A signal that comes behind the last step
    and before the system's read() does not end that read(). The wakeup descriptor is written at
    every signal, whatever the main thread does. So a second thread waits there, and sends the
    signal again until the handler ran. The handler takes what comes soon after for such repetition.
    """
    main, ended = threading.get_ident(), threading.Event()
    raised_at = -math.inf

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        now = time.monotonic()
        if now - raised_at > REPETITION_S:
            raised_at = now
            raise KeyboardInterrupt

    def send_again() -> None:
        while numbers := os.read(told, SIGNALS_AT_ONCE):
            came_at = time.monotonic()
            if others := numbers.replace(bytes([signal.SIGINT]), b""):
                _pass_on(others, former)
            if signal.SIGINT in numbers:
                while not ended.wait(SEND_AGAIN_S) and raised_at < came_at - REPETITION_S:
                    signal.pthread_kill(main, signal.SIGINT)

    told, tells = os.pipe()
    os.set_blocking(tells, False)
    sender = threading.Thread(target=send_again, name="ctrl-c", daemon=True)
    before = signal.getsignal(signal.SIGINT)
    former = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    try:
        sender.start()
        signal.signal(signal.SIGINT, handler)
        yield
    finally:
        try:
            signal.signal(signal.SIGINT, before)
        finally:
            ended.set()
            signal.set_wakeup_fd(former)
            os.close(tells)  # which ends the sender
            if sender.is_alive():  # a Ctrl-C may have come before it was started
                sender.join()
            os.close(told)


def _pass_on(numbers: bytes, descriptor: int) -> None:
    """Tell whoever waited for signals before. Handlers of Python see them in any case."""
    if descriptor >= 0:
        with suppress(BlockingIOError):
            os.write(descriptor, numbers)


def _plain(question: Callable[[], T]) -> T:
    """Undo what typer makes of an interruption. The cursor still stands behind the question."""
    try:
        return question()
    except (KeyboardInterrupt, EOFError):
        write(sys.stderr, "\n")
        raise
    except typer.Abort as error:
        write(sys.stderr, "\n")
        ended = isinstance(error.__context__, EOFError)
        raise (EOFError() if ended else KeyboardInterrupt()) from None
