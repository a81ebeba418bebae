"""What the structured logs of servers have in common. This needs structlog, which their extras
bring.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from textwrap import indent
from typing import Any, Final

import structlog

from piecework.base.library_logs import MAX_TRACEBACK_CHARS
from piecework.base.repeats import Repeats
from piecework.base.text import both_ends, in_words, one_line

MAX_VALUE_CHARS: Final = 300
MAX_DEPTH: Final = 8
"""Of lists and tables in a value. What is deeper, or holds itself, is shown as Python shows it."""
MAX_DECIMAL_BITS: Final = 512
"""A longer number is shown in hex: Python refuses to write thousands of decimals."""
_KINDS: Final = ("clause", "code", "error_class", "kind", "reason", "state", "status")
"""Fields that tell two warnings apart. Others, such as a job or a text, vary with each repetition.
"""


class DropRepeats:
    """A structlog processor. Place it after the level was added.

    Lines of level info and below count as alike if they are equal. Warnings and errors count as
    alike if they are of one kind.
    """

    def __init__(self, repeats: Repeats | None = None) -> None:
        self._repeats = repeats or Repeats()

    def __call__(
        self, _: Any, __: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        severe = event.get("level") in ("warning", "error", "critical", "exception")
        fields = [k for k in _KINDS if k in event] if severe else sorted(event)
        key = (event.get("level"), event.get("event"), *((k, in_words(event[k])) for k in fields))
        left_out = self._repeats.passes(key)
        if left_out is None:
            raise structlog.DropEvent
        if left_out:
            event["repeated"] = left_out
        return event


def plain(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make every value safe for a terminal. A structlog processor, right before the renderer.

    Strangers wrote some of the texts, also those in errors. A traceback becomes the text
    `exception`. It is of lines of code alone: local variables hold what callers ask and are told.
    """
    event = structlog.processors.format_exc_info(None, "", event)
    trace = event.pop("exception", None)
    safe = {one_line(in_words(k), MAX_VALUE_CHARS): _safe(value) for k, value in event.items()}
    if trace is not None:
        safe["exception"] = both_ends(str(trace), MAX_TRACEBACK_CHARS)
    return safe


def indented(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Indent a traceback for a person: the text of an error has lines, and none may look like ours.

    A structlog processor, behind `plain`.
    """
    if "exception" in event:
        event["exception"] = indent(event["exception"], "  ")
    return event


def _is_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > MAX_DECIMAL_BITS


def _safe(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a value that a renderer writes. Whatever the value is, this does not raise."""
    match value:
        case str():
            return one_line(value, MAX_VALUE_CHARS)
        case bytes():
            return value.hex()
        case None | bool() | float() | int() if not _is_long(value):
            return value
        case dict() if depth:
            return {
                one_line(in_words(k), MAX_VALUE_CHARS): _safe(v, depth - 1)
                for k, v in value.items()
            }
        case list() | tuple() if depth:
            return [_safe(one, depth - 1) for one in value]
    words = hex if _is_long(value) else repr
    return one_line(in_words(value, words), MAX_VALUE_CHARS)
