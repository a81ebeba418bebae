"""Moving the client's money: into the escrow, back out of channels, and home.

Buying text sends no transaction. An authorization inside the first job opens a channel, and
anybody who pays the gas can submit a signed deposit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from piecework.base.amounts import TokenAmount
from piecework.base.errors import PieceworkError
from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import SignedDeposit, opening_nonce, sign_deposit
from piecework.chain.contracts.calls import Claim
from piecework.chain.errors import RpcRefused
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import Mined, TransactionSender
from piecework.client.errors import (
    ClientError,
    FeeOverLimit,
    InsufficientFunds,
    JobFollowed,
    WorkerUnreachable,
)
from piecework.client.history import History, HistoryEvent, Place
from piecework.client.invoice import Books, Invoice, make_invoice
from piecework.client.jobs.accounts import adopt_account
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobStatus,
    ReceiptRow,
)
from piecework.client.network.discovery import Discovery
from piecework.client.network.links import Links
from piecework.client.network.transport import WorkerLink
from piecework.client.orders import Closing, ClosingState, Orders
from piecework.client.recovery import Recovered, recover
from piecework_protocol.errors import ProtocolViolation, Refusal
from piecework_protocol.ledger import closing_of
from piecework_protocol.objects import EVERYTHING, CloseChannel, Offer
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
    Uint64,
    to_hex,
)

CLOSING_POLL_S = 1.0
CLOSING_POLLS = 60


@dataclass
class _Attempt:
    """Whether a signature left us that lets the worker close the channel at any time."""

    signed: bool = False


class _JournalBehind(PieceworkError):
    """The journal is an old copy, and the worker does not show its record."""


_WORKER_AWAY = (WorkerUnreachable, Refusal, ProtocolViolation, OfferRejected, _JournalBehind)
"""Why a channel cannot be closed together. The withdrawal delay is the other way."""


def _closed(row: ChannelRow, note: str) -> Closing:
    final = "" if row.status is ChannelStatus.CLOSED else "; no final block shows it yet"
    return Closing(row.id, ClosingState.CLOSED, None, note + final)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What `Funds.withdraw` did: channels that were due, and what was sent to whom."""

    channels: tuple[Closing, ...]
    amount: TokenAmount
    to: Address


