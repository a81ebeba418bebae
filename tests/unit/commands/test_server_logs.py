"""What the commands that serve write into their logs."""

from __future__ import annotations

import contextlib
import io

import pytest
import structlog

from piecework.commands._server import logs_to_stderr


class Terminal(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def fail(prompt: str) -> None:
    """Fail with a text in a local variable."""
    raise KeyError(len(prompt))


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_traceback_shows_no_local_variables(stream: io.StringIO) -> None:
    secret = "what a caller asks".upper()
    try:
        with contextlib.redirect_stderr(stream):
            logs_to_stderr()
            try:
                fail(secret)
            except KeyError as error:
                structlog.get_logger("gateway").error("fault", exc_info=error)
    finally:
        structlog.reset_defaults()
    assert "KeyError" in stream.getvalue()
    assert secret not in stream.getvalue()
