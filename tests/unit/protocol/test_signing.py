from __future__ import annotations

import pytest

from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken, MalformedInput
from piecework_protocol.objects import AccountRequest
from piecework_protocol.signing import HALF_ORDER, ORDER, LocalSigner, recover
from piecework_protocol.types import Address, Bytes32, ChannelId, Signature, Timestamp, keccak256

SIGNER = LocalSigner(bytes(keccak256(b"a key")))
DOMAIN = Domain(31337, Address(bytes(20)))


def message(text: bytes) -> AccountRequest:
    return AccountRequest(ChannelId(keccak256(text)), Timestamp(1))


MESSAGE = message(b"a message")
DIGEST = DOMAIN.digest(MESSAGE)


def test_a_signature_recovers_to_its_signer() -> None:
    assert recover(DIGEST, SIGNER.sign_typed(DOMAIN, MESSAGE)) == SIGNER.address


def test_the_address_is_the_one_that_eth_account_derives() -> None:
    from eth_account import Account

    assert Account.from_key(SIGNER.secret).address.lower() == "0x" + SIGNER.address.hex()


def test_signing_twice_gives_the_same_bytes() -> None:
    assert SIGNER.sign_typed(DOMAIN, MESSAGE) == SIGNER.sign_typed(DOMAIN, MESSAGE)


def test_every_signature_has_the_low_s() -> None:
    for i in range(50):
        signature = SIGNER.sign_typed(DOMAIN, message(bytes([i])))
        assert int.from_bytes(signature[32:64], "big") <= HALF_ORDER


def test_the_high_s_twin_of_a_signature_is_refused() -> None:
    signature = SIGNER.sign_typed(DOMAIN, MESSAGE)
    s = ORDER - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])
    with pytest.raises(MalformedInput, match="low"):
        recover(DIGEST, twin)


@pytest.mark.parametrize(
    "defect",
    [
        lambda s: s[:64],
        lambda s: s + b"\0",
        lambda s: s[:64] + bytes([0]),
        lambda s: s[:64] + bytes([29]),
        lambda s: bytes(32) + s[32:],
        lambda s: s[:32] + bytes(32) + s[64:],
        lambda s: ORDER.to_bytes(32, "big") + s[32:],
        lambda s: b"",
    ],
    ids=["64 bytes", "66 bytes", "v 0", "v 29", "r zero", "s zero", "r too large", "empty"],
)
def test_a_malformed_signature_is_refused(defect: object) -> None:
    signature = SIGNER.sign_typed(DOMAIN, MESSAGE)
    with pytest.raises(MalformedInput):
        recover(DIGEST, Signature(defect(signature)))  # type: ignore[operator]


def test_an_r_that_is_no_point_is_refused_and_not_raised_raw() -> None:
    for candidate in range(1, 60):
        forged = candidate.to_bytes(32, "big") + (1).to_bytes(32, "big") + bytes([27])
        try:
            recover(Bytes32(DIGEST), forged)
        except MalformedInput:
            return
    pytest.fail("no r among 59 was refused; about half of them are not on the curve")


def test_a_private_key_does_not_show_in_the_repr() -> None:
    assert SIGNER.secret.hex() not in repr(SIGNER) and repr(SIGNER.secret) not in repr(SIGNER)


def test_the_same_question_is_answered_once_and_a_refusal_every_time() -> None:
    """Admission checks one signature at several stages, each of which may be the first."""
    asked = message(b"asked at several stages")
    digest, signature = DOMAIN.digest(asked), SIGNER.sign_typed(DOMAIN, asked)
    before = recover.cache_info().misses
    assert recover(digest, signature) == recover(digest, signature) == SIGNER.address
    assert recover.cache_info().misses == before + 1
    size = recover.cache_info().currsize
    for _ in range(2):
        with pytest.raises(MalformedInput):
            recover(digest, signature[:64])
    assert recover.cache_info().currsize == size


class _Other:
    """A payload that begins as typed data does, and is not a transaction of EIP-1559."""

    def payload(self) -> bytes:
        return b"\x19\x01" + bytes(64)


def test_what_is_no_transaction_is_not_signed_as_one() -> None:
    with pytest.raises(InvariantBroken):
        SIGNER.sign_transaction(_Other())


def test_a_signer_takes_no_bare_digest() -> None:
    assert not hasattr(SIGNER, "sign")


async def test_both_forms_of_a_key_sign_the_same() -> None:
    assert await SIGNER.typed(DOMAIN, MESSAGE) == SIGNER.sign_typed(DOMAIN, MESSAGE)
