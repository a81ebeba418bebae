"""Follow the escrow's channels and payments into the index's history, up to the last final block.

The chain may be away, slow or bounded in its answers. Then the history is older, and nothing else
of the index waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Protocol

from piecework.chain.contracts.events import ChannelClosed, ChannelOpened, EscrowEvent, Settled
from piecework.chain.contracts.records import Block
from piecework.market.history import ChannelEvent, Closed, MarketHistory, Opened, Paid
from piecework.market.limits import EVENTS_AT_ONCE, SETTLEMENTS_INTERVAL_S
from piecework.market.rounds import repeat
from piecework_protocol.objects import Channel
from piecework_protocol.types import Address

EVENTS: Final = ("ChannelOpened", "Settled", "ChannelClosed")


class Parties(Protocol):
    """Who stands behind a worker, as the registry says."""

    @property
    def owner(self) -> Address: ...

    @property
    def payout(self) -> Address: ...


class EventSource(Protocol):
    """What is read from the chain; `chain.reader.ChainReader` is one."""

    async def worker(self, operator: Address) -> Parties | None: ...

    async def finalized_block(self) -> int: ...

    async def block(self, number: int | str) -> Block: ...

    def scan(
        self, names: Sequence[str], from_block: int | None = None, to_block: int | None = None
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]: ...


def is_own(terms: Channel, parties: Parties | None) -> bool:
    """Whether a worker pays itself: its payer or authorizer is its operator, receiver or owner.

    An owner who pays from an address that nothing connects with the worker is not noticed.
    """
    worker = {terms.operator, terms.receiver}
    if parties is not None:
        worker |= {parties.owner, parties.payout}
    return not worker.isdisjoint((terms.payer, terms.authorizer))


async def catch_up(history: MarketHistory, chain: EventSource) -> int:
    """Take over every event that is new and final. Return how many there were.

    Each part that the chain gives is kept at once, so that a long way is gone once only.

    Raises:
        ChainError: the chain does not answer.
        OfferStoreError: the database cannot be written.
    """
    last, before = await chain.finalized_block(), await history.read_to()
    first = None if before is None else before + 1
    if first is not None and first > last:
        return 0
    count = 0
    async for end, events in chain.scan(EVENTS, first, last):
        for last_of_part, part in _parts(events, end):
            if not await history.take_events(await _read(part, chain), before, last_of_part):
                return count
            before = last_of_part
            count += len(part)
    return count


async def follow(history: MarketHistory, chain: EventSource, log: Any) -> None:
    """Catch up again and again until cancelled. What fails is logged once until it works again.

    An error of ours, or an event that fits no table, ends the round that it came in. The index
    shows an older history then, and everything else of it goes on.
    """
    await repeat(
        lambda: catch_up(history, chain), log.warning, "settlements", SETTLEMENTS_INTERVAL_S
    )


def _parts(events: Sequence[EscrowEvent], end: int) -> Iterator[tuple[int, Sequence[EscrowEvent]]]:
    """Cut events up to a block into parts of whole blocks, so that no transaction takes long.

    Each part comes behind its last block.
    """
    start = 0
    for at, event in enumerate(events):
        block = events[at - 1].log.block
        if at - start >= EVENTS_AT_ONCE and event.log.block != block:
            yield block, events[start:at]
            start = at
    yield end, events[start:]


async def _read(events: Sequence[EscrowEvent], chain: EventSource) -> list[ChannelEvent]:
    """Add to events when they were, and whose channels they are about."""
    blocks = dict.fromkeys(e.log.block for e in events if isinstance(e, Settled))
    times = {number: (await chain.block(number)).timestamp for number in blocks}
    operators = dict.fromkeys(e.terms.operator for e in events if isinstance(e, ChannelOpened))
    parties = {operator: await chain.worker(operator) for operator in operators}
    found = list[ChannelEvent]()
    for event in events:
        log = event.log
        if isinstance(event, ChannelOpened):
            terms = event.terms
            own = is_own(terms, parties[terms.operator])
            found.append(Opened(event.channel, terms.operator, terms.token, own))
        elif isinstance(event, Settled):
            at = times[log.block]
            paid = Paid(event.channel, event.amount, log.block, log.index, at, log.transaction)
            found.append(paid)
        elif isinstance(event, ChannelClosed):
            found.append(Closed(event.channel))
    return found
