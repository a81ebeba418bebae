"""Work that an index does again and again beside its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


async def repeat(
    work: Callable[[], Awaitable[object]],
    tell: Callable[..., Any],
    event: str,
    every_s: float,
    first_s: float = 0.0,
) -> None:
    """Work every so many seconds until cancelled. What fails is told once until it works again.

    An error of any kind ends the round that it came in. The rest of the index goes on.

    Args:
        work: One round.
        tell: The method of a log that takes `event` and fields.
        event: What the log calls a failure.
        every_s: Between two rounds.
        first_s: Before the first round.
    """
    failed = ""
    await asyncio.sleep(first_s)
    while True:
        try:
            await work()
            failed = ""
        except Exception as error:  # noqa: BLE001  it ends this round alone
            told = f"{type(error).__name__}: {error}"
            if told != failed:
                tell(event, error=str(error), error_class=type(error).__name__)
            failed = told
        await asyncio.sleep(every_s)
