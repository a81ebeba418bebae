"""The client's channels: choosing one for a job, sizing its deposit, and closing it.

An authorization inside the first job opens a channel. The worker submits it. The client sends no
transaction and needs no gas to start.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from piecework.base.amounts import Token
from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.chain.contracts.authorizations import sign_opening
from piecework.chain.contracts.records import ChannelOnChain
from piecework.chain.errors import BadAnswer, RpcRefused, RpcUnavailable
from piecework.client.config import ClientConfig
from piecework.client.errors import FeeOverLimit, InsufficientFunds
from piecework.client.jobs.spending import exceeded
from piecework.client.jobs.vouchers import VouchersUnderWay
from piecework.client.journal.budgets import BudgetTooSmall
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobRow,
    Limits,
    Part,
    Reservation,
    SeenChannel,
)
from piecework.client.journal.store import NO_PART, Store
from piecework.client.network.discovery import ChainView
from piecework.client.wallet import Wallet
from piecework_protocol.frames import Funding, FundingAuthorization, OpeningAuthorization
from piecework_protocol.objects import EVERYTHING, Channel, FundChannel, Offer
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    PayerSignature,
    Seconds,
    Timestamp,
)


class _DepositTooSmall(PieceworkError):
    """The channel needs more than was authorized: ask the chain what is free, and come back."""

    def __init__(self, shortage: int) -> None:
        super().__init__(f"{shortage} more are needed")
        self.shortage = shortage


class ChannelManager:
    """Channels of one wallet."""

    def __init__(
        self,
        store: Store,
        chain: ChainView,
        wallet: Wallet,
        *,
        token: Token,
        config: ClientConfig,
        clock: Clock,
        entropy: Callable[[int], bytes],
    ) -> None:
        self._store, self._chain, self._wallet = store, chain, wallet
        self._money, self._token = token, Address(token.address or b"")
        self._config, self._clock, self._entropy = config, clock, entropy
        amounts = config.amounts(token)
        self._step, self._max_fee = amounts.deposit, amounts.max_fee
        self._limits = Limits(amounts.spend_per_day, amounts.spend_per_month)
        self.under_way = VouchersUnderWay()

    async def for_offer(self, offer: Offer) -> ChannelRow:
        """Return the open channel with this worker, or record one that is not funded yet."""
        terms = Channel(
            payer=self._wallet.payer.address,
            authorizer=self._wallet.authorizer.address,
            receiver=offer.receiver,
            operator=offer.operator,
            token=self._token,
            withdrawal_delay=Seconds(
                max(offer.min_withdrawal_delay, self._config.withdrawal_delay_s)
            ),
            salt=Bytes32(self._entropy(32)),
        )
        return await self._store.run(self._store.open_channel, terms)

    async def admit(
        self,
        job: JobRow,
        prompt: str | None,
        row: ChannelRow,
        part: Part = NO_PART,
        content: bytes | None = None,
    ) -> ChannelRow:
        """Record a job and make sure that its channel's deposit covers it.

        Args:
            job: What is recorded.
            prompt: Its text, if texts are kept.
            row: Its channel, as it was read a moment ago.
            part: What it was asked for, and what the budgets hold for it.
            content: The exact bytes of its content, if texts are kept.

        Raises:
            InsufficientFunds: the free balance is too small for that.
            BudgetExceeded: a budget is too small for the fee.
        """
        try:
            return await self._admit(job, row, part, prompt, content)
        except BudgetTooSmall as short:
            raise exceeded(short.shortage, self._money) from None

    async def _admit(
        self, job: JobRow, row: ChannelRow, part: Part, prompt: str | None, content: bytes | None
    ) -> ChannelRow:
        row = await self._arrived(row)
        until = Timestamp(job.created_at + self._config.funding_lifetime_s)
        terms = job.offer.offer
        # A worker is paid for the transaction, and sends none for less than this.
        fee, least_raise = terms.open_fee, terms.min_deposit
        if row.funded:
            fee, least_raise = terms.top_up_fee, terms.min_top_up

        def refuse(needed: Amount, counted: Amount) -> Amount:
            raise _DepositTooSmall(max(needed, row.funded + least_raise) - counted)

        try:
            admit = partial(self._store.admit, content=content, part=part, whole=self._limits)
            return await self._store.run(admit, job, prompt, refuse, until)
        except _DepositTooSmall as short:
            free, one_step = await self._source(row, short.shortage + fee)

        def grow(needed: Amount, counted: Amount) -> Amount:
            least = Amount(max(needed, row.funded + least_raise))
            spendable = Amount(max(0, free - fee))
            return deposit_total(least, counted, spendable, self._step, self._money)

        admit = partial(
            self._store.admit, content=content, one_step=one_step, part=part, whole=self._limits
        )
        return await self._store.run(admit, job, prompt, grow, until)

    async def _source(self, row: ChannelRow, needed: int) -> tuple[Amount, bool]:
        """Return what is free for an authorization, and whether that is in the payer's account.

        The escrow's pool comes first. Of one channel two kinds are never under way at once.
        """
        reservations = await self.reservations()
        if any(reservation.channel == row.id for reservation in reservations):
            free = self._own_free if row.one_step else self.free_balance
            return await free(), row.one_step
        pooled = await self.free_balance()
        if row.funded or pooled >= needed or not self._config.open_from_account:
            return pooled, False
        if await self._chain.opening_domain(self._token) is None:
            return pooled, False
        own = await self._own_free()
        return (own, True) if own >= needed else (pooled, False)

    async def _own_free(self) -> Amount:
        """Return the base units in the payer's own account that are reserved for nothing."""
        held = await self._chain.token_balance(self._token, self._wallet.payer.address)
        reserved = sum(r.amount for r in await self.reservations() if r.one_step)
        return Amount(max(0, held - reserved))

    async def free_balance(self) -> Amount:
        """Return the pooled base units that are reserved for nothing."""
        pooled = await self._chain.pooled_balance(self._token, self._wallet.payer.address)
        reserved = sum(r.amount for r in await self.reservations() if not r.one_step)
        return Amount(max(0, pooled - reserved))

    async def reservations(self) -> tuple[Reservation, ...]:
        """Return what is reserved in the pooled balance as of now, and why.

        A channel whose opening was mined since the last look holds its money itself.
        """
        now = Timestamp(int(self._clock.wall()))
        found = await self._store.run(self._store.reservations, self._token, now)
        for reservation in found:
            await self.refresh_funding(reservation.channel)
        return await self._store.run(self._store.reservations, self._token, now) if found else ()

    async def funding(self, row: ChannelRow) -> Funding | None:
        """Return the payer's authorization, until the chain shows the whole deposit.

        Raises:
            FeeOverLimit: its fee is more than the settings allow now.
            ChainError: the chain does not say how the token's holders sign.
        """
        if row.authorized <= row.funded:
            return None
        if row.fee > self._max_fee:
            raise FeeOverLimit(self._money.amount(row.fee), self._money.amount(self._max_fee))
        if row.one_step:
            return await self.opening(row, row.authorized, row.fee)
        authorization = FundChannel(row.channel, row.authorized, row.fee, row.funding_deadline)
        signature = sign(self._chain.domain, authorization, self._wallet.payer)
        return FundingAuthorization(authorization, PayerSignature(signature))

    async def opening(self, row: ChannelRow, amount: Amount, fee: Amount) -> OpeningAuthorization:
        """Return the payer's authorization to open a channel out of its own tokens.

        Raises:
            ChainError: the chain does not answer, or the token takes no such authorization.
        """
        token = await self._chain.opening_domain(self._token)
        if token is None:
            raise BadAnswer("the token takes no authorization to open a channel")
        return sign_opening(
            token,
            self._chain.domain,
            row.channel,
            self._wallet.payer,
            amount=amount,
            fee=fee,
            funded_before=Amount(0),
            valid_before=row.funding_deadline,
        )

    async def refresh_funding(self, channel: ChannelId) -> ChannelRow:
        """See whether a pending deposit has arrived. If the chain is away, the job goes on."""
        return await self._arrived(await self._store.run(self._store.channel, channel))

    async def _arrived(self, row: ChannelRow) -> ChannelRow:
        if row.authorized <= row.funded:
            return row
        try:
            return await self.refresh(row.id)
        except RpcUnavailable:
            return row

    async def on_chain(self, channel: ChannelId) -> ChannelOnChain:
        """Return what the newest block shows of a channel.

        Raises:
            ChainError: the chain does not answer.
        """
        return await self._chain.channel(channel)

    async def refresh(self, channel: ChannelId) -> ChannelRow:
        """Record what the chain says about a channel.

        A channel counts as closed for good once a final block shows it. Before that a
        reorganization may open it again.

        Raises:
            ChainError: the chain does not answer.
        """
        seen = await self._chain.channel(channel)
        row = await self._store.run(self._store.channel, channel)
        status = row.status
        if seen.state is ChannelState.CLOSED and row.status is not ChannelStatus.CLOSED:
            status = ChannelStatus.CLOSING
            if await self._is_closed_for_good(channel):
                status = ChannelStatus.CLOSED
        elif seen.state is ChannelState.WITHDRAWING and seen.requested >= EVERYTHING:
            status = ChannelStatus.CLOSING
        # What was asked back is gone for vouchers, unless it is called off. A closed channel has
        # given back all that was not settled.
        back = Amount(seen.funded - seen.available)
        totals = SeenChannel(seen.funded, back, seen.settled)
        return await self._store.run(self._store.seen_on_chain, channel, totals, status)

    async def _is_closed_for_good(self, channel: ChannelId) -> bool:
        """Ask the newest final block. A node that has lost that state says nothing against it."""
        try:
            final = await self._chain.channel(channel, block=await self._chain.finalized_block())
        except RpcRefused:
            return False
        return final.state is ChannelState.CLOSED


def deposit_total(
    needed: Amount, deposit: Amount, free: Amount, step: Amount, token: Token
) -> Amount:
    """Return a channel's new total deposit: at least `needed`, in whole steps if `free` allows.

    Raises:
        InsufficientFunds: even the smallest raise is more than what is free.
    """
    shortage = needed - deposit
    if shortage > free:
        raise InsufficientFunds(token.amount(shortage), token.amount(free))
    steps = -(-shortage // step) * step if step else shortage
    return Amount(deposit + min(free, steps))
