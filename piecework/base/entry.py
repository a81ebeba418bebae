"""Where a program starts and ends: one clear line and an exit code instead of a traceback.

`guard` runs a function, `run` a coroutine. Both end the process with `SystemExit` when something
goes wrong that `explain` knows. An unexpected error passes through and keeps its traceback.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn, TextIO, TypeVar

from piecework.base.explain import exit_code, explain, leaves
from piecework.base.text import printable, tolerate, write

T = TypeVar("T")
MAX_LINE_CHARACTERS: Final = 10_000
BROKEN_PIPE: Final = 141
"""128 + SIGPIPE, as a shell reports it of a program whose reader went away."""


class ExitError(SystemExit):
    """The end of a program after an error, which stands on stderr. `line`: what stands there."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(code)
        self.line = line


def guard(work: Callable[[], T]) -> T:
    """Call `work` and return what it returns.

    Raises:
        SystemExit: after an error of the world, or if the output could not be written.
    """
    with _guarded():
        return work()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new event loop and return what it returns.

    Raises:
        SystemExit: after an error of the world, or if the output could not be written.
    """
    with _guarded():
        return asyncio.run(work)


def fail(line: str, code: int = 1) -> NoReturn:
    """Print one error line on stderr and exit with `code`.

    Raises:
        ExitError: always.
    """
    said = printable(line, lines=False, limit=MAX_LINE_CHARACTERS)
    _settle(sys.stdout)
    with suppress(OSError, ValueError):
        write(sys.stderr, f"error: {said}\n")
    _settle(sys.stderr)
    raise ExitError(code, said) from None


@contextmanager
def _guarded() -> Iterator[None]:
    _open_streams()
    try:
        yield
    except SystemExit as leaving:
        if leaving.code:
            _settle(sys.stdout)
        else:
            _check_output()
        raise
    except BaseException as error:
        reader_is_gone = _reader_is_gone()
        _settle(sys.stdout)
        if reader_is_gone and any(isinstance(leaf, BrokenPipeError) for leaf in leaves(error)):
            raise SystemExit(BROKEN_PIPE) from None
        line = explain(error)
        if line is None:
            raise
        fail(line, exit_code(error))
    _check_output()
    _settle(sys.stderr)


def _check_output() -> None:
    """What the program printed must have arrived, or the program has not done its work."""
    trouble = _settle(sys.stdout)
    if isinstance(trouble, BrokenPipeError):
        raise SystemExit(BROKEN_PIPE) from None
    if trouble is not None:
        fail(explain(trouble) or str(trouble))


def _settle(stream: TextIO) -> OSError | None:
    """Write out what is buffered; return the error if that fails.

    A stream that failed is pointed to nowhere, so that the interpreter's flush at exit succeeds.
    """
    try:
        stream.flush()
    except ValueError:  # somebody closed it, which wrote everything out
        return None
    except OSError as error:
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        return error
    return None


def _reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe or socket that nobody reads any more."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _open_streams() -> None:
    """Give a program that was started without a standard stream (`>&-`) one that goes nowhere.

    Otherwise the next file or socket that is opened gets the number of that stream, and whatever
    a child process prints lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number and _is_free(number):
                os.dup2(descriptor, number)
                os.close(descriptor)
                descriptor = number
            os.set_inheritable(descriptor, True)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))
    tolerate(sys.stdout)


def _is_free(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False
