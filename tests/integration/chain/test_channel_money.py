"""Every way that money takes into, through and out of a channel, read back from the chain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import (
    Permit,
    opening_authorization,
    sign_opening,
    sign_permit,
)
from piecework.chain.contracts.events import (
    BalanceWithdrawn,
    ChannelClosed,
    ChannelFunded,
    ChannelOpened,
    ClaimSkipped,
    Deposited,
    PayoutCredited,
    PayoutPushed,
    Settled,
    SkipReason,
    WithdrawalCancelled,
    Withdrawn,
    decode_events,
)
from piecework.chain.contracts.packing import (
    PACKED_GAS,
    PLAIN_GAS,
    estimated_gas,
    settle_packed,
    settlement_batches,
    settlement_calldata,
)
from piecework.chain.errors import TransactionReverted
from piecework.chain.reading.reader import UNKNOWN_CHANNEL
from piecework_protocol.frames import OpeningAuthorization
from piecework_protocol.objects import EVERYTHING, Channel, WithdrawPooled
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, Seconds, Timestamp, Uint64, Uint256
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
from tests.support.chain.smart_account import SmartAccount

pytestmark = pytest.mark.process

PAYER, WORKER, COLD, STRANGER = (signer(n) for n in ("payer", "worker", "cold", "stranger"))


async def opening_of(
    market: TestMarket, channel: Channel, *, amount: int, fee: int, before: int = 0
) -> OpeningAuthorization:
    """The payer's one signature that opens a channel or tops it up."""
    return sign_opening(
        await market.reader.token_domain(market.token),
        market.reader.domain,
        channel,
        PAYER,
        amount=Amount(amount),
        fee=Amount(fee),
        funded_before=Amount(before),
        valid_before=Timestamp(await market.reader.timestamp() + 3600),
    )


async def refusal(market: TestMarket, call: calls.Call) -> str:
    """The name of the error with which the escrow refuses a call of the worker."""
    with pytest.raises(TransactionReverted) as refused:
        await market.sender(WORKER).prepare(call, value_at_stake=None)
    return refused.value.name


# --- in


