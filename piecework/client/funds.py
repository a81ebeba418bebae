"""Moving the client's money: into the escrow, back out of channels, and home.

Buying text sends no transaction. An authorization inside the first job opens a channel, and
anybody who pays the gas can submit a signed deposit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from piecework.base.amounts import TokenAmount
from piecework.chain import calls
from piecework.chain.authorizations import (
    ReceiveWithAuthorization,
    SignedAuthorization,
    sign_authorization,
)
from piecework.chain.calls import Claim
from piecework.chain.reader import ChainReader
from piecework.chain.transactions import Mined, TransactionSender
from piecework.client.errors import ClientError, InsufficientFunds, WorkerUnreachable
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.journal.records import ChannelRow, ChannelStatus
from piecework.client.network.discovery import Discovery
from piecework.client.network.links import Links
from piecework_protocol.errors import ProtocolViolation, Refusal
from piecework_protocol.objects import CloseChannel
from piecework_protocol.offers import OfferRejected
from piecework_protocol.signing import sign, signed_by
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Signature,
    Timestamp,
    Uint256,
)

CLOSING_POLL_S = 1.0
CLOSING_POLLS = 60


@dataclass(frozen=True, slots=True)
class Closing:
    """What became of a request to close.

    Attributes:
        channel: The channel's id.
        closed: Whether its money is back in the pooled balance.
        withdrawable_at: When a withdrawal may be finished, if the worker did not take part.
        note: One line for a person.
    """

    channel: ChannelId
    closed: bool
    withdrawable_at: Timestamp | None
    note: str


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What `Funds.withdraw` did: channels that were due, and what was sent to whom."""

    channels: tuple[Closing, ...]
    amount: TokenAmount
    to: Address


