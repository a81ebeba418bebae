"""What the commands that serve HTTP do the same way: log, and stop on a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import structlog

from piecework.base.library_logs import bound_library_logs
from piecework.base.logs import DropRepeats, indented, plain


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def until_told_to_stop() -> None:
    """Return at SIGTERM or SIGINT."""
    await stop_event().wait()


def logs_to_stderr() -> None:
    """Structured logs: JSON lines, or readable ones on a terminal. What repeats is counted.

    Lines of libraries have the same form. What strangers wrote passes the sanitizer.
    """
    interactive = sys.stderr.isatty()
    bound_library_logs(human=interactive)
    renderer = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if interactive
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            DropRepeats(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            plain,
            *((indented,) if interactive else ()),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
