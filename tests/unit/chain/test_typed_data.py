"""Token and registry typed data, and raw transactions, held equal to eth-account."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.contracts.authorizations import (
    Permit,
    SignedDeposit,
    deposit_nonce,
    opening_nonce,
    require_separator,
    sign_deposit,
    sign_opening,
    sign_permit,
)
from piecework.chain.errors import BadAnswer
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import SignedTransaction, UnsignedTransaction
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import Channel, Registration, registry_domain
from piecework_protocol.signing import sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    PayerSignature,
    Seconds,
    Timestamp,
    Uint64,
    Uint256,
    to_hex,
)
from tests.support.chain.chains import signer

OWNER = signer("owner")
A, B, TOKEN = (Address(bytes([n]) * 20) for n in (1, 2, 3))
DOMAIN = Domain(8453, TOKEN, "USD Coin", "2")
NONCE = Bytes32(bytes(range(32)))


def expected(
    domain: Domain, name: str, members: list[tuple[str, str]], values: list[object]
) -> bytes:
    """The signature that eth-account makes over the same message."""
    message = dict(zip([member for _, member in members], values, strict=True))
    types = {name: [{"type": kind, "name": member} for kind, member in members]}
    fields = {
        "name": domain.name,
        "version": domain.version,
        "chainId": domain.chain_id,
        "verifyingContract": to_hex(domain.verifying_contract),
    }
    signable = encode_typed_data(domain_data=fields, message_types=types, message_data=message)
    return bytes(Account.sign_message(signable, OWNER.secret).signature)


AUTHORIZATION_MEMBERS = [
    ("address", "from"),
    ("address", "to"),
    ("uint256", "value"),
    ("uint256", "validAfter"),
    ("uint256", "validBefore"),
    ("bytes32", "nonce"),
]
DEPOSIT = sign_deposit(
    DOMAIN, B, OWNER, Amount(5), valid_after=Timestamp(1), valid_before=Timestamp(2), salt=NONCE
)


def test_a_deposit_is_signed_as_eth_account_signs_its_authorization() -> None:
    nonce = keccak(encode(["bytes32"], [NONCE]))
    assert deposit_nonce(NONCE) == nonce
    values: list[object] = [to_hex(OWNER.address), to_hex(B), 5, 1, 2, nonce]
    name = "ReceiveWithAuthorization"
    assert DEPOSIT.signature == expected(DOMAIN, name, AUTHORIZATION_MEMBERS, values)
    assert SignedDeposit.from_json(DEPOSIT.to_json()) == DEPOSIT
    smart = replace(DEPOSIT, signature=PayerSignature(bytes(range(200))))
    assert SignedDeposit.from_json(smart.to_json()) == smart


def test_an_opening_is_signed_as_eth_account_signs_its_authorization() -> None:
    escrow = Domain(8453, B)
    channel = Channel(OWNER.address, A, A, A, TOKEN, Seconds(60), NONCE)
    opening = sign_opening(
        DOMAIN,
        escrow,
        channel,
        OWNER,
        amount=Amount(7),
        fee=Amount(2),
        funded_before=Amount(3),
        valid_before=Timestamp(9),
    )
    nonce = keccak(encode(["bytes32", "uint128", "uint128"], [channel.id(escrow), 3, 2]))
    assert opening_nonce(channel.id(escrow), Amount(3), Amount(2)) == nonce
    values: list[object] = [to_hex(OWNER.address), to_hex(B), 9, 0, 9, nonce]
    name = "ReceiveWithAuthorization"
    assert opening.signature == expected(DOMAIN, name, AUTHORIZATION_MEMBERS, values)
    assert (opening.amount, opening.fee) == (7, 2)


def test_an_eip_2612_permit_is_signed_as_eth_account_does() -> None:
    permit = Permit(A, B, Uint256(5), Uint256(3), Uint256(9))
    members = [
        ("address", "owner"),
        ("address", "spender"),
        ("uint256", "value"),
        ("uint256", "nonce"),
        ("uint256", "deadline"),
    ]
    values: list[object] = [to_hex(A), to_hex(B), 5, 3, 9]
    assert sign_permit(DOMAIN, permit, OWNER).signature == expected(
        DOMAIN, "Permit", members, values
    )


def test_a_registration_is_signed_as_eth_account_does() -> None:
    domain = registry_domain(8453, TOKEN)
    terms = Registration(A, B, A, Amount(5), "https://wörker.example:1", Uint64(3), Timestamp(9))
    members = [
        ("address", "operator"),
        ("address", "owner"),
        ("address", "payout"),
        ("uint128", "stake"),
        ("string", "endpoint"),
        ("uint64", "nonce"),
        ("uint64", "deadline"),
    ]
    values: list[object] = [to_hex(A), to_hex(B), to_hex(A), 5, terms.endpoint, 3, 9]
    signature = sign(domain, terms, OWNER)
    assert signature == expected(domain, "Registration", members, values)


def test_a_value_of_256_bits_is_signed_and_one_bit_more_is_refused() -> None:
    most = Uint256(2**256 - 1)
    permit = Permit(A, B, most, most, most)
    values: list[object] = [to_hex(A), to_hex(B), most, most, most]
    members = [
        ("address", "owner"),
        ("address", "spender"),
        ("uint256", "value"),
        ("uint256", "nonce"),
        ("uint256", "deadline"),
    ]
    assert sign_permit(DOMAIN, permit, OWNER).signature == expected(
        DOMAIN, "Permit", members, values
    )
    with pytest.raises(ValueError, match="uint256"):
        permit.replace(value=2**256)


def test_a_token_with_another_separator_is_not_signed_for() -> None:
    require_separator(DOMAIN, DOMAIN.separator())
    with pytest.raises(BadAnswer, match="does not sign under"):
        require_separator(DOMAIN, NONCE)


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "five"},
        {"amount": 5.5},
        {"amount": True},
        {"amount": 2**256},
        {"valid_after": -1},
        {"owner": "0x12"},
        {"escrow": None},
        {"signature": 7},
        {"signature": "0x" + "00" * 64},
        {"signature": "0x" + "00" * 1025},
        {"signature": "0x" + "zz" * 65},
        {"salt": None},
    ],
)
def test_a_malformed_deposit_is_refused(change: dict[str, object]) -> None:
    raw = DEPOSIT.to_json()
    with pytest.raises(MalformedInput):
        SignedDeposit.from_json(raw | change)
    with pytest.raises(MalformedInput):
        SignedDeposit.from_json({k: v for k, v in raw.items() if k not in change})


@given(
    nonce=st.integers(0, 2**32),
    fees=st.tuples(st.integers(0, 2**60), st.integers(0, 2**60)),
    gas=st.integers(21_000, 30_000_000),
    to=st.none() | st.binary(min_size=20, max_size=20),
    value=st.integers(0, 2**80),
    data=st.binary(max_size=200),
)
def test_a_transaction_has_the_bytes_that_eth_account_signs(
    *, nonce: int, fees: tuple[int, int], gas: int, to: bytes | None, value: int, data: bytes
) -> None:
    recipient = None if to is None else Address(to)
    tx = UnsignedTransaction(
        31337, nonce, Fees(max(fees), min(fees)), gas, recipient, value, data
    ).sign(OWNER)
    fields = {
        "chainId": 31337,
        "nonce": nonce,
        "maxFeePerGas": max(fees),
        "maxPriorityFeePerGas": min(fees),
        "gas": gas,
        "value": value,
        "data": data,
    }
    reference = Account.sign_transaction(fields | ({} if to is None else {"to": to}), OWNER.secret)
    assert tx.raw == bytes(reference.raw_transaction)
    assert tx.hash == bytes(reference.hash) == keccak(tx.raw)
    assert SignedTransaction.from_raw(tx.raw) == tx


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: b"\x02" + b))
def test_garbage_is_no_journaled_transaction(garbage: bytes) -> None:
    with pytest.raises(MalformedInput):
        SignedTransaction.from_raw(garbage)


def test_a_journaled_transaction_with_a_flipped_bit_is_refused_or_another_senders() -> None:
    tx = UnsignedTransaction(31337, 1, Fees(3, 2), 21_000, A, 5, b"data").sign(OWNER)
    for position in range(len(tx.raw)):
        for bit in range(8):
            flipped = bytearray(tx.raw)
            flipped[position] ^= 1 << bit
            try:
                read = SignedTransaction.from_raw(bytes(flipped))
            except MalformedInput:
                continue
            assert read.sender != OWNER.address or read == tx
