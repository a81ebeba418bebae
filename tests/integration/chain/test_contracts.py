"""Everything that Piecework does on a chain, on the embedded chain and on anvil."""

from __future__ import annotations

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import Permit, deposit_nonce, sign_permit
from piecework.chain.contracts.events import (
    ChannelClosed,
    ChannelOpened,
    ClaimSkipped,
    Settled,
    SkipReason,
    decode_events,
)
from piecework.chain.errors import TransactionReverted
from piecework.chain.reading.reader import ChainReader
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import (
    FundChannel,
    Registration,
)
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    PayerSignature,
    Timestamp,
    Uint64,
    Uint256,
)
from tests.support.chain.chains import (
    ETHER,
    FAR,
    MIN_STAKE,
    RECEIPTS_ROOT,
    UNBONDING_DELAY_S,
    USD,
    Chain,
    channel_of,
    claim_of,
    close_of,
    deployed,
    request_of,
    signature_of,
    signer,
)

pytestmark = pytest.mark.process

PAYER, WORKER, COLD, STRANGER = (signer(n) for n in ("payer", "worker", "cold", "stranger"))


async def test_a_deployment_is_found_again_by_its_file(any_chain: Chain, tmp_path) -> None:  # type: ignore[no-untyped-def]
    async with deployed(any_chain) as market:
        market.deployment.save(tmp_path / "deployment.json")
        read = type(market.deployment).load(tmp_path / "deployment.json")
        assert read == market.deployment
        async with await ChainReader.connect(read) as reader:
            assert reader.domain == Domain(any_chain.chain_id, market.deployment.escrow)
            requirements = await reader.stake_requirements()
            assert (requirements.token, requirements.min_stake) == (market.token, MIN_STAKE)
            assert requirements.unbonding_delay == UNBONDING_DELAY_S


