"""The one place where a test waits for the real world: sockets, processes, the embedded chain.

Nothing else in the tests may sleep (tests/repo holds that). Simulated time is moved by fake clocks.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from random import Random

POLL_S = 0.01
WITHIN_S = 20.0


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    *,
    within_s: float = WITHIN_S,
    poll_s: float = POLL_S,
) -> None:
    """Wait until the condition holds. It may be a coroutine function.

    Raises:
        TimeoutError: it did not hold within `within_s` seconds.
    """
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if inspect.isawaitable(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(poll_s)


async def random_moment(chance: Random, longest_s: float) -> None:
    """Let real processes run for a random time: the kill that follows can fall anywhere."""
    await asyncio.sleep(chance.uniform(0, longest_s))


async def pass_time(seconds: float) -> None:
    """Let the loop's time pass: a moment of the real world, or none of it in a simulation."""
    await asyncio.sleep(seconds)
