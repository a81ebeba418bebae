"""secp256k1 signatures over typed objects and transactions, by libsecp256k1 through coincurve.

A signer is handed what it signs and never a digest, so that one in another process can read it and
refuse it.

A signature is 65 bytes, r || s || v, with v in {27, 28} and s in the lower half of the group order
(EIP-2). Everything else is refused. So one message by one key has one valid signature (clause 1.3).
Signing is deterministic (RFC 6979). Signing the same record again after a crash gives the same
bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from coincurve import PrivateKey, PublicKey

from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput, invariant
from piecework_protocol.types import Address, Bytes32, Signature, keccak256

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_ORDER: Final = ORDER // 2
TRANSACTION_TYPE: Final = b"\x02"
"""Of EIP-1559. The payload of no other type is signed, and typed data begins with 0x19."""
KEPT_RECOVERIES: Final = 1024
"""Answers of `recover` that are kept. One submission is checked at several stages."""


class Unsigned(Protocol):
    """A transaction without its signature."""

    def payload(self) -> bytes:
        """Give the bytes whose keccak-256 is signed: the type, then the members (EIP-2718)."""
        ...


class Signer(Protocol):
    """Signs for one address at once: a key in this process."""

    @property
    def address(self) -> Address: ...

    def sign_typed(self, domain: Domain, message: TypedData) -> Signature:
        """Sign a typed object under its domain."""
        ...

    def sign_transaction(self, transaction: Unsigned) -> Signature:
        """Sign a transaction."""
        ...


class AsyncSigner(Protocol):
    """Signs for one address, perhaps in another process that has to be waited for."""

    @property
    def address(self) -> Address: ...

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        """Sign a typed object under its domain."""
        ...

    async def transaction(self, transaction: Unsigned) -> Signature:
        """Sign a transaction."""
        ...


class HeldKey(Signer, AsyncSigner, Protocol):
    """A key in this process, in both forms."""


@dataclass(frozen=True, slots=True)
class LocalSigner:
    """A private key in this process."""

    secret: bytes = field(repr=False)
    _key: PrivateKey = field(init=False, repr=False, compare=False)
    address: Address = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", PrivateKey(self.secret))
        object.__setattr__(self, "address", address_of(self._key.public_key))

    def sign_typed(self, domain: Domain, message: TypedData) -> Signature:
        return self._sign(domain.digest(message))

    def sign_transaction(self, transaction: Unsigned) -> Signature:
        payload = transaction.payload()
        invariant(payload[:1] == TRANSACTION_TYPE, "a transaction of another type")
        return self._sign(keccak256(payload))

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        return self._sign(domain.digest(message))

    async def transaction(self, transaction: Unsigned) -> Signature:
        return self.sign_transaction(transaction)

    def _sign(self, digest: Bytes32) -> Signature:
        """Sign 32 bytes. libsecp256k1 always gives the low s."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return Signature(raw[:64] + bytes([27 + raw[64]]))


def address_of(key: PublicKey) -> Address:
    """Give the last 20 bytes of the keccak-256 of the uncompressed point."""
    return Address(keccak256(key.format(compressed=False)[1:])[12:])


@lru_cache(maxsize=KEPT_RECOVERIES)
def recover(digest: Bytes32, signature: bytes) -> Address:
    """Find the address that signed `digest`. Refusals are not kept.

    Raises:
        MalformedInput: The signature is not canonical, or no key can have made it.
    """
    if len(signature) != 65:
        raise MalformedInput(f"a signature is 65 bytes, got {len(signature)}")
    r, s, v = (
        int.from_bytes(signature[:32], "big"),
        int.from_bytes(signature[32:64], "big"),
        signature[64],
    )
    if v not in (27, 28):
        raise MalformedInput("a signature's v is 27 or 28")
    if not 0 < r < ORDER or not 0 < s <= HALF_ORDER:
        raise MalformedInput("a signature's r or s is out of range (s must be low)")
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([v - 27]), digest, hasher=None
        )
    except (
        Exception
    ) as error:  # coincurve raises bare Exception and ValueError for points off the curve
        raise MalformedInput("a signature recovers to no key") from error
    return address_of(key)


def signed_by(domain: Domain, message: TypedData, signature: bytes, signer: Address) -> bool:
    """Say whether `signer` made `signature` over `message`. Nobody made a malformed one."""
    try:
        return recover(domain.digest(message), signature) == signer
    except MalformedInput:
        return False


def sign(domain: Domain, message: TypedData, signer: Signer) -> Signature:
    """Sign a typed object for its escrow."""
    return signer.sign_typed(domain, message)