async def test_a_worker_registers_with_one_transaction(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        await market.give(COLD.address, wei=ETHER, tokens=MIN_STAKE)
        now = await market.reader.timestamp()
        deadline = Timestamp(now + 600)
        terms = Registration(
            WORKER.address,
            COLD.address,
            COLD.address,
            MIN_STAKE,
            "https://worker.example:7000",
            Uint64(0),
            deadline,
        )
        consent = sign(market.reader.registry_domain(), terms, WORKER)
        nonce = await market.reader.permit_nonce(market.token, COLD.address)
        allowance = Permit(
            COLD.address, market.deployment.registry, Uint256(MIN_STAKE), nonce, Uint256(deadline)
        )
        permit = sign_permit(await market.reader.token_domain(market.token), allowance, COLD)
        assert await market.reader.worker(WORKER.address) is None
        call = calls.register_with_permit(market.deployment, terms, permit, consent)
        await market.run(COLD, call)
        worker = await market.reader.worker(WORKER.address)
        assert worker is not None
        assert (worker.owner, worker.payout, worker.stake) == (
            COLD.address,
            COLD.address,
            MIN_STAKE,
        )
        assert worker.active
        assert worker.endpoint == "https://worker.example:7000"
        assert [w async for w in market.reader.every_worker()] == [worker]
        assert await market.reader.workers(0, 10) == (worker,)
        assert await market.reader.workers(1, 10) == ()
        assert await market.reader.is_signer(WORKER.address, WORKER.address)
        assert not await market.reader.is_signer(WORKER.address, STRANGER.address)


async def test_a_registered_worker_can_change_its_endpoint_use_a_session_key_and_leave(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        await market.give(WORKER.address, wei=ETHER, tokens=MIN_STAKE)
        me, sender, d = WORKER.address, market.sender(WORKER), market.deployment
        now = await market.reader.timestamp()
        until = Timestamp(now + 600)
        terms = Registration(me, me, COLD.address, MIN_STAKE, "https://a:1", Uint64(0), until)
        for call in (
            calls.approve(market.token, d.registry, MIN_STAKE),
            calls.register(d, terms),
            calls.set_endpoint(d, me, "https://b:2"),
            calls.authorize_session_key(d, STRANGER.address, Timestamp(now + 600)),
            calls.set_payout(d, me, STRANGER.address),
        ):
            await market.run(WORKER, call)
        worker = await market.reader.worker(me)
        assert worker is not None
        assert (worker.endpoint, worker.payout) == ("https://b:2", STRANGER.address)
        assert await market.reader.is_signer(me, STRANGER.address)
        await market.run(WORKER, calls.request_unbond(d, me))
        leaving = await market.reader.worker(me)
        assert leaving is not None
        assert not leaving.active
        with pytest.raises(TransactionReverted) as refused:
            await sender.prepare(calls.withdraw_stake(d, me), value_at_stake=None)
        assert refused.value.name == "StillBonded"
        await market.pass_time(UNBONDING_DELAY_S + 1)
        await market.run(WORKER, calls.withdraw_stake(d, me))
        assert await market.reader.worker(me) is None
        assert await market.reader.token_balance(market.token, me) == MIN_STAKE


async def test_a_payer_without_gas_deposits_by_authorization(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 5 * USD)
        assert await market.reader.native_balance(PAYER.address) == 0
        assert await market.reader.pooled_balance(market.token, PAYER.address) == 5 * USD
        nonce = deposit_nonce(Bytes32((5 * USD).to_bytes(32, "big")))
        assert await market.reader.authorization_state(market.token, PAYER.address, nonce)


async def test_a_payer_deposits_by_permit_and_by_approval(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        d, reader = market.deployment, market.reader
        await market.give(WORKER.address, wei=ETHER)
        await market.give(PAYER.address, wei=ETHER, tokens=5 * USD)
        deadline = Uint256(await reader.timestamp() + 600)
        nonce = await reader.permit_nonce(market.token, PAYER.address)
        allowance = Permit(PAYER.address, d.escrow, Uint256(2 * USD), nonce, deadline)
        permit = sign_permit(await reader.token_domain(market.token), allowance, PAYER)
        await market.run(WORKER, calls.deposit_with_permit(d, permit))
        for call in calls.approve_and_deposit(d, market.token, Amount(3 * USD), PAYER.address):
            await market.run(PAYER, call)
        assert await reader.pooled_balance(market.token, PAYER.address) == 5 * USD
        assert await reader.allowance(market.token, PAYER.address, d.escrow) == 0
        withdraw = calls.withdraw_balance(d, market.token, Amount(USD), COLD.address)
        await market.run(PAYER, withdraw)
        assert await reader.token_balance(market.token, COLD.address) == USD


async def test_a_worker_opens_the_channel_by_the_payers_signature_and_settles(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 5 * USD)
        channel = channel_of(market, PAYER, WORKER, receiver=COLD.address)
        channel_id = channel.id(reader.domain)
        assert (await reader.channel(channel_id)).state is ChannelState.NONE
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        opened = await reader.channel(channel_id)
        assert (opened.state, opened.funded, opened.settled) == (ChannelState.OPEN, 2 * USD, 0)
        claim = claim_of(reader.domain, channel, PAYER, 700_000, count=3)
        (preview,) = await reader.preview_settle([claim])
        assert (preview.payable, preview.reason) == (700_000, SkipReason.NONE)
        mined = await market.run(WORKER, calls.settle(d, [claim]))
        (event,) = decode_events(d.escrow, mined.logs)
        assert isinstance(event, Settled)
        assert (event.channel, event.receiver) == (channel_id, COLD.address)
        assert (event.amount, event.cumulative, event.count) == (700_000, 700_000, 3)
        assert event.receipts_root == RECEIPTS_ROOT
        assert await reader.token_balance(market.token, COLD.address) == 700_000
        assert await reader.settlements(channel_id) == (event,)
        (opening,) = await reader.escrow_events(("ChannelOpened",), 0, await reader.latest_block())
        assert isinstance(opening, ChannelOpened)
        assert opening.terms == channel


async def test_one_bad_row_does_not_hold_up_a_batch_of_many_channels(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 10 * USD)
        channels = [channel_of(market, PAYER, WORKER, salt=salt) for salt in range(5)]
        for channel in channels:
            await market.open_channel(PAYER, WORKER, channel, USD)
        claims = [
            claim_of(reader.domain, c, PAYER, 100_000 * (i + 1)) for i, c in enumerate(channels)
        ]
        forged = claim_of(reader.domain, channels[2], STRANGER, 900_000)
        claims[2] = forged
        claims.append(claim_of(reader.domain, channel_of(market, PAYER, WORKER, salt=99), PAYER, 1))
        previews = await reader.preview_settle(claims)
        assert [p.reason for p in previews] == [
            SkipReason.NONE,
            SkipReason.NONE,
            SkipReason.BAD_SIGNATURE,
            SkipReason.NONE,
            SkipReason.NONE,
            SkipReason.UNKNOWN_CHANNEL,
        ]
        mined = await market.run(WORKER, calls.settle(d, claims))
        events = decode_events(d.escrow, mined.logs)
        assert [type(e) for e in events] == [
            Settled,
            Settled,
            ClaimSkipped,
            Settled,
            Settled,
            ClaimSkipped,
        ]
        assert await reader.token_balance(market.token, WORKER.address) == 1_200_000
        assert (await reader.channel(channels[2].id(reader.domain))).settled == 0


async def test_a_channel_is_closed_by_agreement_and_the_rest_goes_back(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.give(STRANGER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 3 * USD)
        channel = channel_of(market, PAYER, WORKER)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        last = claim_of(reader.domain, channel, PAYER, 500_000)
        voucher = last.voucher
        mined = await market.run(STRANGER, close_of(market, last, WORKER))
        closed = decode_events(d.escrow, mined.logs)[-1]
        assert isinstance(closed, ChannelClosed)
        assert (closed.settled, closed.refund, closed.fee) == (500_000, 1_500_000, 0)
        assert (await reader.channel(voucher.channel)).state is ChannelState.CLOSED
        assert await reader.pooled_balance(market.token, PAYER.address) == 2_500_000
        with pytest.raises(TransactionReverted) as refused:
            await market.sender(WORKER).prepare(calls.close(d, last), value_at_stake=None)
        assert refused.value.name == "ChannelIsClosed"


async def test_a_silent_worker_cannot_keep_the_deposit(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d = market.reader, market.deployment
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER)
        channel_id = channel.id(reader.domain)
        await market.open_channel(PAYER, WORKER, channel, 2 * USD)
        before = await reader.latest_block()
        await market.run(WORKER, request_of(market, channel, PAYER))
        (event,) = await reader.withdrawal_requests(before + 1, await reader.latest_block())
        state = await reader.channel(channel_id)
        assert state.state is ChannelState.WITHDRAWING
        assert event.channel == channel_id
        assert event.withdrawable_at == state.withdrawal_requested_at + channel.withdrawal_delay
        with pytest.raises(TransactionReverted) as refused:
            await market.sender(WORKER).prepare(calls.withdraw(d, channel), value_at_stake=None)
        assert refused.value.name == "WithdrawalTooEarly"
        await market.pass_time(channel.withdrawal_delay)
        await market.run(WORKER, calls.withdraw(d, channel))
        assert await reader.pooled_balance(market.token, PAYER.address) == 2 * USD


async def test_a_strangers_signature_opens_nothing(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        await market.give(WORKER.address, wei=ETHER)
        await market.pool(PAYER, WORKER, 2 * USD)
        channel = channel_of(market, PAYER, WORKER)
        terms = FundChannel(channel, Amount(USD), Amount(0), FAR)
        forged = signature_of(market.reader.domain, terms, STRANGER)
        for signature in (forged, PayerSignature(bytes(65)), PayerSignature(b"")):
            call = calls.fund(
                market.deployment, channel, Amount(USD), deadline=FAR, signature=signature
            )
            with pytest.raises(TransactionReverted) as refused:
                await market.sender(WORKER).prepare(call, value_at_stake=None)
            assert refused.value.name == "BadSignature"
            assert Address(PAYER.address).hex() in str(refused.value).lower()
