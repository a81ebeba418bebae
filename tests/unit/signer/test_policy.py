"""What a signer signs, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework.signer import policy
from piecework.signer.policy import NotSigned, judge_transaction, judge_typed
from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import OpeningAuthorization
from piecework_protocol.objects import Channel, Registration, Voucher, registry_domain
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    PayerSignature,
    Seconds,
    Timestamp,
    Uint64,
)
from tests.support.chain.signers import ACCEPTANCE, KEY, MARKET, PAYOUT, PERMIT, PINS, TOKEN
from tests.support.market.offers import offer

THIEF = Address(b"\x66" * 20)
REGISTRATION = Registration(
    KEY.address, PAYOUT, PAYOUT, Amount(5), "a.example:1", Uint64(0), Timestamp(9)
)
REGISTRY = registry_domain(MARKET.chain_id, MARKET.registry)


def transaction(call: Call, **changes: object) -> UnsignedTransaction:
    made = UnsignedTransaction(
        MARKET.chain_id, 0, Fees(3, 1), 100_000, call.to, call.value, call.data
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def refusal_of(tx: UnsignedTransaction) -> str:
    with pytest.raises(NotSigned) as caught:
        judge_transaction(PINS, tx)
    return caught.value.refusal


def test_what_a_worker_signs_every_second_costs_signatures_alone() -> None:
    use = judge_typed(PINS, MARKET.domain, ACCEPTANCE)
    assert (use.wei, use.tokens) == (0, 0)


@pytest.mark.parametrize(
    "domain",
    [
        Domain(1, MARKET.escrow),
        Domain(MARKET.chain_id, THIEF),
        replace(MARKET.domain, name="Other"),
        REGISTRY,
    ],
    ids=["chain", "contract", "name", "the registry's"],
)
def test_an_object_of_another_market_is_refused(domain: Domain) -> None:
    with pytest.raises(NotSigned, match="another chain or contract"):
        judge_typed(PINS, domain, ACCEPTANCE)


def test_a_kind_that_no_operator_signs_is_refused() -> None:
    voucher = Voucher(ChannelId(bytes(32)), Amount(1), Uint64(1), Digest(bytes(32)))
    with pytest.raises(NotSigned) as caught:
        judge_typed(PINS, MARKET.domain, voucher)
    assert caught.value.refusal == policy.KIND
    assert "Voucher" not in policy.KINDS


def test_an_offer_names_this_operator_and_a_payout_of_the_settings() -> None:
    made = offer().offer.replace(operator=KEY.address, receiver=PAYOUT)
    judge_typed(PINS, MARKET.domain, made)
    with pytest.raises(NotSigned, match="payouts"):
        judge_typed(PINS, MARKET.domain, made.replace(receiver=THIEF))
    with pytest.raises(NotSigned, match="this key"):
        judge_typed(PINS, MARKET.domain, made.replace(operator=THIEF))


@pytest.mark.parametrize("member", ["owner", "payout", "operator"])
def test_a_registration_gives_the_stake_to_nobody_else(member: str) -> None:
    judge_typed(PINS, REGISTRY, REGISTRATION)
    with pytest.raises(NotSigned):
        judge_typed(PINS, REGISTRY, REGISTRATION.replace(**{member: THIEF}))


def test_a_permit_counts_and_is_for_the_registry_alone() -> None:
    assert judge_typed(PINS, TOKEN, PERMIT).tokens == 7
    for other in (PERMIT.replace(spender=THIEF), PERMIT.replace(owner=THIEF)):
        with pytest.raises(NotSigned):
            judge_typed(PINS, TOKEN, other)
    with pytest.raises(NotSigned, match="another token"):
        judge_typed(PINS, replace(TOKEN, verifying_contract=THIEF), PERMIT)


def test_a_transaction_costs_the_most_that_its_gas_may() -> None:
    call = calls.push_payout(MARKET, MARKET.token, PAYOUT)
    assert judge_transaction(PINS, transaction(call)).wei == 300_000


def test_on_a_rollup_each_byte_costs_too() -> None:
    tx = transaction(calls.push_payout(MARKET, MARKET.token, PAYOUT))
    long = replace(tx, data=tx.data + bytes(100_000))
    rollup = replace(PINS, data_wei=1_000)
    assert judge_transaction(PINS, long).wei == judge_transaction(PINS, tx).wei
    used = judge_transaction(rollup, long).wei
    sent = len(long.sign(KEY).raw)
    assert 0 <= used - 300_000 - 1_000 * sent <= 1_000 * 4


@pytest.mark.parametrize(
    ("call", "refusal"),
    [
        (calls.set_payout(MARKET, KEY.address, THIEF), policy.ADDRESS),
        (calls.push_payout(MARKET, MARKET.token, THIEF), policy.ADDRESS),
        (calls.offer_owner(MARKET, KEY.address, THIEF), policy.FUNCTION),
        (calls.authorize_session_key(MARKET, THIEF, Timestamp(9)), policy.FUNCTION),
        (calls.request_unbond(MARKET, KEY.address), policy.LEAVING),
        (calls.withdraw_stake(MARKET, KEY.address), policy.LEAVING),
        (calls.transfer(MARKET.token, THIEF, Amount(1)), policy.CONTRACT),
        (calls.approve(MARKET.token, THIEF, Amount(1)), policy.CONTRACT),
        (calls.send_native(THIEF, 1), policy.ADDRESS),
        (calls.send_native(KEY.address, 1), policy.ADDRESS),
        (calls.set_endpoint(MARKET, THIEF, "a:1"), policy.OPERATOR),
    ],
    ids=lambda value: value.what if isinstance(value, Call) else "",
)
def test_a_call_that_moves_money_elsewhere_is_refused(call: Call, refusal: str) -> None:
    assert refusal_of(transaction(call)) == refusal


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"chain_id": 1}, policy.CHAIN),
        ({"to": None}, policy.CONTRACT),
        ({"to": THIEF}, policy.CONTRACT),
        ({"value": 1}, policy.VALUE),
        ({"data": b"\x01\x02\x03\x04"}, policy.FUNCTION),
    ],
)
def test_a_transaction_with_another_envelope_is_refused(
    changes: dict[str, object], refusal: str
) -> None:
    call = calls.set_endpoint(MARKET, KEY.address, "a.example:1")
    judge_transaction(PINS, transaction(call))
    assert refusal_of(transaction(call, **changes)) == refusal


FUNDED = (Amount(5), Amount(5), Timestamp(2**40), PayerSignature(b""))


def test_an_operator_funds_channels_of_others_alone() -> None:
    """The escrow asks a payer that sends its own transaction for no signature, and a thief can name
    himself the receiver of the channel and of its fee."""
    theirs = Channel(PAYOUT, PAYOUT, THIEF, THIEF, MARKET.token, Seconds(3600), Bytes32(bytes(32)))
    ours = theirs.replace(payer=KEY.address)
    funded, fee, deadline, signature = FUNDED
    opening = OpeningAuthorization(funded, fee, Timestamp(0), deadline, signature)
    for channel in (theirs, ours):
        by_pool = calls.fund(
            MARKET, channel, funded, fee=fee, deadline=deadline, signature=signature
        )
        by_tokens = calls.open_with_authorization(MARKET, channel, opening)
        for call in (by_pool, by_tokens):
            if channel is ours:
                assert refusal_of(transaction(call)) == policy.PAYER
            else:
                assert judge_transaction(PINS, transaction(call)).tokens == 0


def test_arguments_that_do_not_decode_are_refused() -> None:
    call = calls.set_payout(MARKET, KEY.address, PAYOUT)
    assert refusal_of(transaction(call, data=call.data[:-1])) == policy.MALFORMED


def test_a_transfer_of_nothing_to_oneself_frees_a_nonce() -> None:
    assert judge_transaction(PINS, transaction(calls.send_native(KEY.address, 0))).what == "send"


def test_the_stake_leaves_only_where_the_settings_say_so() -> None:
    leaving = replace(PINS, leaving=True)
    call = calls.request_unbond(MARKET, KEY.address)
    assert judge_transaction(leaving, transaction(call)).tokens == MARKET.min_stake
