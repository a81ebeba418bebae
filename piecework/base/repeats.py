"""Log what repeats at most once a second, with a count of what was left out.

A stranger who causes an error thousands of times a second must not fill the disk that the journals
live on.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, Final

import structlog

INTERVAL_S: Final = 1.0
MAX_KEYS: Final = 512
"""Kinds of lines that are remembered. The oldest is forgotten first, and may then be logged."""
_KINDS: Final = ("clause", "code", "error_class", "kind", "reason", "state", "status")
"""Fields that tell two warnings apart. Others, such as a job or a text, vary with each repetition.
"""


class Repeats:
    """Which lines were logged within the last second."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def passes(self, key: Hashable) -> int | None:
        """Return how many like it were left out since the last one, or None to leave it out."""
        now = self._monotonic()
        at, left_out = self._seen.pop(key, (None, 0))
        if at is not None and now - at < INTERVAL_S:
            self._seen[key] = (at, left_out + 1)
            return None
        self._seen[key] = (now, 0)
        if len(self._seen) > MAX_KEYS:
            self._seen.popitem(last=False)
        return left_out


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


class DropRepeatedRecords(logging.Filter):
    """The same for Python's own logging, which asyncio, aiohttp and gRPC use."""

    def __init__(self, repeats: Repeats | None = None) -> None:
        super().__init__()
        self._repeats = repeats or Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        left_out = self._repeats.passes((record.levelno, record.name, str(record.msg)[:200]))
        if left_out:
            record.msg = f"{record.msg} (and {left_out} more like it)"
        return left_out is not None


def bound_library_logs() -> None:
    """Send warnings of libraries to stderr without repetitions, instead of the root's handlers."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.addFilter(DropRepeatedRecords())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().handlers[:] = [handler]
