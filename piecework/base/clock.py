"""Time as an argument: wall time for what is signed, a monotonic clock for waiting."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a program reads time."""

    def wall(self) -> float:
        """Seconds since the Unix epoch. It may jump. Compare it with deadlines and expiries."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start. It never goes back. Use it for durations."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
