"""A clock that moves when it is told to."""

from __future__ import annotations

from piecework_protocol.types import Timestamp


class FakeClock:
    """Implements `piecework.base.clock.Clock`, and the client's `Clock` by being called."""

    def __init__(self, now: float = 1_800_000_000) -> None:
        self._now = self._start = float(now)

    def __call__(self) -> float:
        return self._now

    def now(self) -> Timestamp:
        return Timestamp(int(self._now))

    def wall(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now - self._start

    def advance(self, seconds: float) -> None:
        """Let time pass; below zero the wall clock is set back."""
        self._now += seconds
