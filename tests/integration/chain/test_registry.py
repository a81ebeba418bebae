"""A worker's life in the registry: consent, owner, session keys, and coming back."""

from __future__ import annotations

import pytest

from piecework.chain.contracts import calls
from piecework.chain.errors import TransactionReverted
from piecework.chain.reading.reader import RegisteredWorker
from piecework_node.operations.registration import owner_warning
from piecework_protocol.objects import Registration
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import ZERO_ADDRESS, Signature, Timestamp, Uint64
from tests.support.chain.chains import (
    ETHER,
    MIN_STAKE,
    UNBONDING_DELAY_S,
    Chain,
    TestMarket,
    deployed,
    signer,
)
from tests.support.chain.smart_account import SmartAccount

pytestmark = pytest.mark.process

WORKER, OWNER, NEXT, STRANGER = (signer(n) for n in ("worker", "owner", "next", "stranger"))


async def consent(market: TestMarket, nonce: int) -> tuple[Registration, Signature]:
    """The operator's consent to be registered by its owner."""
    terms = Registration(
        WORKER.address,
        OWNER.address,
        OWNER.address,
        MIN_STAKE,
        "https://worker.example:7000",
        Uint64(nonce),
        Timestamp(await market.reader.timestamp() + 600),
    )
    return terms, sign(market.reader.registry_domain(), terms, WORKER)


async def join(market: TestMarket, nonce: int) -> RegisteredWorker:
    """Register the worker with its owner's stake."""
    d = market.deployment
    terms, signature = await consent(market, nonce)
    await market.run(OWNER, calls.approve(market.token, d.registry, MIN_STAKE))
    await market.run(OWNER, calls.register(d, terms, signature))
    worker = await market.reader.worker(WORKER.address)
    assert worker is not None
    return worker


async def refusal(market: TestMarket, key: LocalSigner, call: calls.Call) -> str:
    with pytest.raises(TransactionReverted) as refused:
        await market.sender(key).prepare(call, value_at_stake=None)
    return refused.value.name


async def test_a_consent_registers_once_and_the_next_one_carries_the_next_nonce(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        reader, d, me = market.reader, market.deployment, WORKER.address
        await market.give(OWNER.address, wei=ETHER, tokens=2 * MIN_STAKE)
        assert await reader.registration_nonce(me) == 0
        first = await join(market, 0)
        assert (first.owner, first.nonce, first.frozen_until) == (OWNER.address, 0, 0)
        assert first.offered_owner is None and first.active
        assert await reader.registration_nonce(me) == 1
        old, signature = await consent(market, 0)
        await market.run(OWNER, calls.request_unbond(d, me))
        await market.pass_time(UNBONDING_DELAY_S + 1)
        await market.run(OWNER, calls.withdraw_stake(d, me))
        await market.run(OWNER, calls.approve(market.token, d.registry, MIN_STAKE))
        again = old.replace(deadline=Timestamp(await reader.timestamp() + 600))
        replayed = calls.register(d, again, sign(reader.registry_domain(), again, WORKER))
        assert await refusal(market, OWNER, replayed) == "WrongNonce"
        second = await join(market, 1)
        assert second.registration > first.registration
        assert second.nonce == 1
        assert signature


async def test_a_stake_changes_hands_in_two_steps(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d, me = market.reader, market.deployment, WORKER.address
        await market.give(OWNER.address, wei=ETHER, tokens=MIN_STAKE)
        await market.give(NEXT.address, wei=ETHER)
        await join(market, 0)
        await market.run(OWNER, calls.offer_owner(d, me, NEXT.address))
        offered = await reader.worker(me)
        assert offered is not None
        assert (offered.owner, offered.offered_owner) == (OWNER.address, NEXT.address)
        await market.run(OWNER, calls.offer_owner(d, me, ZERO_ADDRESS))
        assert await refusal(market, NEXT, calls.accept_owner(d, me)) == "NotOfferedOwner"
        await market.run(OWNER, calls.offer_owner(d, me, NEXT.address))
        await market.run(NEXT, calls.accept_owner(d, me))
        owned = await reader.worker(me)
        assert owned is not None
        assert (owned.owner, owned.offered_owner) == (NEXT.address, None)


async def test_the_owner_revokes_a_session_key_of_a_stolen_operator(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        reader, d, me = market.reader, market.deployment, WORKER.address
        await market.give(OWNER.address, wei=ETHER, tokens=MIN_STAKE)
        await market.give(WORKER.address, wei=ETHER)
        await join(market, 0)
        until = Timestamp(await reader.timestamp() + 600)
        await market.run(WORKER, calls.authorize_session_key(d, STRANGER.address, until))
        assert await reader.is_signer(me, STRANGER.address)
        await market.run(OWNER, calls.revoke_session_key(d, me, STRANGER.address))
        assert not await reader.is_signer(me, STRANGER.address)


async def test_an_owner_that_may_not_be_able_to_act_is_said(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        doubt = await owner_warning(market.reader, STRANGER.address)
        assert doubt is not None and "--owner" in doubt
        await market.give(STRANGER.address, wei=ETHER)  # to hold coins proves nothing
        assert await owner_warning(market.reader, STRANGER.address) is not None
        await market.run(STRANGER, calls.send_native(OWNER.address, 1))
        assert await owner_warning(market.reader, STRANGER.address) is None
        account = await SmartAccount.create(market)
        assert await owner_warning(market.reader, account.address) is None
