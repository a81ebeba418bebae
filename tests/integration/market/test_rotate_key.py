"""A new operator key on a real chain, and what a thief of the old one can still do."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call
from piecework.chain.deployment import Deployment
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import ChainError, TransactionReverted
from piecework_node import config
from piecework_node.errors import ConfigError, KeyFileError, NotFunded
from piecework_node.home import Home
from piecework_node.keys.operator import keystore_address, load_operator
from piecework_node.keys.tls import load_tls
from piecework_node.operations.registration import prepare_home
from piecework_node.operations.rotation import RotationReport, is_rotated
from piecework_protocol.objects import Registration
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import (
    Address,
    Amount,
    Timestamp,
    keccak256,
    parse_address,
)
from tests.support.chain.chains import (
    FAR,
    MIN_STAKE,
    UNBONDING_DELAY_S,
    USD,
    TestMarket,
    channel_of,
    claim_of,
    close_of,
    deployed,
)
from tests.support.node.leaving import KeysAndChain, killed, leave, rotate, rotate_here
from tests.support.node.owed import FEE, OPERATOR, OWED, OWNER, PAYER, OwedWorker, owed_worker
from tests.support.system.worker_process import PASSWORD, RECEIVER

pytestmark = pytest.mark.process

MOST_POINTS = 80
THIEF = OPERATOR
"""Has a copy of the key, and all the time in the world."""


async def bonded(market: TestMarket) -> set[Address]:
    return {w.operator async for w in market.reader.every_worker() if w.active}


def operator_of(home: Home) -> Address:
    return parse_address("0x" + keystore_address(home.operator))


async def test_a_kill_at_any_point_leaves_one_new_key_and_nothing_owed(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        home = owed.worker.home
        point = attempts = half_done = 0
        while await killed(rotate_here, owed.hands, OPERATOR.address, point):
            attempts, point = attempts + 1, point + 1
            assert attempts < MOST_POINTS, "the rotation never comes to its end"
            if starts_nothing_while_half_done(home):
                half_done += 1
                # What is behind has no points any more: begin to count again at the first move.
                point = 0 if half_done == 1 else point
        assert attempts > 15 and half_done > 3
        assert is_rotated(home, OPERATOR.address)
        new = operator_of(home)
        assert await bonded(market) == {new}
        again = await rotate(owed.hands, OPERATOR.address)
        assert again.operator == new and again.steps == () and again.call is None
        await everything_is_in_its_place(home, market, new)


def starts_nothing_while_half_done(home: Home) -> bool:
    """Whether the key is away. Then neither a start nor `init` makes another one."""
    if home.operator.exists():
        return False
    with pytest.raises(KeyFileError, match="rotate-key` again"):
        load_operator(home.operator, PASSWORD)
    deployment = Deployment.load(home.deployment)
    with pytest.raises(KeyFileError, match="rotate-key` again"):
        prepare_home(home, deployment, {}, PASSWORD, Timestamp(1))
    return True


async def everything_is_in_its_place(home: Home, market: TestMarket, new: Address) -> None:
    """Each home with the key, certificate and journal of its own operator."""
    old = home.retired(OPERATOR.address)
    assert operator_of(old) == OPERATOR.address and old.journal.exists()
    load_tls(home.certificate, home.certificate_key, new)
    load_tls(old.certificate, old.certificate_key, OPERATOR.address)
    assert not home.journal.exists() and not home.next.root.exists()
    for place in (home, old):
        assert place.root.stat().st_mode & 0o777 == 0o700
        assert config.load(place.root, environment={}).receiver == RECEIVER
    known = await market.reader.worker(new)
    assert known is not None
    assert (known.owner, known.payout, known.stake) == (OWNER.address, RECEIVER, MIN_STAKE)
    assert await market.reader.token_balance(market.token, RECEIVER) == OWED + FEE
    # The gas went along. What is left pays for no more than a few transfers.
    coins = [await market.reader.native_balance(a) for a in (new, OPERATOR.address)]
    assert coins[0] > 20 * coins[1]


async def test_a_thief_of_the_old_key_gets_neither_stake_nor_earnings(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        report: RotationReport = await rotate(owed.hands, OPERATOR.address)
        assert report.call is None
        await market.give(THIEF.address, wei=10**18)
        await the_stake_is_out_of_reach(market)
        await settled_money_is_out_of_reach(market, owed)
        await nobody_takes_an_offer_of_the_old_key(market)

        await market.pass_time(UNBONDING_DELAY_S)
        await the_stake_is_out_of_reach(market)
        before = await market.reader.token_balance(market.token, OWNER.address)
        retired = KeysAndChain(report.old_home, owed.hands.owner, owed.hands.url)
        assert (await leave(retired)).next is None
        got = await market.reader.token_balance(market.token, OWNER.address) - before
        assert got == MIN_STAKE and await bonded(market) == {report.operator}
        await a_later_registration_costs_the_thief_its_own_stake(market)


async def refused(market: TestMarket, call: Call) -> None:
    """The chain does not let the thief do this."""
    with pytest.raises(TransactionReverted):
        await market.run(THIEF, call)


async def the_stake_is_out_of_reach(market: TestMarket) -> None:
    deployment, operator = market.deployment, OPERATOR.address
    for call in (
        calls.withdraw_stake(deployment, operator),
        calls.cancel_unbond(deployment, operator),
        calls.set_payout(deployment, operator, THIEF.address),
        calls.offer_owner(deployment, operator, THIEF.address),
        calls.accept_owner(deployment, operator),
    ):
        await refused(market, call)
    known = await market.reader.worker(operator)
    assert known is not None and known.owner == OWNER.address and known.payout == RECEIVER


async def settled_money_is_out_of_reach(market: TestMarket, owed: OwedWorker) -> None:
    """The old channel is settled. To close it lower takes nothing back, and pays RECEIVER."""
    id_ = owed.claim.voucher.channel
    before = await market.reader.token_balance(market.token, RECEIVER)
    lower = claim_of(market.reader.domain, owed.channel, PAYER, OWED // 2)
    await market.run(THIEF, close_of(market, lower, THIEF))
    assert (await market.reader.channel(id_)).settled == OWED
    assert await market.reader.token_balance(market.token, RECEIVER) == before
    assert await market.reader.token_balance(market.token, THIEF.address) == 0
    # New channels name the new operator: the old key cannot close them.
    (new,) = await bonded(market)
    theirs = channel_of(market, PAYER, LocalSigner(keccak256(b"another")), receiver=RECEIVER)
    theirs = theirs.replace(operator=new)
    await market.open_channel(PAYER, PAYER, theirs, USD)
    empty = claim_of(market.reader.domain, theirs, PAYER, 0)
    with pytest.raises(ChainError):
        await market.run(THIEF, close_of(market, empty, THIEF))


async def nobody_takes_an_offer_of_the_old_key(market: TestMarket) -> None:
    """A session key of the thief's own changes nothing: the registration is not active."""
    session = LocalSigner(keccak256(b"a session key of the thief"))
    soon = Timestamp(await market.reader.timestamp() + 3600)
    call = calls.authorize_session_key(market.deployment, session.address, soon)
    await market.run(THIEF, call)
    known = await market.reader.worker(OPERATOR.address)
    assert known is not None and not known.active


