"""The escrow as a worker sees it, in memory: channels, pooled balances, a mempool that drops and
delays."""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.contracts.authorizations import opening_authorization
from piecework.chain.errors import RpcUnavailable
from piecework.chain.reading.reader import ChannelOnChain
from piecework_node.journal.records import OneStepFunding
from piecework_node.runtime.channels import ChannelDepth
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.signing import signed_by
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, ChannelId, Timestamp
from tests.support.chain.fake_chain import DOMAIN, TOKEN

NEVER = Timestamp(0)
TOKEN_DOMAIN = Domain(DOMAIN.chain_id, TOKEN, "Test Dollar", "1")
"""Under which the token's holders sign."""


@dataclass(slots=True)
class FakeChannel:
    """A channel on the fake chain."""

    state: ChannelState = ChannelState.NONE
    deposit: Amount = Amount(0)
    settled: Amount = Amount(0)
    withdrawn: Amount = Amount(0)
    requested: Amount = Amount(0)
    requested_at: Timestamp = NEVER


class FakeEscrow:
    """Implements `ChannelReader` of `runtime.channels`."""

    def __init__(self) -> None:
        self.channels: dict[ChannelId, FakeChannel] = {}
        self.pooled: dict[tuple[Address, Address], int] = {}
        self.held: dict[tuple[Address, Address], int] = {}
        """Tokens outside of the escrow."""
        self.signed: set[tuple[Address, TypedData, bytes]] = set()
        """What smart accounts say that they have signed."""
        self.shallow: dict[ChannelId, Amount] = {}
        """Channels of which nothing is final, and how much of each is mined."""
        self.mute: set[ChannelId] = set()
        """Channels of which the node says nothing."""
        self.down = False
        self.reads = 0

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
        self._answer()
        if channel_id in self.mute:
            raise RpcUnavailable("the node does not answer")
        known = self.channels.get(channel_id, FakeChannel())
        request = (known.requested, known.requested_at)
        return ChannelOnChain(known.state, known.deposit, known.settled, known.withdrawn, *request)

    async def depth(self, channel_id: ChannelId) -> ChannelDepth:
        self._answer()
        deposit = self.channels.get(channel_id, FakeChannel()).deposit
        if channel_id in self.shallow:
            return ChannelDepth(self.shallow[channel_id], Amount(0))
        return ChannelDepth(deposit, deposit)

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        self._answer()
        return Amount(self.pooled.get((token, owner), 0))

    async def token_balance(self, token: Address, owner: Address) -> Amount:
        self._answer()
        return Amount(self.held.get((token, owner), 0))

    async def opening_signed(self, funding: OneStepFunding) -> bool:
        self._answer()
        terms = funding.authorization
        message = opening_authorization(DOMAIN, terms.channel, Amount(0), funding.opening)
        return signed_by(TOKEN_DOMAIN, message, funding.signature, terms.channel.payer)

    async def payer_signed(self, payer: Address, message: TypedData, signature: bytes) -> bool:
        self._answer()
        return (payer, message, signature) in self.signed

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
