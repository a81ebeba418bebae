from __future__ import annotations

import pytest

from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import HALF_ORDER, ORDER, LocalSigner, recover
from piecework_protocol.types import Bytes32, Signature, keccak256

SIGNER = LocalSigner(bytes(keccak256(b"a key")))
DIGEST = keccak256(b"a message")


def test_a_signature_recovers_to_its_signer() -> None:
    assert recover(DIGEST, SIGNER.sign(DIGEST)) == SIGNER.address


def test_the_address_is_the_one_that_eth_account_derives() -> None:
    from eth_account import Account

    assert Account.from_key(SIGNER.secret).address.lower() == "0x" + SIGNER.address.hex()


def test_signing_twice_gives_the_same_bytes() -> None:
    assert SIGNER.sign(DIGEST) == SIGNER.sign(DIGEST)


def test_every_signature_has_the_low_s() -> None:
    for i in range(50):
        signature = SIGNER.sign(keccak256(bytes([i])))
        assert int.from_bytes(signature[32:64], "big") <= HALF_ORDER


def test_the_high_s_twin_of_a_signature_is_refused() -> None:
    signature = SIGNER.sign(DIGEST)
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
    signature = SIGNER.sign(DIGEST)
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
    digest = keccak256(b"asked at several stages")
    signature = SIGNER.sign(digest)
    before = recover.cache_info().misses
    assert recover(digest, signature) == recover(digest, signature) == SIGNER.address
    assert recover.cache_info().misses == before + 1
    size = recover.cache_info().currsize
    for _ in range(2):
        with pytest.raises(MalformedInput):
            recover(digest, signature[:64])
    assert recover.cache_info().currsize == size
