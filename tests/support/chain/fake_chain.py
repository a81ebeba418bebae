"""The chain as a client and an index read it, in memory. Implements
`client.discovery.ChainView`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from piecework.base.amounts import Token
from piecework.chain.contracts.events import EscrowEvent
from piecework.chain.contracts.records import Block
from piecework.chain.errors import RpcUnavailable
from piecework.chain.reading.reader import UNKNOWN_CHANNEL, ChannelOnChain, RegisteredWorker
from piecework.market.explorer.layout import Money
from piecework.market.server import ExplorerSettings
from piecework_protocol.eip712 import Domain
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, ChannelId, Timestamp, keccak256

DOMAIN = Domain(31337, Address(b"\x11" * 20))
TOKEN = Address(b"\x33" * 20)
TOKEN_INFO = Token(bytes(TOKEN), "tUSDC", 6)
EXPLORER = ExplorerSettings(Money(TOKEN_INFO))


class FakeChain:
    """What was put into it is what it answers. `away` makes it stop answering. `final` is what its
    final block shows, if that is not what its newest shows."""

    def __init__(self, domain: Domain = DOMAIN) -> None:
        self.domain = domain
        self.registered: dict[Address, RegisteredWorker] = {}
        self.session_keys: set[tuple[Address, Address]] = set()
        self.channels: dict[ChannelId, ChannelOnChain] = {}
        self.balances: dict[tuple[Address, Address], Amount] = {}
        self.own: dict[tuple[Address, Address], Amount] = {}
        self.token_domain: Domain | None = None
        """None: the token knows no EIP-3009."""
        self.final: dict[ChannelId, ChannelOnChain] | None = None
        self.events: list[EscrowEvent] = []
        """What the escrow logged, in order. Block n was at second 1,800,000,000 + n."""
        self.final_block = 1
        self.away = False
        self.reads = 0

    def register(
        self,
        operator: Address,
        payout: Address,
        endpoint: str = "127.0.0.1:1",
        *,
        active: bool = True,
    ) -> None:
        """Bond a worker."""
        self.registered[operator] = RegisteredWorker(
            owner=payout,
            operator=operator,
            payout=payout,
            stake=Amount(10**9),
            endpoint=endpoint,
            active=active,
            registered_at=Timestamp(1),
            unbond_requested_at=Timestamp(0),
        )

    def deposit(self, owner: Address, amount: int, token: Address = TOKEN) -> None:
        """Put tokens into the owner's pooled balance."""
        self.balances[token, owner] = Amount(self.balances.get((token, owner), 0) + amount)

    def fund(
        self, channel: ChannelId, deposit: int, payer: Address, token: Address = TOKEN
    ) -> None:
        """Mine a funding authorization: the total moves out of the payer's pooled balance."""
        before = self.channels[channel].funded if channel in self.channels else 0
        self.deposit(payer, before - deposit, token)
        self.set_channel(channel, ChannelState.OPEN, deposit)

    def set_channel(self, channel: ChannelId, state: ChannelState, deposit: int) -> None:
        """Make the escrow know a channel."""
        self.channels[channel] = ChannelOnChain(state, Amount(deposit), Amount(0))

    async def worker(self, operator: Address) -> RegisteredWorker | None:
        self._read()
        return self.registered.get(operator)

    async def finalized_block(self) -> int:
        self._read()
        return self.final_block

    async def block(self, number: int | str) -> Block:
        self._read()
        height = int(number)
        return Block(height, keccak256(str(height).encode()), Timestamp(1_800_000_000 + height))

    async def scan(
        self, names: Sequence[str], from_block: int | None = None, to_block: int | None = None
    ) -> AsyncIterator[tuple[int, tuple[EscrowEvent, ...]]]:
        """One part a block."""
        for number in range(from_block or 0, (to_block or self.final_block) + 1):
            self._read()
            yield (
                number,
                tuple(
                    e for e in self.events if e.log.block == number and type(e).__name__ in names
                ),
            )

    async def every_worker(self, maximum: int = 10_000) -> AsyncIterator[RegisteredWorker]:
        self._read()
        for worker in list(self.registered.values())[:maximum]:
            yield worker

    async def is_signer(self, operator: Address, key: Address) -> bool:
        self._read()
        return key == operator or (operator, key) in self.session_keys

    async def channel(self, channel_id: ChannelId, *, block: int | None = None) -> ChannelOnChain:
        self._read()
        known = self.channels if block is None or self.final is None else self.final
        return known.get(channel_id, UNKNOWN_CHANNEL)

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        self._read()
        return self.balances.get((token, owner), Amount(0))

    async def token_balance(self, token: Address, owner: Address) -> Amount:
        self._read()
        return self.own.get((token, owner), Amount(0))

    async def opening_domain(self, token: Address) -> Domain | None:
        self._read()
        return self.token_domain

    def _read(self) -> None:
        self.reads += 1
        if self.away:
            raise RpcUnavailable("the chain does not answer")
