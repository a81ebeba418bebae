"""An event loop whose time passes only while everybody waits: minutes of a simulation take no time.

Production code runs on it unchanged, with `asyncio.timeout`, `asyncio.wait` and all the rest.
Threads run inline, so that one seed is one order of events.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.market.shipped import InlineExecutor

T = TypeVar("T")
START = 1_800_000_000
STUCK_S = 10.0


class _Selector(selectors.SelectSelector):
    """Never waits: what would have been waited is added to `passed`."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.passed += timeout
        if not ready and timeout is None:
            ready = super().select(STUCK_S)  # the loop's own threads, as it closes
            if not ready:
                raise AssertionError("everybody waits for ever")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Implements the loop's clock with time that is skipped."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self.set_default_executor(InlineExecutor(max_workers=1))

    def time(self) -> float:
        return self._virtual.passed


class LoopClock:
    """Implements `piecework.base.clock.Clock` with the running loop's time."""

    def __call__(self) -> float:
        return self.wall()

    def wall(self) -> float:
        return START + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def simulate(work: Coroutine[Any, Any, T]) -> T:
    """Run a simulation to its end, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
