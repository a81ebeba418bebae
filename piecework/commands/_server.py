"""What the commands that serve HTTP do the same way: listen, say so, and stop on a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass

import structlog
from aiohttp import web

from piecework.base.errors import PieceworkError


class CannotListen(PieceworkError):
    """The address is taken or not ours."""


@dataclass(frozen=True, slots=True)
class BoundServer:
    """Where a server listens in fact."""

    url: str
    port: int


async def listen(runner: web.AppRunner, host: str, port: int) -> BoundServer:
    """Start serving; port 0 picks a free one."""
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        raise CannotListen(f"cannot listen on {host}:{port}: {_why(error)}") from None
    actual = int(runner.addresses[0][1])
    shown = f"[{host}]" if ":" in host else host
    return BoundServer(f"http://{shown}:{actual}", actual)


def _why(error: OSError) -> str:
    """asyncio's own text repeats the address as Python writes it."""
    if isinstance(error, socket.gaierror):
        return "the host name was not found"
    return os.strerror(error.errno).lower() if error.errno else str(error)


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
    """Structured logs: JSON lines, or readable ones on a terminal."""
    interactive = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer() if interactive else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
