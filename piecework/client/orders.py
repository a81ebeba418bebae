"""Orders about money that stays a while: a part of a channel asked back, a withdrawal signed for
somebody else to submit.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass

from piecework.base.amounts import TokenAmount
from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import SignedWithdrawal
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import Mined, TransactionSender
from piecework.client.errors import ClientError, InsufficientFunds
from piecework.client.jobs.driver import JobContext
from piecework.client.journal.records import ChannelStatus
from piecework_protocol.objects import WithdrawPooled
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    ChannelId,
    PayerSignature,
    Timestamp,
    Uint64,
    to_hex,
)


class ClosingState(enum.Enum):
    """Where a channel stands that was to be closed."""

    CLOSED = "closed"
    WAITING = "waiting"
    EMPTY = "empty"
    PART = "part"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Closing:
    """What became of a request to close.

    Attributes:
        channel: The channel's id.
        state: CLOSED: its money is back in the pooled balance. WAITING: until `withdrawable_at`.
            PART: a part of its money is back, and it stays open. EMPTY: there is nothing to get
            out of it. FAILED: `note` says why; it can be repeated.
        withdrawable_at: When to come back, if the channel waits.
        note: One line for a person.
    """

    channel: ChannelId
    state: ClosingState
    withdrawable_at: Timestamp | None
    note: str

    @property
    def closed(self) -> bool:
        """Whether its money is back in the pooled balance."""
        return self.state is ClosingState.CLOSED


class Orders:
    """Reach it as `client.funds.orders`."""

    def __init__(self, context: JobContext, reader: ChainReader, sender: TransactionSender) -> None:
        self._context, self._reader, self._sender = context, reader, sender
        self._deployment, self._money = reader.deployment, reader.deployment.payment_token
        self._payer = context.wallet.payer.address

    async def request(self, channel: ChannelId, amount: TokenAmount | str) -> Closing:
        """Ask for a part of a channel's money. `withdraw` takes it when the delay is over.

        The channel stays in use with the rest. It has one request at a time.

        Args:
            channel: The channel's id.
            amount: How much.

        Raises:
            AmountError: The text is not an amount of this market's token.
            StoreError: The journal does not know the channel.
            ClientError: The channel is not open, or has a request already.
            InsufficientFunds: The channel holds less that is promised to nobody.
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        units, context = self._units(amount), self._context
        row = await context.channels.refresh(channel)
        seen = await self._reader.channel(channel)
        if seen.state is ChannelState.WITHDRAWING:
            raise ClientError(
                f"channel {to_hex(channel)} has a request already. Call it off first: piecework "
                "client withdraw --cancel ID"
            )
        if seen.state is not ChannelState.OPEN or row.status is not ChannelStatus.OPEN:
            raise ClientError(f"channel {to_hex(channel)} is not open")
        free = await asyncio.to_thread(context.store.unpromised, channel, context.now())
        if not 0 < units <= free:
            where = " in the channel are promised to nobody"
            raise InsufficientFunds(self._money.amount(units), self._money.amount(free), where)
        call = calls.request_withdrawal(self._deployment, row.channel, units, seen.requests)
        await self._sender.execute(call)
        await context.channels.refresh(channel)
        requested = (await self._reader.channel(channel)).withdrawal_requested_at
        until = Timestamp(requested + row.channel.withdrawal_delay)
        return Closing(
            channel, ClosingState.WAITING, until, f"{self._money.amount(units)} requested"
        )

    async def call_off(self, channel: ChannelId) -> Closing:
        """Call the pending request of a channel off. Its money is there for jobs again.

        Raises:
            StoreError: The journal does not know the channel.
            ClientError: There is no request.
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        row = await self._context.channels.refresh(channel)
        seen = await self._reader.channel(channel)
        if seen.state is not ChannelState.WITHDRAWING:
            raise ClientError(f"channel {to_hex(channel)} has no request to call off")
        nonce = Uint64(seen.requests - 1)
        await self._sender.execute(calls.cancel_withdrawal(self._deployment, row.channel, nonce))
        if row.status is ChannelStatus.CLOSING:
            store = self._context.store
            await asyncio.to_thread(store.set_status, channel, ChannelStatus.OPEN)
        await self._context.channels.refresh(channel)
        return Closing(channel, ClosingState.EMPTY, None, "the request is called off")

    async def sign(
        self,
        amount: TokenAmount | str,
        to: Address | None,
        fee: TokenAmount | str,
        valid_for_s: int,
    ) -> SignedWithdrawal:
        """Sign a withdrawal from the pool that anybody may submit and pay the gas for.

        Args:
            amount: How much leaves the escrow.
            to: Who gets it, or None for the payer's own account.
            fee: What the submitter gets beside it.
            valid_for_s: Seconds for which it may be submitted.

        Raises:
            AmountError: A text is not an amount of this market's token.
            InsufficientFunds: Less is free.
            ChainError: The chain does not answer.
        """
        units, cost = self._units(amount), Amount(self._money.units_of(fee))
        free = await self._context.channels.free_balance()
        if units + cost > free:
            raise InsufficientFunds(
                self._money.amount(units + cost),
                self._money.amount(free),
                " are free in the escrow",
            )
        order = WithdrawPooled(
            owner=self._payer,
            token=self._deployment.token,
            amount=units,
            to=self._payer if to is None else to,
            fee=cost,
            nonce=await self._reader.withdrawal_nonce(self._payer),
            deadline=Timestamp(await self._reader.timestamp() + valid_for_s),
        )
        signature = sign(self._reader.domain, order, self._context.wallet.payer)
        return SignedWithdrawal(order, PayerSignature(signature))

    async def relay(self, signed: SignedWithdrawal) -> Mined:
        """Submit somebody's signed withdrawal, pay its gas and get its fee.

        Raises:
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        call = calls.withdraw_balance_for(self._deployment, signed.order, signed.signature)
        return await self._sender.execute(call)

    def _units(self, amount: TokenAmount | str) -> Amount:
        return Amount(self._money.units_of(amount))
