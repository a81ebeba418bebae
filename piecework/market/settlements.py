"""Follow the escrow's openings and payments into the index's history, up to the last final block.

The chain may be away, slow or bounded in its answers. Then the history is older, and nothing else
of the index waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

from piecework.chain.events import EscrowEvent, Settled
from piecework.chain.records import Block
from piecework.market.history import MarketHistory
from piecework.market.limits import SETTLEMENTS_INTERVAL_S

EVENTS: Final = ("ChannelOpened", "Settled")


class EventSource(Protocol):
    """What is read from the chain; `chain.reader.ChainReader` is one."""

    async def finalized_block(self) -> int: ...

    async def block(self, number: int | str) -> Block: ...

    def scan(
        self, names: Sequence[str], from_block: int | None = None, to_block: int | None = None
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]: ...


async def catch_up(history: MarketHistory, chain: EventSource) -> int:
    """Take over every event that is new and final. Return how many there were.

    Each part that the chain gives is kept at once, so that a long way is gone once only.

    Raises:
        ChainError: the chain does not answer.
        apsw.Error: the database cannot be written.
    """
    last = await chain.finalized_block()
    first = None if history.read_to is None else history.read_to + 1
    if first is not None and first > last:
        return 0
    count = 0
    async for end, events in chain.scan(EVENTS, first, last):
        blocks = dict.fromkeys(e.log.block for e in events if isinstance(e, Settled))
        times = {number: (await chain.block(number)).timestamp for number in blocks}
        history.take_events(events, times, end)
        count += len(events)
    return count


async def follow(history: MarketHistory, chain: EventSource, log: Any) -> None:
    """Catch up again and again until cancelled. What fails is logged once until it works again.

    An error of ours, or an event that fits no table, ends the round that it came in. The index
    shows an older history then, and everything else of it goes on.
    """
    failed = ""
    while True:
        try:
            await catch_up(history, chain)
            failed = ""
        except Exception as error:  # noqa: BLE001  it ends this round alone
            told = f"{type(error).__name__}: {error}"
            if told != failed:
                log.warning("settlements", error=str(error), error_class=type(error).__name__)
            failed = told
        await asyncio.sleep(SETTLEMENTS_INTERVAL_S)
