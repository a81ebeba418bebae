"""The escrow as a worker sees it, in memory: channels, pooled balances, a mempool that drops and
delays."""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.errors import RpcUnavailable
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, ChannelId


@dataclass(slots=True)
class FakeChannel:
    """A channel on the fake chain."""

    state: ChannelState = ChannelState.NONE
    deposit: Amount = Amount(0)
    settled: Amount = Amount(0)


@dataclass(frozen=True, slots=True)
class Seen:
    """A snapshot of one."""

    state: ChannelState
    deposit: Amount
    settled: Amount


class FakeEscrow:
    """Implements `node.cashier.ChannelSource`."""

    def __init__(self) -> None:
        self.channels: dict[ChannelId, FakeChannel] = {}
        self.pooled: dict[tuple[Address, Address], int] = {}
        self.down = False
        self.reads = 0

    async def channel(self, channel_id: ChannelId) -> Seen:
        self._answer()
        known = self.channels.get(channel_id, FakeChannel())
        return Seen(known.state, known.deposit, known.settled)

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        self._answer()
        return Amount(self.pooled.get((token, owner), 0))

    def _answer(self) -> None:
        self.reads += 1
        if self.down:
            raise RpcUnavailable("the node does not answer")

    # --- what tests do

    def open(self, channel_id: ChannelId, deposit: int) -> None:
        """Mine an opening or a top-up."""
        known = self.channels.setdefault(channel_id, FakeChannel())
        if known.state is ChannelState.NONE:
            known.state = ChannelState.OPEN
        known.deposit = Amount(max(known.deposit, deposit))


class IdlePayments:
    """Implements `node.cashier.Payments`: remembers what it was told."""

    def __init__(self) -> None:
        self.wanted: list[ChannelId] = []
        self.paid: list[ChannelId] = []
        self.closed: list[ChannelId] = []

    def funding_wanted(self, channel: ChannelId) -> None:
        self.wanted.append(channel)

    def voucher_accepted(self, channel: ChannelId) -> None:
        self.paid.append(channel)

    async def close(self, channel: ChannelId) -> bytes:
        self.closed.append(channel)
        return b"\xcc" * 32
