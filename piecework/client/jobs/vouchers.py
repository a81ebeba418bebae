"""Vouchers that open streams of this process have sent.

Any number of jobs pay over one channel. When a worker accepts a job, its record often lacks the
vouchers that other streams have just sent. They are on their way, so nobody sends them again. A
stream that breaks takes its vouchers out: its own job, or the next one, sends what is lacking.
"""

from __future__ import annotations

from piecework.client.network.transport import JobStream
from piecework_protocol.types import ChannelId


class VouchersUnderWay:
    """The highest count that each open stream has sent a voucher for."""

    def __init__(self) -> None:
        self._counts: dict[ChannelId, dict[JobStream, int]] = {}

    def sent(self, channel: ChannelId, stream: JobStream, count: int) -> None:
        """Note that a stream is sending the voucher for `count` receipts of a channel."""
        self._counts.setdefault(channel, {})[stream] = count

    def ended(self, channel: ChannelId, stream: JobStream) -> None:
        """Note that a stream is over. What it sent may not have arrived."""
        streams = self._counts.get(channel, {})
        streams.pop(stream, None)
        if not streams:
            self._counts.pop(channel, None)

    def covers(self, channel: ChannelId, count: int) -> bool:
        """Say whether an open stream has sent a voucher for so many receipts, or for more."""
        return any(sent >= count for sent in self._counts.get(channel, {}).values())
