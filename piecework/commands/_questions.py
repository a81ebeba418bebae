"""Everything that a command asks a person on the terminal.

One Ctrl-C ends the command, with the line and the exit code of every other interruption. An event
loop takes Ctrl-C for itself and only cancels its task, which does not see it before the question is
answered. A thread that reads the terminal sees it even later. So questions are asked on the main
thread, also from coroutines, and take the signal for as long as they wait.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import typer

from piecework.base.entry import fail, guard
from piecework.base.files import read
from piecework.base.text import write

T = TypeVar("T")
MAX_PASSWORD_BYTES: Final = 4096


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
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or before is None:  # whoever started us wants it so
        return guard(lambda: _plain(question))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return guard(lambda: _plain(question))
    finally:
        signal.signal(signal.SIGINT, before)


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
