"""The escrow moves a channel as the table of clause 6.2 says: every state with every call."""

from __future__ import annotations

import itertools

from piecework.chain.contracts import calls
from piecework.chain.contracts.events import ClaimSkipped, Settled, decode_events
from piecework.chain.errors import TransactionReverted
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Channel, FundChannel
from piecework_protocol.states import CHANNEL_TABLE, ChannelEvent, ChannelState, channel_path
from piecework_protocol.types import Amount
from tests.support.chain.chains import (
    ETHER,
    FAR,
    USD,
    Chain,
    TestMarket,
    cancel_of,
    channel_of,
    claim_of,
    close_of,
    deployed,
    request_of,
    signature_of,
    signer,
)

PAYER, WORKER = signer("payer"), signer("worker")


class Table:
    """Calls on channels of one market, each with growing amounts, so that each could take
    effect."""

    def __init__(self, market: TestMarket) -> None:
        self.market = market
        self.step = 0

    async def apply(self, channel: Channel, event: ChannelEvent) -> bool:
        """Send one call; whether the escrow took it."""
        self.step += 1
        requests = (await self.market.reader.channel(channel.id(self.domain))).requests
        if event is ChannelEvent.WITHDRAW_PART and requests:
            # The same state, with a request for a part in place of one for everything.
            await self.market.run(WORKER, cancel_of(self.market, channel, PAYER, requests - 1))
            part = request_of(self.market, channel, PAYER, Amount(1000), requests)
            await self.market.run(WORKER, part)
        if event in (ChannelEvent.WITHDRAW, ChannelEvent.WITHDRAW_PART):
            await self.market.pass_time(channel.withdrawal_delay)
        try:
            mined = await self.market.run(WORKER, self.call(channel, event, requests))
        except TransactionReverted:
            return False
        events = decode_events(self.market.deployment.escrow, mined.logs)
        if event is ChannelEvent.SETTLE:
            assert isinstance(events[0], Settled | ClaimSkipped)
            return isinstance(events[0], Settled)
        return True

    @property
    def domain(self) -> Domain:
        return self.market.reader.domain

    def call(self, channel: Channel, event: ChannelEvent, requests: int) -> calls.Call:
        """The call for an event, with every signature that it needs."""
        d, domain = self.market.deployment, self.domain
        amount = Amount(USD + self.step * 1000)
        if event is ChannelEvent.FUND:
            terms = FundChannel(channel, amount, Amount(0), FAR)
            signature = signature_of(domain, terms, PAYER)
            return calls.fund(d, channel, amount, deadline=FAR, signature=signature)
        if event is ChannelEvent.REQUEST_WITHDRAWAL:
            return request_of(self.market, channel, PAYER, nonce=requests)
        if event is ChannelEvent.CANCEL_WITHDRAWAL:
            return cancel_of(self.market, channel, PAYER, max(0, requests - 1))
        if event in (ChannelEvent.WITHDRAW, ChannelEvent.WITHDRAW_PART):
            return calls.withdraw(d, channel)
        claim = claim_of(domain, channel, PAYER, self.step * 1000)
        if event is ChannelEvent.SETTLE:
            return calls.settle(d, [claim])
        return close_of(self.market, claim, WORKER)


async def test_the_escrow_takes_a_call_exactly_where_the_table_has_it(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 100 * USD)
        table = Table(market)
        for salt, (state, event) in enumerate(itertools.product(ChannelState, ChannelEvent)):
            channel = channel_of(market, PAYER, WORKER, salt=salt)
            channel_id = channel.id(market.reader.domain)
            for step in channel_path(ChannelState.NONE, state) or ():
                assert await table.apply(channel, step)
            assert (await market.reader.channel(channel_id)).state is state
            taken = await table.apply(channel, event)
            after = (await market.reader.channel(channel_id)).state
            assert (taken, after) == (
                (state, event) in CHANNEL_TABLE,
                CHANNEL_TABLE.get((state, event), state),
            ), f"{state.value}, {event.value}"
