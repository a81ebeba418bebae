"""Time as an argument: wall time for what is signed, a monotonic clock for waiting."""

from __future__ import annotations

import time
from typing import Protocol

from piecework_protocol.types import Timestamp


class Clock(Protocol):
    """Where the node reads time."""

    def now(self) -> Timestamp:
        """Seconds since the epoch, by the wall clock: compared with deadlines and expiries."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never goes back: for durations."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> Timestamp:
        return Timestamp(int(time.time()))

    def monotonic(self) -> float:
        return time.monotonic()
