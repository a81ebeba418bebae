"""The payer's part of the escrow's history: read once, kept in the journal, decoded when needed.

Only final blocks are kept, and they are read in the ranges that the node takes. What was read
stays, so a scan that was cut off goes on where it stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.events import Log, topic
from piecework.chain.limits import MAX_CHANNELS_PER_LOG_QUERY
from piecework.chain.nodes.logs import LogSearch
from piecework.chain.reading.reader import ChainReader
from piecework.client.journal.logs import ChainLogs, LogRow
from piecework_protocol.objects import Channel
from piecework_protocol.types import Address, Bytes32, ChannelId, Timestamp, to_hex

OF_A_PAYER: Final = ("Deposited", "BalanceWithdrawn", "ChannelOpened", "ChannelClosed")
"""Events that have the payer as their third topic."""
OF_A_CHANNEL: Final = ("ChannelFunded", "Settled", "Withdrawn")
"""Events that have the channel as their second topic and no payer."""


Place = tuple[int, int]
"""The block of an event, and its index in it."""


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """One event of the escrow, with its values by the names that the contract gives them."""

    name: str
    log: Log
    time: Timestamp
    values: dict[str, Any]

    @property
    def place(self) -> Place:
        """Where it stands on the chain."""
        return self.log.block, self.log.index

    @property
    def channel(self) -> ChannelId | None:
        """The channel that it is about, or None if it is about the pooled balance."""
        found = self.values.get("channelId")
        return None if found is None else ChannelId(found)


class History:
    """What the escrow did with one payer's money."""

    def __init__(self, logs: ChainLogs, reader: ChainReader, payer: Address) -> None:
        self._logs, self._reader, self._payer = logs, reader, payer
        self._search = LogSearch(reader.rpc)
        known = interface("Escrow").events
        self._names = {topic(name): name for name in (*OF_A_PAYER, *OF_A_CHANNEL) if name in known}

    async def read(self) -> int:
        """Read what is new up to the newest final block, and return that block.

        Raises:
            ChainError: the node does not answer. What was read before stays.
        """
        end = await self._reader.finalized_block()
        start = await asyncio.to_thread(self._logs.scanned_to)
        if start is None:
            start = self._reader.deployment.from_block or 0
        channels = {e.channel for e in await self.events() if e.name == "ChannelOpened"}
        # It starts small, so that something is kept also from a node that soon goes away.
        span = 1
        while start <= end:
            stop = min(end, start + span - 1)
            found = await self._range(start, stop, channels)
            await asyncio.to_thread(self._logs.add, found, stop + 1)
            start, span = stop + 1, min(2 * span, self._search.width)
        return end

    async def recent(self) -> tuple[HistoryEvent, ...]:
        """Return the events in blocks that are not final yet. They are not kept.

        Raises:
            ChainError: the node does not answer.
        """
        start = await asyncio.to_thread(self._logs.scanned_to) or (
            self._reader.deployment.from_block or 0
        )
        end = await self._reader.latest_block()
        channels = {e.channel for e in await self.events() if e.name == "ChannelOpened"}
        rows = await self._range(start, end, channels) if start <= end else []
        return self._decoded(rows)

    async def events(self) -> tuple[HistoryEvent, ...]:
        """Return all that was read, in the order of the chain."""
        rows = await asyncio.to_thread(self._logs.all, self._reader.deployment.escrow)
        return self._decoded(rows)

    async def _range(
        self, start: int, stop: int, channels: set[ChannelId | None]
    ) -> Sequence[LogRow]:
        payer = "0x" + bytes(12).hex() + self._payer.hex()
        own = await self._query(start, stop, OF_A_PAYER, [None, payer])
        channels.update(e.channel for e in self._decoded(_untimed(own)) if e.channel is not None)
        known = sorted(channel for channel in channels if channel is not None)
        for first in range(0, len(known), MAX_CHANNELS_PER_LOG_QUERY):
            some = [to_hex(key) for key in known[first : first + MAX_CHANNELS_PER_LOG_QUERY]]
            own += await self._query(start, stop, OF_A_CHANNEL, [some])
        own.sort(key=lambda log: (log.block, log.index))
        times = {number: await self._time(number) for number in {log.block for log in own}}
        return [LogRow(log, times[log.block]) for log in own]

    async def _query(
        self, start: int, stop: int, names: Iterable[str], more: list[Any]
    ) -> list[Log]:
        wanted = [to_hex(key) for key, name in self._names.items() if name in names]
        escrow = self._reader.deployment.escrow
        parts = self._search.scan(escrow, [wanted, *more], start, stop)
        return [log async for part in parts for log in part.logs]

    async def _time(self, number: int) -> Timestamp:
        return (await self._reader.block(number)).timestamp

    def _decoded(self, rows: Iterable[LogRow]) -> tuple[HistoryEvent, ...]:
        escrow, abi = self._reader.deployment.escrow, interface("Escrow")
        events = []
        for row in rows:
            name = self._names.get(row.log.topics[0]) if row.log.topics else None
            if name is not None and row.log.address == escrow:
                values = abi.decode_event(name, row.log.topics, row.log.data)
                events.append(HistoryEvent(name, row.log, row.time, values))
        return tuple(events)


def terms_of(event: HistoryEvent) -> Channel:
    """Return the terms in a ChannelOpened."""
    payer, authorizer, receiver, operator, token, delay, salt = event.values["channel"]
    return Channel(payer, authorizer, receiver, operator, token, delay, Bytes32(salt))


def _untimed(logs: Iterable[Log]) -> list[LogRow]:
    return [LogRow(log, Timestamp(0)) for log in logs]
