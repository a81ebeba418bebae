"""Structured logs on stderr, with an allow-list of fields.

No text of a job, no key and no URL can slip in. A field that is not on the list is dropped and its
name is shown. Every text passes the sanitizer, because strangers wrote some of it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from piecework.base.library_logs import bound_library_logs
from piecework.base.logs import DropRepeats, plain

ALLOWED: Final = frozenset(
    {
        "event", "level", "timestamp", "repeated", "code", "status",
        "task", "job", "channel", "canvas", "canvases", "state", "challenge", "wei",
        "reason", "clause", "peer", "count", "amount", "kind", "hash", "nonce", "block",
        "sequence", "slots", "active",
        "card", "model", "profile", "port", "admin_port", "seconds", "restarts",
        "error", "error_class", "defect",
        "bound", "bytes", "tokens_per_second", "dropped", "signal", "address", "index_host",
    }
)  # fmt: skip


def _allow(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    kept = {key: value for key, value in event.items() if key in ALLOWED}
    dropped = sorted(set(event) - ALLOWED)
    if dropped:
        kept["dropped"] = ",".join(dropped)
    return kept


_HUMAN: Final[tuple[Any, ...]] = (
    structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
    _allow,
    plain,
    structlog.dev.ConsoleRenderer(colors=False, sort_keys=False),
)
_JSON: Final[tuple[Any, ...]] = (
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _allow,
    plain,
    structlog.processors.JSONRenderer(),
)


def logger(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> Any:
    """Return a logger for the whole process.

    level: "debug", "info", "warning" or "error".
    form: "human" for a person, "json" for a program, or "auto": human on a terminal.
    """
    ours, stream = stream is None, stream or sys.stderr
    human = form == "human" or (form == "auto" and stream.isatty())
    if ours:
        bound_library_logs(human=human)
    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            DropRepeats(),
            *(_HUMAN if human else _JSON),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        cache_logger_on_first_use=True,
    )


def silent() -> Any:
    """Return a logger that drops everything below critical, for tests and one-shot commands."""
    return structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=[_allow, plain, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
    )
