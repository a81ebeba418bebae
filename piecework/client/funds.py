"""Moving the client's money: into the escrow, back out of channels, and home. Only this sends
transactions.

None of it is needed to buy text: a channel is opened by an authorization inside the first job, and
a deposit can be handed to anybody who pays the gas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from piecework.chain import calls
from piecework.chain.authorizations import Authorization, SignedAuthorization, sign_authorization
from piecework.chain.calls import Claim
from piecework.chain.transactions import Mined, TransactionSender
from piecework.client.errors import ClientError, InsufficientFunds, WorkerUnreachable
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.journal.records import ChannelRow, ChannelStatus
from piecework.client.sdk import PieceworkClient
from piecework_protocol.errors import ProtocolViolation, Refusal
from piecework_protocol.objects import CloseChannel
from piecework_protocol.offers import OfferRejected
from piecework_protocol.signing import sign, signed_by
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Signature, Timestamp

CLOSING_POLL_S = 1.0
CLOSING_POLLS = 60


@dataclass(frozen=True, slots=True)
class Closing:
    """What became of a request to close. `withdrawable_at` is set when the worker did not take
    part."""

    channel: ChannelId
    closed: bool
    withdrawable_at: Timestamp | None
    note: str


class Funds:
    """The treasury of a client that was opened from a home."""

    def __init__(
        self, client: PieceworkClient, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._client = client
        self._reader = client.reader
        self._deployment = client.reader.deployment
        self._sleep = sleep
        self._sender = TransactionSender.of(client.reader, client.wallet.payer)

    # --- in

    async def deposit(self, amount: Amount) -> Mined:
        """Approve and deposit from the payer's own tokens and gas."""
        payer, token = self._client.wallet.payer.address, self._client.token
        held = await self._reader.token_balance(token, payer)
        if held < amount:
            raise InsufficientFunds(amount, held, "the payer's own account holds {available}")
        approve, deposit = calls.approve_and_deposit(self._deployment, token, amount, payer)
        if await self._reader.allowance(token, payer, self._deployment.escrow) < amount:
            await self._sender.execute(approve)
        return await self._sender.execute(deposit)

    async def authorize_deposit(
        self, amount: Amount, valid_for_s: int, nonce: Bytes32
    ) -> SignedAuthorization:
        """Sign a deposit that anybody may submit and pay the gas for (EIP-3009)."""
        domain = await self._reader.token_domain(self._client.token)
        now = await self._reader.timestamp()
        authorization = Authorization(
            owner=self._client.wallet.payer.address,
            to=self._deployment.escrow,
            value=amount,
            valid_after=Timestamp(0),
            valid_before=Timestamp(now + valid_for_s),
            nonce=nonce,
        )
        return sign_authorization(domain, authorization, self._client.wallet.payer)

    async def relay(self, signed: SignedAuthorization) -> Mined:
        """Submit somebody's signed deposit and pay its gas."""
        call = calls.deposit_with_authorization(self._deployment, signed)
        return await self._sender.execute(call)

    # --- out

    async def close(self, channel: ChannelId) -> Closing:
        """Close with the worker; if it does not take part, start the withdrawal delay on chain."""
        client = self._client
        row = await client.channels.refresh(channel)
        if row.status is ChannelStatus.CLOSED:
            return Closing(channel, True, None, "closed already")
        await asyncio.to_thread(client.store.set_status, channel, ChannelStatus.CLOSING)
        seen = await self._reader.channel(channel)
        if seen.state is ChannelState.NONE:
            return Closing(channel, False, None, "never opened on chain; no new job will use it")
        if seen.state is ChannelState.WITHDRAWING:
            until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
            return Closing(channel, False, until, "withdrawal requested before")
        try:
            await pay_outstanding(client.context, channel, ())
            row = await asyncio.to_thread(client.store.channel, channel)
            await self._close_together(row)
        except (WorkerUnreachable, Refusal, ProtocolViolation, OfferRejected) as error:
            return await self._request_withdrawal(row, str(error))
        await client.channels.refresh(channel)
        return Closing(channel, True, None, "closed together with the worker")

    async def _close_together(self, row: ChannelRow) -> None:
        client = self._client
        signed = await client.discovery.offer_of(row.channel.operator)
        if signed is None:
            raise WorkerUnreachable("the worker is not registered any more")
        link = await client.links.to(signed.offer)
        final = client.channels.closing(row)
        signature = sign(self._reader.domain, final, client.wallet.authorizer)
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
        """With the worker's signature anybody may submit the closing: we do."""
        voucher = row.book.voucher()
        if (voucher.cumulative, voucher.count) != (final.cumulative, final.count):
            raise ClientError(
                "the channel's book changed while it was being closed; close it again"
            )
        signature = sign(self._reader.domain, voucher, self._client.wallet.authorizer)
        claim = Claim(row.channel, voucher, signature)
        await self._sender.execute(calls.close(self._deployment, claim, agreed))

    async def _request_withdrawal(self, row: ChannelRow, why: str) -> Closing:
        await self._sender.execute(calls.request_withdrawal(self._deployment, row.channel))
        await asyncio.to_thread(self._client.store.set_status, row.id, ChannelStatus.CLOSING)
        seen = await self._reader.channel(row.id)
        until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
        return Closing(
            row.id, False, until, f"the worker did not close ({why}); withdrawal requested"
        )

    async def withdraw_due(self) -> tuple[Closing, ...]:
        """Take back what is due from channels whose withdrawal delay is over; one line for each
        other one."""
        results = []
        for row in await asyncio.to_thread(self._client.store.channels):
            if row.status is not ChannelStatus.CLOSING:
                continue
            seen = await self._reader.channel(row.id)
            if seen.state is ChannelState.WITHDRAWING:
                results.append(await self._withdraw(row, seen.withdrawal_requested_at))
            elif seen.state is ChannelState.CLOSED:
                await self._client.channels.refresh(row.id)
                results.append(Closing(row.id, True, None, "closed"))
        return tuple(results)

    async def _withdraw(self, row: ChannelRow, requested_at: Timestamp) -> Closing:
        until = Timestamp(requested_at + row.channel.withdrawal_delay)
        if await self._reader.timestamp() < until:
            return Closing(row.id, False, until, "the withdrawal delay is not over")
        await self._sender.execute(calls.withdraw(self._deployment, row.channel))
        await self._client.channels.refresh(row.id)
        return Closing(row.id, True, None, "withdrawn")

    async def withdraw_balance(self, amount: Amount, to: Address) -> Mined:
        """Send pooled tokens out of the escrow. What channels may still take is left alone."""
        free = await self._client.channels.free_balance()
        if amount > free:
            raise InsufficientFunds(amount, free, "{available} base units are free in the escrow")
        call = calls.withdraw_balance(self._deployment, self._client.token, amount, to)
        return await self._sender.execute(call)
