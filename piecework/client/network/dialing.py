"""Asking many strangers side by side, without waiting for those that do not answer.

The first few are asked at once. While too few have answered, twice as many join a moment later, and
so on up to a bound. So one that answers is heard soon, whatever crowd of silent ones stands around
it, and a market that answers sees a handful of dials.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from piecework.client.limits import DIAL_WAVE_S, FIRST_DIALS, MAX_DIALS

T = TypeVar("T")
R = TypeVar("R")


class Background:
    """Tasks that nobody waits for any more. They end by their own bounds, or with `close`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to a task until it ends. Its result is dropped, its error too."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something beside everything else."""
        self.keep(asyncio.create_task(work))

    async def close(self) -> None:
        """End what still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()


async def first_answers(
    targets: Sequence[T],
    ask: Callable[[T], Awaitable[R | None]],
    *,
    enough: int,
    grace_s: float,
    background: Background,
) -> list[R]:
    """Ask strangers side by side and return what they say, in the order in which it comes.

    It returns once `enough` have answered, once all are settled, or after `grace_s` seconds once
    anybody has answered. Those that are still silent go on in the background.

    Args:
        targets: Whom to ask, the most promising first. At most `MAX_DIALS` are asked.
        ask: Returns an answer, or None. It ends by itself, and is told apart from an answer only
            by that None.
        enough: So many answers will do.
        grace_s: Seconds that others have to answer as well.
        background: Takes the questions that are still open.
    """
    queue, wave = list(targets[:MAX_DIALS]), FIRST_DIALS
    loop = asyncio.get_running_loop()
    grace_over, next_wave = loop.time() + grace_s, loop.time()
    answers: list[R] = []
    waiting: set[asyncio.Task[R | None]] = set()
    try:
        while (queue or waiting) and len(answers) < enough:
            if answers and loop.time() >= grace_over:
                break
            if queue and (not waiting or loop.time() >= next_wave):
                waiting |= {asyncio.ensure_future(_asked(ask, t)) for t in queue[:wave]}
                del queue[:wave]
                next_wave, wave = loop.time() + DIAL_WAVE_S, wave * 2
            moments = [next_wave] * bool(queue) + [grace_over] * bool(answers)
            timeout = max(0.0, min(moments) - loop.time()) if moments else None
            done, waiting = await asyncio.wait(
                waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            answers += [answer for task in done if (answer := task.result()) is not None]
    finally:
        for task in waiting:
            background.keep(task)
    return answers


async def _asked(ask: Callable[[T], Awaitable[R | None]], target: T) -> R | None:
    return await ask(target)