async def a_later_registration_costs_the_thief_its_own_stake(market: TestMarket) -> None:
    """Without tokens of its own the old key cannot come back."""
    registration = Registration(
        operator=OPERATOR.address,
        owner=THIEF.address,
        payout=THIEF.address,
        stake=MIN_STAKE,
        endpoint="thief.example.org:1",
        nonce=await market.reader.registration_nonce(OPERATOR.address),
        deadline=FAR,
    )
    await refused(market, calls.register(market.deployment, registration))


async def test_without_a_second_stake_the_old_worker_stays_as_it_is(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        home, safe = owed.worker.home, Address(b"\x77" * 20)
        held = await market.reader.token_balance(market.token, OWNER.address)
        await market.run(OWNER, calls.transfer(market.token, safe, Amount(held)))
        with pytest.raises(NotFunded, match=r"lacks 100\.00 tUSDC for the stake"):
            await rotate(owed.hands, OPERATOR.address)
        assert operator_of(home) == OPERATOR.address and home.next.operator.exists()
        assert await bonded(market) == {OPERATOR.address}
        with pytest.raises(ConfigError, match="is not in"):
            await rotate(owed.hands, safe)

        fresh = operator_of(home.next)
        await market.give(fresh, wei=10**18, tokens=MIN_STAKE)
        report: RotationReport = await rotate(owed.hands, OPERATOR.address)
        assert report.operator == fresh and await bonded(market) == {fresh}
