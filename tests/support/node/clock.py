"""A clock that moves when it is told to."""

from __future__ import annotations

from piecework_protocol.types import Timestamp


class FakeClock:
    """Implements `piecework.base.clock.Clock`."""

    def __init__(self, now: int = 1_700_000_000) -> None:
        self._now = float(now)
        self._start = float(now)

    def now(self) -> Timestamp:
        return Timestamp(int(self._now))

    def wall(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now - self._start

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
