"""Finding a payer's channels again after the journal was lost, or came back from an old copy.

The chain knows every channel that was opened. The worker knows the latest voucher, which carries
our own signature (clause 5.7). Nothing here signs a voucher.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from piecework.base.errors import PieceworkError
from piecework.client.history import History, terms_of
from piecework.client.jobs.driver import JobContext
from piecework.client.journal.records import ChannelRow
from piecework_protocol.states import ChannelState


@dataclass(frozen=True, slots=True)
class Recovered:
    """One channel that the chain knows.

    Attributes:
        row: The channel as the journal has it now.
        found: Whether the journal did not know it before.
        note: One line for a person.
    """

    row: ChannelRow
    found: bool
    note: str


async def recover(
    context: JobContext, history: History, ask: Callable[[ChannelRow], Awaitable[ChannelRow]]
) -> tuple[Recovered, ...]:
    """Bring the journal up to what the chain and the workers know.

    Args:
        context: The client's journal and keys.
        history: The chain.
        ask: Brings a channel's book in line with its worker's record.

    Returns:
        Every channel of this payer that the chain knows, oldest first.

    Raises:
        ChainError: the node does not answer. What was read stays, and the next call goes on there.
    """
    await history.read()
    events = (*await history.events(), *await history.recent())
    known = {row.id for row in await asyncio.to_thread(context.store.channels)}
    recovered = []
    for event in events:
        if event.name == "ChannelOpened":
            row = await asyncio.to_thread(context.store.adopt_channel, terms_of(event))
            row, note = await _looked_after(context, row, ask)
            recovered.append(Recovered(row, row.id not in known, note))
    return tuple(recovered)


async def _looked_after(
    context: JobContext, row: ChannelRow, ask: Callable[[ChannelRow], Awaitable[ChannelRow]]
) -> tuple[ChannelRow, str]:
    """See where a channel stands. A worker that does not answer stops no other channel."""
    try:
        row = await context.channels.refresh(row.id)
        seen = await context.channels.on_chain(row.id)
        if seen.state is ChannelState.CLOSED:
            return row, "closed"
        before = row.book.accumulator.count
        row = await ask(row)
    except PieceworkError as error:
        return row, f"its worker shows no record ({error}); closing it takes the withdrawal delay"
    added = row.book.accumulator.count - before
    return row, f"{added} receipts more than this journal knew" if added else "up to date"