async def test_one_signature_opens_a_channel_out_of_the_payers_own_tokens(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.give(PAYER.address, tokens=10 * USD)
        channel = channel_of(market, PAYER, WORKER, receiver=COLD.address)
        channel_id = channel.id(reader.domain)
        assert await reader.channel(channel_id) == UNKNOWN_CHANNEL
        opening = await opening_of(market, channel, amount=2 * USD, fee=3_000)
        mined = await market.run(WORKER, calls.submit_funding(d, channel, opening))
        kinds = [type(event) for event in decode_events(d.escrow, mined.logs)]
        assert set(kinds) == {ChannelOpened, ChannelFunded, PayoutCredited}
        funded = next(
            e for e in decode_events(d.escrow, mined.logs) if isinstance(e, ChannelFunded)
        )
        assert (funded.funded, funded.added, funded.fee) == (2 * USD, 2 * USD, 3_000)
        assert (await reader.channel(channel_id)).funded == 2 * USD
        assert await reader.waiting_payout(market.token, COLD.address) == 3_000
        assert await reader.token_balance(market.token, PAYER.address) == 8 * USD - 3_000
        assert await reader.pooled_balance(market.token, PAYER.address) == 0
        again = calls.open_with_authorization(d, channel, opening)
        assert await refusal(market, again)  # its nonce names what was funded before
        more = await opening_of(market, channel, amount=USD, fee=0, before=2 * USD)
        await market.run(WORKER, calls.submit_funding(d, channel, more))
        assert (await reader.channel(channel_id)).funded == 3 * USD


async def test_an_opening_pays_into_its_channel_and_nowhere_else(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        d = market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.give(PAYER.address, tokens=10 * USD)
        channel = channel_of(market, PAYER, WORKER)
        other = channel_of(market, PAYER, WORKER, salt=1)
        opening = await opening_of(market, channel, amount=2 * USD, fee=3_000)
        for call in (
            calls.open_with_authorization(d, other, opening),
            calls.open_with_authorization(d, channel, replace(opening, fee=Amount(4_000))),
            calls.open_with_authorization(
                d, channel, replace(opening, amount=Amount(2 * USD + 3_000), fee=Amount(0))
            ),
        ):
            assert await refusal(market, call) == "AuthorizationNotSigned"
        message = opening_authorization(market.reader.domain, channel, Amount(0), opening)
        assert not await market.reader.authorization_state(
            market.token, PAYER.address, message.nonce
        )


async def test_a_fee_for_the_opening_waits_until_anybody_pushes_it(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.give(STRANGER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 5 * USD)
        channel = channel_of(market, PAYER, WORKER, receiver=COLD.address)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD, fee=10_000)
        assert await reader.pooled_balance(market.token, PAYER.address) == 3 * USD - 10_000
        mined = await market.run(STRANGER, calls.push_payout(d, market.token, COLD.address))
        (pushed,) = decode_events(d.escrow, mined.logs)
        assert isinstance(pushed, PayoutPushed)
        assert (pushed.receiver, pushed.amount) == (COLD.address, 10_000)
        assert await reader.token_balance(market.token, COLD.address) == 10_000
        assert await reader.waiting_payout(market.token, COLD.address) == 0
        push = calls.push_payout(d, market.token, COLD.address)
        assert await refusal(market, push) == "NothingToPush"


async def test_a_used_permit_takes_nothing_from_a_later_allowance(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.give(PAYER.address, wei=ETHER, tokens=9 * USD)
        deadline = Uint256(await reader.timestamp() + 600)
        allowance = Permit(PAYER.address, d.escrow, Uint256(USD), Uint256(0), deadline)
        permit = sign_permit(await reader.token_domain(market.token), allowance, PAYER)
        await market.run(WORKER, calls.deposit_with_permit(d, permit))
        await market.run(PAYER, calls.approve(market.token, d.escrow, Amount(8 * USD)))
        again = calls.deposit_with_permit(d, permit)
        assert await refusal(market, again) == "PermitNotSigned"
        assert await reader.pooled_balance(market.token, PAYER.address) == USD


# --- through


async def test_packed_rows_pay_exactly_what_plain_claims_pay(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 20 * USD)
        channels = [channel_of(market, PAYER, WORKER, salt=salt) for salt in range(6)]
        for channel in channels:
            await market.open_channel(PAYER, WORKER, channel, USD)
        claims = [
            claim_of(reader.domain, c, PAYER, 100_000 * (i + 1), count=i + 1)
            for i, c in enumerate(channels)
        ]
        claims[1] = claim_of(reader.domain, channels[1], STRANGER, 900_000)
        claims[2] = claim_of(reader.domain, channels[2], PAYER, 7 * USD)
        claims.append(claim_of(reader.domain, channel_of(market, PAYER, WORKER, salt=99), PAYER, 1))
        previews = await reader.preview_settle(claims)
        call = settlement_calldata(d, claims)
        assert call.what == "settlePacked"
        mined = await market.run(WORKER, call)
        events = decode_events(d.escrow, mined.logs)
        assert len(events) == len(claims)
        for event, claim, preview in zip(events, claims, previews, strict=True):
            if preview.reason is SkipReason.NONE:
                assert isinstance(event, Settled)
                v = claim.voucher
                assert (event.channel, event.amount) == (v.channel, preview.payable)
                assert (event.cumulative, event.count) == (v.cumulative, v.count)
                assert event.receipts_root == v.receipts_root
            else:
                assert isinstance(event, ClaimSkipped)
                assert (event.channel, event.reason) == (claim.voucher.channel, preview.reason)
        paid = sum(p.payable for p in previews)
        assert await reader.token_balance(market.token, WORKER.address) == paid


async def test_the_estimates_of_both_forms_are_what_the_chain_uses(any_chain: Chain) -> None:
    """The policy weighs a settlement with these numbers before it asks the chain."""
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 100 * USD)
        channels = [channel_of(market, PAYER, WORKER, salt=salt) for salt in range(12)]
        for channel in channels:
            await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        await market.give(WORKER.address, tokens=1)
        earned = 0
        for form, gas in ((settle_packed, PACKED_GAS), (calls.settle, PLAIN_GAS)):
            used = {}
            for rows in (12, 1, 12):  # the first payment to a channel costs a little less
                earned += 10_000
                claims = [
                    claim_of(reader.domain, c, PAYER, earned, count=earned) for c in channels[:rows]
                ]
                used[rows] = (await market.run(WORKER, form(d, claims))).gas_used
            row = (used[12] - used[1]) / 11
            assert row == pytest.approx(gas.row, rel=0.05), (form.__name__, used)
            assert used[1] - row == pytest.approx(gas.fixed, rel=0.05), (form.__name__, used)


async def test_claims_of_many_terms_are_split_into_batches_that_all_pay(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 50 * USD)
        channels = [channel_of(market, PAYER, WORKER, salt=salt) for salt in range(10)]
        channels += [
            replace(channels[0], withdrawal_delay=Seconds(7200)),
            *[replace(channels[0], withdrawal_delay=Seconds(9000 + n)) for n in range(2)],
        ]
        for channel in channels:
            await market.open_channel(PAYER, WORKER, channel, USD)
        claims = [claim_of(reader.domain, c, PAYER, 50_000) for c in channels]
        batches = settlement_batches(claims)
        assert [len(batch) for batch in batches] == [10, 3]
        made = [settlement_calldata(d, batch) for batch in batches]
        assert [call.what for call in made] == ["settlePacked", "settle"]
        for batch, call in zip(batches, made, strict=True):
            mined = await market.run(WORKER, call)
            assert mined.gas_used < 2 * estimated_gas(batch)
        assert await reader.token_balance(market.token, WORKER.address) == 13 * 50_000


# --- out


async def test_a_part_is_taken_back_and_the_channel_lives_on(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER)
        channel_id = channel.id(reader.domain)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        await market.run(
            WORKER, calls.settle(d, [claim_of(reader.domain, channel, PAYER, 300_000)])
        )
        await market.run(WORKER, request_of(market, channel, PAYER, Amount(USD)))
        asked = await reader.channel(channel_id)
        assert (asked.state, asked.requested, asked.requests) == (ChannelState.WITHDRAWING, USD, 1)
        assert (asked.capacity, asked.available, asked.left) == (2 * USD, USD, 1_700_000)
        await market.pass_time(channel.withdrawal_delay)
        mined = await market.run(WORKER, calls.withdraw(d, channel))
        (event,) = decode_events(d.escrow, mined.logs)
        assert isinstance(event, Withdrawn) and event.amount == USD
        after = await reader.channel(channel_id)
        assert (after.state, after.funded, after.withdrawn) == (ChannelState.OPEN, 2 * USD, USD)
        assert (after.requested, after.withdrawal_requested_at, after.requests) == (0, 0, 1)
        assert (after.capacity, after.available, after.left) == (USD, USD, 700_000)
        assert await reader.pooled_balance(market.token, PAYER.address) == USD
        late = claim_of(reader.domain, channel, PAYER, 1_900_000, count=2)
        (preview,) = await reader.preview_settle([late])
        assert preview.payable == 700_000


async def test_a_request_that_was_called_off_cannot_be_sent_again(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER)
        channel_id = channel.id(reader.domain)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        request = request_of(market, channel, PAYER)
        await market.run(WORKER, request)
        asked = await reader.channel(channel_id)
        assert (asked.requested, asked.available) == (EVERYTHING, 0)
        mined = await market.run(WORKER, cancel_of(market, channel, PAYER))
        (event,) = decode_events(d.escrow, mined.logs)
        assert isinstance(event, WithdrawalCancelled) and event.nonce == 0
        open_again = await reader.channel(channel_id)
        assert (open_again.state, open_again.available) == (ChannelState.OPEN, 2 * USD)
        assert await refusal(market, request) == "WrongNonce"
        nothing = cancel_of(market, channel, PAYER)
        assert await refusal(market, nothing) == "WithdrawalNotRequested"


async def test_everything_that_is_left_goes_back_and_the_channel_closes(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        await market.run(WORKER, request_of(market, channel, PAYER))
        await market.pass_time(channel.withdrawal_delay)
        mined = await market.run(WORKER, calls.withdraw(d, channel))
        (event,) = decode_events(d.escrow, mined.logs)
        assert isinstance(event, ChannelClosed) and event.refund == 2 * USD
        closed = await reader.channel(channel.id(reader.domain))
        assert (closed.state, closed.capacity, closed.left) == (ChannelState.CLOSED, 0, 0)


async def test_closing_pays_its_fee_out_of_the_rest(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(STRANGER.address, wei=ETHER)
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER, receiver=COLD.address)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        last = claim_of(reader.domain, channel, PAYER, 500_000)
        unsigned = close_of(market, last, WORKER, fee=20_000)
        assert await refusal(market, unsigned) == "BadSignature"  # the voucher agrees to no fee
        mined = await market.run(STRANGER, close_of(market, last, WORKER, PAYER, fee=20_000))
        event = next(e for e in decode_events(d.escrow, mined.logs) if isinstance(e, ChannelClosed))
        assert (event.settled, event.refund, event.fee) == (500_000, 1_480_000, 20_000)
        assert await reader.token_balance(market.token, COLD.address) == 520_000
        assert await reader.pooled_balance(market.token, PAYER.address) == 1_480_000


async def test_pooled_money_leaves_by_a_signed_order_that_pays_its_own_gas(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        nonce = await reader.withdrawal_nonce(PAYER.address)
        order = WithdrawPooled(
            PAYER.address, market.token, Amount(USD), COLD.address, Amount(5_000), nonce, FAR
        )
        signature = signature_of(reader.domain, order, PAYER)
        call = calls.withdraw_balance_for(d, order, signature)
        mined = await market.run(WORKER, call)
        (event,) = decode_events(d.escrow, mined.logs)
        assert isinstance(event, BalanceWithdrawn)
        assert (event.owner, event.to, event.amount, event.fee) == (
            PAYER.address,
            COLD.address,
            USD,
            5_000,
        )
        assert await reader.token_balance(market.token, COLD.address) == USD
        assert await reader.token_balance(market.token, WORKER.address) == 5_000
        assert await reader.pooled_balance(market.token, PAYER.address) == USD - 5_000
        assert await reader.withdrawal_nonce(PAYER.address) == nonce + 1
        assert await refusal(market, call) == "WrongNonce"


# --- a smart account


async def test_a_smart_account_is_asked_and_a_plain_key_is_not(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader = market.reader
        account = await SmartAccount.create(market)
        order = WithdrawPooled(
            account.address, market.token, Amount(1), COLD.address, Amount(0), Uint64(0), FAR
        )
        good = account.sign(reader.domain, order)
        assert await reader.payer_signed(account.address, order, good)
        for wrong in (
            account.sign(reader.domain, replace(order, amount=Amount(2))),
            signature_of(reader.domain, order, PAYER),
            bytes(65),
            b"",
            bytes(5000),
        ):
            assert not await reader.payer_signed(account.address, order, wrong)
        mine = signature_of(reader.domain, order, PAYER)
        assert await reader.payer_signed(PAYER.address, order, mine)
        assert not await reader.payer_signed(PAYER.address, order, good)
        assert not await reader.payer_signed(STRANGER.address, order, mine)


@pytest.mark.parametrize(
    "runtime",
    [
        b"\xfe",  # an invalid opcode, which burns all gas
        b"\x5b\x5f\x56",  # a loop
        bytes.fromhex("5f5ffd"),  # a revert
        bytes.fromhex("00"),  # no answer
        bytes.fromhex("631626ba7e5f5260205ff3"),  # the magic number at the wrong end of the word
        bytes.fromhex("7f1626ba7e") + bytes(28) + bytes.fromhex("5f5260045ff3"),  # four bytes of it
        bytes.fromhex("7f1626ba7e") + b"\xff" * 28 + bytes.fromhex("5f5260205ff3"),  # dirty
    ],
    ids=["invalid", "loop", "revert", "nothing", "low end", "short", "dirty"],
)
async def test_an_account_that_misbehaves_signed_nothing(any_chain: Chain, runtime: bytes) -> None:
    async with deployed(any_chain) as market:
        account = await SmartAccount.create(market, runtime)
        order = WithdrawPooled(
            account.address, market.token, Amount(1), COLD.address, Amount(0), Uint64(0), FAR
        )
        assert not await market.reader.payer_signed(account.address, order, bytes(96))


async def test_a_smart_account_deposits_opens_pays_and_takes_its_money_back(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d, domain = market.reader, market.deployment, market.reader.domain
        account = await SmartAccount.create(market)
        await market.give(WORKER.address, wei=ETHER)
        await market.give(account.address, tokens=10 * USD)
        channel = replace(
            channel_of(market, PAYER, WORKER), payer=account.address, authorizer=PAYER.address
        )
        until = Timestamp(await reader.timestamp() + 3600)
        unsigned = OpeningAuthorization(
            Amount(2 * USD),
            Amount(1_000),
            Timestamp(0),
            until,
            signature_of(domain, channel, PAYER),
        )
        message = opening_authorization(domain, channel, Amount(0), unsigned)
        token = await reader.token_domain(market.token)
        opening = replace(unsigned, signature=account.sign(token, message))
        assert await reader.payer_signed(account.address, message, opening.signature, domain=token)
        await market.run(WORKER, calls.submit_funding(d, channel, opening))
        allowance = Permit(account.address, d.escrow, Uint256(3 * USD), Uint256(0), Uint256(until))
        permit = replace(
            sign_permit(token, allowance, PAYER), signature=account.sign(token, allowance)
        )
        mined = await market.run(WORKER, calls.deposit_with_permit(d, permit))
        (deposited,) = decode_events(d.escrow, mined.logs)
        assert isinstance(deposited, Deposited) and deposited.beneficiary == account.address
        claim = claim_of(domain, channel, PAYER, 400_000)
        await market.run(WORKER, settlement_calldata(d, [claim]))
        await market.run(WORKER, close_of(market, claim, WORKER))
        assert await reader.pooled_balance(market.token, account.address) == 4_600_000
        order = WithdrawPooled(
            account.address,
            market.token,
            Amount(4_600_000),
            account.address,
            Amount(0),
            await reader.withdrawal_nonce(account.address),
            FAR,
        )
        await market.run(WORKER, calls.withdraw_balance_for(d, order, account.sign(domain, order)))
        assert await reader.token_balance(market.token, account.address) == 9_600_000 - 1_000