class Funds:
    """The money of a client. Reach it as `client.funds`. Only this sends transactions.

    An amount is a `TokenAmount`, or a text with a number of tokens such as "1.5".
    """

    def __init__(
        self,
        context: JobContext,
        discovery: Discovery,
        links: Links,
        reader: ChainReader,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._context, self._reader = context, reader
        self._discovery, self._links = discovery, links
        self._deployment = reader.deployment
        self._money = reader.deployment.payment_token
        self._payer = context.wallet.payer.address
        self._sleep = sleep
        self._sender = TransactionSender.of(reader, context.wallet.payer)

    # --- in

    async def deposit(self, amount: TokenAmount | str) -> Mined:
        """Deposit from the payer's own tokens and gas.

        Args:
            amount: How much goes into the escrow.

        Returns:
            The transaction as it was mined.

        Raises:
            AmountError: The text is not an amount of this market's token.
            InsufficientFunds: The payer's account holds fewer tokens.
            ChainError: The transaction was not mined, or there is no gas for it.

        Example:
            >>> await client.funds.deposit("5")
        """
        units, token = self._units(amount), self._deployment.token
        held = await self._reader.token_balance(token, self._payer)
        if held < units:
            there = self._money.amount(held)
            raise InsufficientFunds(self._money.amount(units), there, " are in the payer's account")
        approve, deposit = calls.approve_and_deposit(self._deployment, token, units, self._payer)
        if await self._reader.allowance(token, self._payer, self._deployment.escrow) < units:
            await self._sender.execute(approve)
        return await self._sender.execute(deposit)

    async def authorize_deposit(
        self, amount: TokenAmount | str, valid_for_s: int, nonce: Bytes32
    ) -> SignedAuthorization:
        """Sign a deposit that anybody may submit and pay the gas for (EIP-3009).

        Args:
            amount: How much goes into the escrow.
            valid_for_s: Seconds for which it may be submitted.
            nonce: 32 random bytes. The token takes each of them once.

        Raises:
            AmountError: The text is not an amount of this market's token.
            ChainError: The chain does not answer.
        """
        domain = await self._reader.token_domain(self._deployment.token)
        now = await self._reader.timestamp()
        authorization = ReceiveWithAuthorization(
            from_=self._payer,
            to=self._deployment.escrow,
            value=Uint256(self._units(amount)),
            valid_after=Uint256(0),
            valid_before=Uint256(now + valid_for_s),
            nonce=nonce,
        )
        return sign_authorization(domain, authorization, self._context.wallet.payer)

    async def relay(self, signed: SignedAuthorization) -> Mined:
        """Submit somebody's signed deposit and pay its gas.

        Raises:
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        call = calls.deposit_with_authorization(self._deployment, signed)
        return await self._sender.execute(call)

    # --- out

    async def close_all(self) -> tuple[Closing, ...]:
        """Close every open channel, as `close`."""
        rows = await asyncio.to_thread(self._context.store.channels)
        ids = [row.id for row in rows if row.status is ChannelStatus.OPEN]
        return tuple([await self.close(channel) for channel in ids])

    async def close(self, channel: ChannelId) -> Closing:
        """Close a channel with its worker. If it takes no part, start the withdrawal delay.

        Args:
            channel: The channel's id.

        Returns:
            Whether the channel is closed, and if not, when `withdraw` can take the money back.

        Raises:
            StoreError: The journal does not know the channel.
            ChainError: A transaction was not mined, or there is no gas for it.
        """
        context = self._context
        row = await context.channels.refresh(channel)
        if row.status is ChannelStatus.CLOSED:
            return Closing(channel, True, None, "closed already")
        await asyncio.to_thread(context.store.set_status, channel, ChannelStatus.CLOSING)
        seen = await self._reader.channel(channel)
        if seen.state is ChannelState.NONE:
            return Closing(channel, False, None, "never opened on chain, no new job will use it")
        if seen.state is ChannelState.WITHDRAWING:
            until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
            return Closing(channel, False, until, "withdrawal requested before")
        try:
            await pay_outstanding(context, channel, ())
            row = await asyncio.to_thread(context.store.channel, channel)
            await self._close_together(row)
        except (WorkerUnreachable, Refusal, ProtocolViolation, OfferRejected) as error:
            return await self._request_withdrawal(row, str(error))
        await context.channels.refresh(channel)
        return Closing(channel, True, None, "closed together with the worker")

    async def _close_together(self, row: ChannelRow) -> None:
        context = self._context
        signed = await self._discovery.offer_of(row.channel.operator)
        if signed is None:
            raise WorkerUnreachable("the worker is not registered any more")
        link = await self._links.to(signed.offer)
        final = context.channels.closing(row)
        signature = sign(self._reader.domain, final, context.wallet.authorizer)
        agreed, transaction = await link.close_channel(row.channel, final, signature)
        if not signed_by(self._reader.domain, final, agreed, row.channel.operator):
            raise ProtocolViolation("6.5", "the worker's agreement is not signed by its operator")
        if transaction and await self._is_closed_soon(row.id):
            return
        await self._submit_close(row, final, agreed)

    async def _is_closed_soon(self, channel: ChannelId) -> bool:
        """Whether the worker's own transaction closes the channel within a minute."""
        for _ in range(CLOSING_POLLS):
            if (await self._reader.channel(channel)).state is ChannelState.CLOSED:
                return True
            await self._sleep(CLOSING_POLL_S)
        return False

    async def _submit_close(self, row: ChannelRow, final: CloseChannel, agreed: Signature) -> None:
        """Submit the closing. With the worker's signature anybody may."""
        voucher = row.book.voucher()
        if (voucher.cumulative, voucher.count) != (final.cumulative, final.count):
            raise ClientError(
                "the channel's book changed while it was being closed; close it again"
            )
        signature = sign(self._reader.domain, voucher, self._context.wallet.authorizer)
        claim = Claim(row.channel, voucher, signature)
        await self._sender.execute(calls.close(self._deployment, claim, agreed))

    async def _request_withdrawal(self, row: ChannelRow, why: str) -> Closing:
        await self._sender.execute(calls.request_withdrawal(self._deployment, row.channel))
        await asyncio.to_thread(self._context.store.set_status, row.id, ChannelStatus.CLOSING)
        seen = await self._reader.channel(row.id)
        until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
        return Closing(
            row.id, False, until, f"the worker did not close ({why}); withdrawal requested"
        )

    async def withdraw_due(self) -> tuple[Closing, ...]:
        """Take back what is due from channels whose withdrawal delay is over.

        Returns:
            What became of each channel that is being closed.

        Raises:
            ChainError: A transaction was not mined, or there is no gas for it.
        """
        results = []
        for row in await asyncio.to_thread(self._context.store.channels):
            if row.status is not ChannelStatus.CLOSING:
                continue
            seen = await self._reader.channel(row.id)
            if seen.state is ChannelState.WITHDRAWING:
                results.append(await self._withdraw(row, seen.withdrawal_requested_at))
            elif seen.state is ChannelState.CLOSED:
                await self._context.channels.refresh(row.id)
                results.append(Closing(row.id, True, None, "closed"))
        return tuple(results)

    async def _withdraw(self, row: ChannelRow, requested_at: Timestamp) -> Closing:
        until = Timestamp(requested_at + row.channel.withdrawal_delay)
        if await self._reader.timestamp() < until:
            return Closing(row.id, False, until, "the withdrawal delay is not over")
        await self._sender.execute(calls.withdraw(self._deployment, row.channel))
        await self._context.channels.refresh(row.id)
        return Closing(row.id, True, None, "withdrawn")

    async def withdraw(
        self, amount: TokenAmount | str | None = None, to: Address | None = None
    ) -> Withdrawal:
        """Finish due withdrawals of channels, then send pooled tokens out of the escrow.

        What channels may still take stays in the escrow.

        Args:
            amount: How much, or None for all that is free.
            to: Who gets it, or None for the payer's own account.

        Raises:
            AmountError: The text is not an amount of this market's token.
            InsufficientFunds: Less than `amount` is free.
            ChainError: A transaction was not mined, or there is no gas for it.

        Example:
            >>> withdrawal = await client.funds.withdraw()
            >>> print(withdrawal.amount)
        """
        wanted = None if amount is None else self._units(amount)
        receiver = self._payer if to is None else to
        closings = await self.withdraw_due()
        free = await self._context.channels.free_balance()
        units = free if wanted is None else wanted
        if units > free:
            raise InsufficientFunds(
                self._money.amount(units), self._money.amount(free), " are free in the escrow"
            )
        if units:
            token = self._deployment.token
            call = calls.withdraw_balance(self._deployment, token, units, receiver)
            await self._sender.execute(call)
        return Withdrawal(closings, self._money.amount(units), receiver)

    def _units(self, amount: TokenAmount | str) -> Amount:
        return Amount(self._money.units_of(amount))
