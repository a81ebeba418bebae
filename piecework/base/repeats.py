"""Log what repeats at most once a second, with a count of what was left out.

A stranger who causes an error thousands of times a second must not fill the disk that the journals
live on.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

from piecework.base.text import in_words

INTERVAL_S: Final = 1.0
MAX_KEYS: Final = 512
"""Kinds of lines that are remembered. The oldest is forgotten first, and may then be logged."""


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


class DropRepeatedRecords(logging.Filter):
    """The same for Python's own logging, which asyncio, aiohttp and gRPC use."""

    def __init__(self, repeats: Repeats | None = None) -> None:
        super().__init__()
        self._repeats = repeats or Repeats()

    def filter(self, record: logging.LogRecord) -> bool:
        message = in_words(record.msg)
        left_out = self._repeats.passes((record.levelno, record.name, message[:200]))
        if left_out:
            record.msg = f"{message} (and {left_out} more like it)"
        return left_out is not None