class Funds:
    """The money of a client. Reach it as `client.funds`. Only this sends transactions.

    `orders` takes a part out of channels, and signs withdrawals for somebody else to submit.
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
        self._max_fee = context.config.amounts(self._money).max_fee
        self._sleep = sleep
        self._sender = TransactionSender.of(reader, context.wallet.payer)
        self.orders = Orders(context, reader, self._sender)
        self._history = History(context.store.logs, reader, self._payer)

    # --- in

    async def deposit(self, amount: TokenAmount | str) -> Mined:
        """Deposit from the payer's own tokens and gas.

        After a `ChainError` it may still be mined. Asked for the same amount again, this client
        goes on with that deposit, or says that it is done. A new client makes another one.

        Args:
            amount: How much goes into the escrow.

        Returns:
            The transaction as it was mined.

        Raises:
            AmountError: The text is not an amount of this market's token.
            InsufficientFunds: The payer's account holds fewer tokens.
            EarlierCallMined: An earlier deposit of this amount ended in an error and was mined
                since. Nothing was sent. Ask again for another one.
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
        self, amount: TokenAmount | str, valid_for_s: int, salt: Bytes32
    ) -> SignedDeposit:
        """Sign a deposit that anybody may submit and pay the gas for (EIP-3009).

        Args:
            amount: How much goes into the escrow.
            valid_for_s: Seconds for which it may be submitted.
            salt: 32 random bytes. Each of them makes one deposit.

        Raises:
            AmountError: The text is not an amount of this market's token.
            ChainError: The chain does not answer.
        """
        domain = await self._reader.token_domain(self._deployment.token)
        now = await self._reader.timestamp()
        return sign_deposit(
            domain,
            self._deployment.escrow,
            self._context.wallet.payer,
            self._units(amount),
            valid_before=Timestamp(now + valid_for_s),
            salt=salt,
        )

    async def relay(self, signed: SignedDeposit) -> Mined:
        """Submit somebody's signed deposit and pay its gas.

        Raises:
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        call = calls.deposit_with_authorization(self._deployment, signed)
        return await self._sender.execute(call)

    async def fund(self, channel: ChannelId, total: Amount) -> ChannelRow:
        """Open or top up a channel by a transaction of the payer.

        Workers do this for a fee. Some leave it to the payer.

        Args:
            channel: The channel's id.
            total: Base units that were ever put into it, after this.

        Raises:
            StoreError: The journal does not know the channel.
            ChainError: The transaction was not mined, or there is no gas for it.
        """
        row = await asyncio.to_thread(self._context.store.channel, channel)
        call = calls.fund(self._deployment, row.channel, total)
        if row.one_step and not row.funded:
            opening = await self._context.channels.opening(row, total, calls.NO_FEE)
            call = calls.open_with_authorization(self._deployment, row.channel, opening)
        await self._sender.execute(call)
        return await self._context.channels.refresh(channel)

    # --- out

    async def close_all(self) -> tuple[Closing, ...]:
        """Close every channel that holds money, as `close`.

        One channel's error stops no other. It is in the answer, and closing can be repeated.
        """
        closings = []
        for row in await asyncio.to_thread(self._context.store.channels):
            if row.status is not ChannelStatus.CLOSED:
                closings.append(await self._told(row.id, self.close))
        return tuple(closing for closing in closings if closing.state is not ClosingState.EMPTY)

    async def close(self, channel: ChannelId) -> Closing:
        """Close a channel with its worker. If it takes no part, start the withdrawal delay.

        What is to be done is decided from the chain, so a closing that failed can be repeated.

        Args:
            channel: The channel's id.

        Returns:
            Whether the channel is closed, and if not, when `withdraw` can take the money back.

        Raises:
            StoreError: The journal does not know the channel.
            JobFollowed: A process of this client runs a job on it.
            ChainError: A transaction was not mined, or there is no gas for it.
        """
        context = self._context
        row = await context.channels.refresh(channel)
        seen = await self._reader.channel(channel)
        if seen.state is ChannelState.CLOSED:
            return _closed(row, "closed")
        if seen.state is ChannelState.NONE:
            return await self._close_unopened(row)
        if seen.state is ChannelState.WITHDRAWING and seen.requested >= EVERYTHING:
            until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
            return Closing(channel, ClosingState.WAITING, until, "withdrawal requested before")
        for job in await asyncio.to_thread(context.store.jobs, channel, JobStatus.LIVE):
            if context.store.is_followed(job):
                raise JobFollowed(job.id)
        return await self._close_open(row)

    async def _close_open(self, row: ChannelRow) -> Closing:
        """Close a channel that is open on chain. No new job uses it meanwhile."""
        context, before = self._context, row.status
        await asyncio.to_thread(context.store.set_status, row.id, ChannelStatus.CLOSING)
        attempt = _Attempt()
        try:
            try:
                await self._close_together(row, attempt)
            except _WORKER_AWAY as error:
                return await self._request_withdrawal(row, str(error))
            return _closed(
                await context.channels.refresh(row.id), "closed together with the worker"
            )
        except BaseException:
            if not attempt.signed:  # nothing happened, so jobs may use the channel as before
                await asyncio.to_thread(context.store.set_status, row.id, before)
            raise

    async def _close_unopened(self, row: ChannelRow) -> Closing:
        """A channel that the chain has not seen holds nothing. Its worker may be opening it."""
        context = self._context
        await asyncio.to_thread(context.store.set_status, row.id, ChannelStatus.CLOSING)
        for reservation in await context.channels.reservations():
            if reservation.channel == row.id:
                note = "not opened yet, and its worker may still open it; close it again then"
                return Closing(row.id, ClosingState.WAITING, reservation.until, note)
        return Closing(row.id, ClosingState.EMPTY, None, "never opened on chain, it holds nothing")

    async def _told(
        self, channel: ChannelId, work: Callable[[ChannelId], Awaitable[Closing]]
    ) -> Closing:
        """What became of one channel, errors included."""
        try:
            return await work(channel)
        except PieceworkError as error:
            return Closing(channel, ClosingState.FAILED, None, str(error))

    async def _close_together(self, row: ChannelRow, attempt: _Attempt) -> None:
        context = self._context
        await pay_outstanding(context, row.id)
        link, offer = await self._worker_of(row)
        with suppress(Refusal):  # then our own book has to do, and the worker compares it
            row = await adopt_account(context, link, row)
        row = await asyncio.to_thread(context.store.channel, row.id)
        if row.book.cumulative < row.settled:
            raise _JournalBehind("this journal lacks vouchers that were settled")
        final = await self._final(row, offer)
        signature = sign(self._reader.domain, final, context.wallet.authorizer)
        attempt.signed = True
        try:
            agreed, transaction = await link.close_channel(row.channel, final, signature)
        except Refusal:
            attempt.signed = False
            raise
        if not signed_by(self._reader.domain, final, agreed, row.channel.operator):
            raise ProtocolViolation("6.5", "the worker's agreement is not signed by its operator")
        if transaction and await self._is_closed_soon(row.id):
            return
        await self._submit_close(row, final, agreed)

    async def _worker_of(self, row: ChannelRow) -> tuple[WorkerLink, Offer]:
        """Connect to a channel's worker.

        Raises:
            WorkerUnreachable: it is not registered any more, or does not answer.
        """
        signed = await self._discovery.offer_of(row.channel.operator)
        if signed is None:
            raise WorkerUnreachable("the worker is not registered any more")
        return await self._links.to(signed.offer), signed.offer

    async def _final(self, row: ChannelRow, offer: Offer) -> CloseChannel:
        """Who has gas submits the closing. Who has none pays the worker's fee for doing it."""
        voucher = row.book.voucher()
        call = calls.close(self._deployment, Claim(row.channel, voucher, calls.NO_SIGNATURE))
        price = await self._sender.gas_price()
        if await self._sender.balance() >= call.gas_hint * price.wei_per_gas:
            return closing_of(voucher)
        rest = row.funded - row.withdrawn - voucher.cumulative
        fee, limit = Amount(min(offer.close_fee, max(0, rest))), self._max_fee
        if fee > limit:
            also = f", and {to_hex(self._payer)} has no gas for it"
            raise FeeOverLimit(self._money.amount(fee), self._money.amount(limit), also)
        return closing_of(voucher, fee)

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
        signed = final if final.fee else voucher
        signature = sign(self._reader.domain, signed, self._context.wallet.authorizer)
        claim = Claim(row.channel, voucher, signature)
        await self._sender.execute(calls.close(self._deployment, claim, final.fee, agreed))

    async def _request_withdrawal(self, row: ChannelRow, why: str) -> Closing:
        seen, deployment = await self._reader.channel(row.id), self._deployment
        if seen.state is ChannelState.WITHDRAWING:  # a part, and there is one request at a time
            nonce = Uint64(seen.requests - 1)
            await self._sender.execute(calls.cancel_withdrawal(deployment, row.channel, nonce))
        call = calls.request_withdrawal(deployment, row.channel, EVERYTHING, seen.requests)
        await self._sender.execute(call)
        await self._context.channels.refresh(row.id)
        seen = await self._reader.channel(row.id)
        until = Timestamp(seen.withdrawal_requested_at + row.channel.withdrawal_delay)
        note = f"the worker did not close ({why}); withdrawal requested"
        return Closing(row.id, ClosingState.WAITING, until, note)

    async def withdraw_due(self) -> tuple[Closing, ...]:
        """Take back what is due from channels whose withdrawal delay is over.

        Returns:
            What became of each channel that is being closed, errors included.
        """
        results = []
        for row in await asyncio.to_thread(self._context.store.channels):
            if row.status is not ChannelStatus.CLOSED:
                results.append(await self._told(row.id, self._withdraw_if_due))
        return tuple(closing for closing in results if closing.state is not ClosingState.EMPTY)

    async def _withdraw_if_due(self, channel: ChannelId) -> Closing:
        row = await self._context.channels.refresh(channel)
        seen = await self._reader.channel(channel)
        if seen.state is ChannelState.CLOSED:
            return _closed(row, "closed")
        if seen.state is ChannelState.WITHDRAWING:
            return await self._withdraw(row, seen.withdrawal_requested_at)
        if row.status is ChannelStatus.CLOSING and seen.state is ChannelState.OPEN:
            note = "its closing did not come to an end; run again: piecework client close"
            return Closing(channel, ClosingState.FAILED, None, note)
        return Closing(channel, ClosingState.EMPTY, None, "in use")

    async def _withdraw(self, row: ChannelRow, requested_at: Timestamp) -> Closing:
        until = Timestamp(requested_at + row.channel.withdrawal_delay)
        if await self._reader.timestamp() < until:
            note = "the withdrawal delay is not over"
            return Closing(row.id, ClosingState.WAITING, until, note)
        await self._sender.execute(calls.withdraw(self._deployment, row.channel))
        row = await self._context.channels.refresh(row.id)
        if row.status is ChannelStatus.OPEN:
            return Closing(row.id, ClosingState.PART, None, "a part is withdrawn")
        return _closed(row, "withdrawn")

    async def withdraw(
        self, amount: TokenAmount | str | None = None, to: Address | None = None
    ) -> Withdrawal:
        """Finish due withdrawals of channels, then send pooled tokens out of the escrow.

        What channels may still take stays in the escrow. After a `ChainError` it may still be
        mined, as with `deposit`.

        Args:
            amount: How much, or None for all that is free.
            to: Who gets it, or None for the payer's own account.

        Raises:
            AmountError: The text is not an amount of this market's token.
            InsufficientFunds: Less than `amount` is free.
            EarlierCallMined: An earlier withdrawal of this amount to this account ended in an
                error and was mined since. Nothing was sent. Ask again for another one.
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

    # --- looking back

    async def recover(self) -> tuple[Recovered, ...]:
        """Find this payer's channels on the chain, and bring the journal up to date with them.

        For a journal that was lost or came back from an old copy. It can be cut off and repeated.

        Raises:
            ChainError: The node does not answer.
        """
        return await recover(self._context, self._history, self._account)

    async def _account(self, row: ChannelRow) -> ChannelRow:
        link, _ = await self._worker_of(row)
        return await adopt_account(self._context, link, row)

    async def invoice(self, since: Timestamp, until: Timestamp) -> Invoice:
        """Make a bill from the chain's final events, held against the receipts in the journal.

        Args:
            since: The first second of the time, Unix time.
            until: The first second after it.

        Raises:
            ChainError: The node does not answer.
        """
        end = await self._history.read()
        events = await self._history.events()
        rows = await asyncio.to_thread(self._context.store.receipts)
        by_channel: dict[ChannelId, list[ReceiptRow]] = {}
        for row in rows:
            by_channel.setdefault(row.channel, []).append(row)
        token, own = self._deployment.token, await self._one_step(events)
        bill, books = make_invoice(events, by_channel, token, since, until, one_step=own)
        differs = await self._differences(books, end)
        return replace(bill, troubles=(*bill.troubles, *differs))

    async def _one_step(self, events: Iterable[HistoryEvent]) -> frozenset[Place]:
        """The fundings out of the payer's own account.

        The token knows the authorization of each by a nonce that binds channel, total and fee.
        """
        token, found = self._deployment.token, []
        if await self._reader.opening_domain(token) is None:
            return frozenset()
        for event in events:
            if event.name != "ChannelFunded" or event.channel is None:
                continue
            v = event.values
            before, fee = Amount(int(v["funded"]) - int(v["added"])), Amount(int(v["fee"]))
            nonce = opening_nonce(event.channel, before, fee)
            if await self._reader.authorization_state(token, self._payer, nonce):
                found.append(event.place)
        return frozenset(found)

    async def _differences(self, books: Books, end: int) -> list[str]:
        """Hold the sums of all events against the escrow's own state at their last block."""
        reader, token = self._reader, self._deployment.token
        found = []
        try:
            pooled = await reader.pooled_balance(token, self._payer, block=end)
            if pooled != books.pool:
                found.append(f"the pooled balance is {pooled}, the events sum to {books.pool}")
            for key, channel in books.channels.items():
                settled = (await reader.channel(key, block=end)).settled
                if settled != channel.settled:
                    found.append(
                        f"channel {to_hex(key)} has settled {settled}, its events sum to "
                        f"{channel.settled}"
                    )
        except RpcRefused as error:
            found.append(f"balances at block {end} could not be compared: {error}")
        return found

    def _units(self, amount: TokenAmount | str) -> Amount:
        return Amount(self._money.units_of(amount))
