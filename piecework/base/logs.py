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
from piecework.base.text import one_line, printable

MAX_VALUE_CHARS: Final = 300
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
        key = (event.get("level"), event.get("event"), *((k, str(event[k])) for k in fields))
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
    safe = {one_line(str(key), MAX_VALUE_CHARS): _safe(value) for key, value in event.items()}
    if trace is not None:
        safe["exception"] = printable(str(trace), lines=True, limit=MAX_TRACEBACK_CHARS)
    return safe


def indented(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Indent a traceback for a person: the text of an error has lines, and none may look like ours.

    A structlog processor, behind `plain`.
    """
    if "exception" in event:
        event["exception"] = indent(event["exception"], "  ")
    return event


def _safe(value: Any) -> Any:
    match value:
        case str():
            return one_line(value, MAX_VALUE_CHARS)
        case bytes():
            return value.hex()
        case None | bool() | int() | float():
            return value
        case dict():
            return {one_line(str(k), MAX_VALUE_CHARS): _safe(v) for k, v in value.items()}
        case list() | tuple():
            return [_safe(one) for one in value]
    return one_line(repr(value), MAX_VALUE_CHARS)
