"""What libraries log through Python's own logging: asyncio, aiohttp, gRPC, and warnings.

Their lines stand among ours on stderr. So they have the same form, and the same bounds.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from textwrap import indent
from typing import Final, TextIO

from piecework.base.repeats import DropRepeatedRecords
from piecework.base.text import both_ends, in_words, one_line

MAX_MESSAGE_CHARS: Final = 2000
MAX_TRACEBACK_CHARS: Final = 20_000


class PersonFormatter(logging.Formatter):
    """One line for a person, and a traceback indented below. Neither drives a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        trace = _trace(self, record)
        line = f"{self.formatTime(record)} {record.levelname} {record.name} {_message(record)}"
        return f"{line}\n{indent(trace, '  ')}" if trace else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names that our own lines have."""

    def format(self, record: logging.LogRecord) -> str:
        trace = _trace(self, record)
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "event": _message(record),
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": at.isoformat().replace("+00:00", "Z"),
        }
        return json.dumps(line | ({"exception": trace} if trace else {}))


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001  a library's mistake, or an argument that cannot be shown
        text = f"{in_words(record.msg)} (its arguments cannot be shown)"
    return one_line(text, MAX_MESSAGE_CHARS)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback of a record and the stack that it came with, of lines of code alone."""
    parts = [formatter.formatException(record.exc_info)] if record.exc_info else []
    parts += [formatter.formatStack(record.stack_info)] if record.stack_info else []
    return both_ends("\n".join(parts), MAX_TRACEBACK_CHARS)


def bound_library_logs(*, human: bool, stream: TextIO | None = None) -> None:
    """Send warnings of libraries to stderr without repetitions, instead of the root's handlers.

    human: for a person. Otherwise as JSON lines. stream: None for stderr.
    """
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    handler.addFilter(DropRepeatedRecords())
    handler.setFormatter(PersonFormatter() if human else JsonFormatter())
    logging.getLogger().handlers[:] = [handler]
    logging.captureWarnings(True)
