"""What the commands that serve write into their logs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator

import pytest
import structlog

from piecework.base.library_logs import MAX_TRACEBACK_CHARS
from piecework.base.text import printable
from piecework.commands._server import logs_to_stderr


class Terminal(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def fail(prompt: str) -> None:
    """Fail with a text in a local variable."""
    raise KeyError(len(prompt))


HOSTILE = "name\x1b[2J\u202e\x9b31m\x85\nstate ready"
"""Drives a terminal, reverses a text, and forges a line."""


@contextlib.contextmanager
def logging_to(stream: io.StringIO) -> Iterator[None]:
    """The logs of a server on a stream, and as they were afterwards."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        with contextlib.redirect_stderr(stream):
            logs_to_stderr()
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        structlog.reset_defaults()


def is_safe(text: str) -> bool:
    """Whether a terminal does nothing with it but to show it and to set its own colours."""
    shown = re.sub(r"\x1b\[\d*m", "", text)
    return printable(shown, lines=True, limit=len(shown) + 1) == shown


def failure() -> BaseException:
    """An error whose text and cause a stranger wrote."""
    try:
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            raise KeyError(HOSTILE) from error
    except KeyError as error:
        return error


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_what_a_stranger_wrote_drives_no_terminal_through_a_servers_log(
    stream: io.StringIO,
) -> None:
    class Named:
        def __repr__(self) -> str:
            return HOSTILE

    with logging_to(stream):
        log = structlog.get_logger("index")
        log.warning(HOSTILE, name=HOSTILE, parts=[HOSTILE, {HOSTILE: HOSTILE}], kind=Named())
        log.error("fault", exc_info=failure())
        logging.getLogger("aiohttp").error("bad request %s", HOSTILE, exc_info=failure())
    text = stream.getvalue()
    assert text.count("name[2J31m state ready") >= 5 and "Traceback" in text
    assert is_safe(text)
    assert not any(line.startswith("state") for line in text.splitlines()), "a forged line"


def test_lines_of_libraries_are_json_among_json_lines() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        structlog.get_logger("index").error("fault", exc_info=failure())
        logging.getLogger("asyncio").error("Task exception", exc_info=failure())
        logging.getLogger("grpc._common").warning("no thread", stack_info=True)
        logging.getLogger("aiohttp.access").info("GET /")
        logging.captureWarnings(False)  # put the capture on top of what watches the warnings here
        logging.captureWarnings(True)
        warnings.showwarning("it is deprecated", DeprecationWarning, "library.py", 7)
    fault, task, grpc, warned = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert fault["event"] == "fault" and "KeyError" in fault["exception"]
    assert (task["logger"], task["level"], task["event"]) == ("asyncio", "error", "Task exception")
    assert "KeyError" in task["exception"] and task["timestamp"].endswith("Z")
    assert (grpc["logger"], grpc["level"]) == ("grpc._common", "warning")
    assert "stack" in grpc["exception"].lower()
    assert warned["logger"] == "py.warnings" and "it is deprecated" in warned["event"]


def test_lines_of_libraries_are_for_a_person_on_a_terminal() -> None:
    stream = Terminal()
    with logging_to(stream):
        logging.getLogger("asyncio").error("Task exception", exc_info=failure())
    first, second = stream.getvalue().splitlines()[:2]
    assert first.endswith("ERROR asyncio Task exception") and second.startswith("  Traceback")


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_traceback_shows_no_local_variables(stream: io.StringIO) -> None:
    secret = "what a caller asks".upper()
    with logging_to(stream):
        try:
            fail(secret)
        except KeyError as error:
            structlog.get_logger("gateway").error("fault", exc_info=error)
    assert "KeyError" in stream.getvalue()
    assert secret not in stream.getvalue()


class Unspeakable:
    """Whatever is asked what it is raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


def deep() -> list[object]:
    """A list in itself."""
    found: list[object] = [1]
    found.append(found)
    return found


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
@pytest.mark.parametrize(
    "value",
    [Unspeakable(), [Unspeakable()], {Unspeakable(): 1}, deep(), 10**5000],
    ids=["one", "listed", "named", "deep", "long"],
)
def test_a_value_that_cannot_be_shown_costs_no_line(stream: io.StringIO, value: object) -> None:
    with logging_to(stream):
        log = structlog.get_logger("index")
        log.warning("before", peer=value)
        log.warning("a kind", kind=value)
        for arguments in (("request %r", value), ("one too many", value), (value,)):
            logging.getLogger("aiohttp").error(*arguments)
    text = stream.getvalue()
    assert "before" in text and "a kind" in text and "request" in text and "one too many" in text
    assert "Traceback" not in text and is_safe(text)


def failing_deep(depth: int) -> None:
    """Fail below many different lines."""
    if depth == 0:
        raise KeyError("what went wrong")
    try:
        failing_deep(depth - 1)
    except KeyError as error:
        raise KeyError(f"at {depth}") from error


def test_a_long_traceback_keeps_its_beginning_and_its_end() -> None:
    stream = io.StringIO()
    with logging_to(stream):
        try:
            failing_deep(200)
        except KeyError as error:
            structlog.get_logger("index").error("fault", exc_info=error)
            logging.getLogger("asyncio").error("Task exception", exc_info=error)
    for line in stream.getvalue().splitlines():
        trace = json.loads(line)["exception"]
        assert trace.startswith("Traceback") and "what went wrong" in trace
        assert trace.rstrip().endswith("KeyError: 'at 200'") and "…\n…" in trace
        assert len(trace) <= MAX_TRACEBACK_CHARS
