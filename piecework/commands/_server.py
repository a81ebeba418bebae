"""What the commands that serve HTTP do the same way: log, and stop on a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import structlog

from piecework.base.logs import DropRepeats
from piecework.base.repeats import bound_library_logs


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

    A traceback is of lines of code alone. Local variables hold what callers ask and are told.
    """
    bound_library_logs()
    interactive = sys.stderr.isatty()
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
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
