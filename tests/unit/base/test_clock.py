"""The machine's clocks, behind the interface that the fakes implement."""

from __future__ import annotations

import time

from piecework.base.clock import Clock, SystemClock


def test_the_wall_clock_counts_from_the_epoch() -> None:
    clock: Clock = SystemClock()
    before = time.time()
    assert before <= clock.wall() <= time.time()


def test_the_monotonic_clock_does_not_go_back() -> None:
    clock: Clock = SystemClock()
    seen = [clock.monotonic() for _ in range(100)]
    assert seen == sorted(seen)
