"""Type-2 transactions as bytes: built, signed, read back from a journal. Pure. EIP-1559,
EIP-2718."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rlp  # type: ignore[import-untyped]
from rlp.codec import consume_length_prefix  # type: ignore[import-untyped]
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

from piecework.chain.sending.fees import Fees
from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import TRANSACTION_TYPE, AsyncSigner, Signer, recover
from piecework_protocol.types import ADDRESS_BYTES, Address, Bytes32, Signature, keccak256

_MEMBERS = 12
_UNSIGNED_MEMBERS = 9
_ACCESS_LIST = 8
_WORD_BYTES = 32
"""The largest number that a chain knows."""


@dataclass(frozen=True, slots=True)
class UnsignedTransaction:
    """A transaction before its signature. `to` is None for the creation of a contract."""

    chain_id: int
    nonce: int
    fees: Fees
    gas_limit: int
    to: Address | None
    value: int
    data: bytes

    def members(self) -> list[bytes | list[bytes]]:
        numbers = (
            self.chain_id,
            self.nonce,
            self.fees.priority_fee,
            self.fees.max_fee,
            self.gas_limit,
        )
        return [
            *(_minimal(n) for n in numbers),
            self.to or b"",
            _minimal(self.value),
            self.data,
            [],
        ]

    def payload(self) -> bytes:
        """Give the bytes whose keccak-256 is signed."""
        encoded: bytes = rlp.encode(self.members())
        return TRANSACTION_TYPE + encoded

    @classmethod
    def from_payload(cls, payload: bytes) -> UnsignedTransaction:
        """Read what `payload` gave.

        Raises:
            MalformedInput: it is not the payload of a transaction without an access list.
        """
        if payload[:1] != TRANSACTION_TYPE:
            raise MalformedInput("not a type-2 transaction")
        found = _read(_decoded(payload, _UNSIGNED_MEMBERS))
        if found.payload() != payload:
            raise MalformedInput("a transaction that is not in its one form")
        return found

    def sign(self, signer: Signer) -> SignedTransaction:
        """Sign at once. RFC 6979 makes this deterministic: signing again gives the same bytes and
        the same hash."""
        return self._signed(signer.sign_transaction(self), signer.address)

    async def signed_by(self, signer: AsyncSigner) -> SignedTransaction:
        """As `sign`, by a signer that may have to be waited for."""
        return self._signed(await signer.transaction(self), signer.address)

    def _signed(self, signature: Signature, sender: Address) -> SignedTransaction:
        members = self.members()
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        ends = (_minimal(signature[64] - 27), _minimal(r), _minimal(s))
        raw = TRANSACTION_TYPE + rlp.encode([*members, *ends])
        return SignedTransaction(raw, keccak256(raw), sender, self)


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction ready to be sent. Journal `raw` before sending: sent again it is the same
    effect."""

    raw: bytes
    hash: Bytes32
    sender: Address
    unsigned: UnsignedTransaction

    @property
    def nonce(self) -> int:
        return self.unsigned.nonce

    @property
    def max_fee(self) -> int:
        return self.unsigned.fees.max_fee

    @property
    def priority_fee(self) -> int:
        return self.unsigned.fees.priority_fee

    @property
    def gas_limit(self) -> int:
        return self.unsigned.gas_limit

    @property
    def max_cost(self) -> int:
        """Wei that the sender pays at most."""
        return self.gas_limit * self.max_fee + self.unsigned.value

    @property
    def created(self) -> Address:
        """Where it puts its contract, if it creates one: keccak256(rlp([sender, nonce]))[12:]."""
        return Address(keccak256(rlp.encode([self.sender, _minimal(self.nonce)]))[12:])

    @classmethod
    def from_raw(cls, raw: bytes) -> SignedTransaction:
        """Read a journaled transaction; `MalformedInput` for anything that
        `UnsignedTransaction.sign` does not make."""
        if raw[:1] != TRANSACTION_TYPE:
            raise MalformedInput("not a type-2 transaction")
        members = _decoded(raw, _MEMBERS)
        unsigned = _read(members)
        y, r, s = (int.from_bytes(m, "big") for m in members[9:])
        if y not in (0, 1) or max(r, s) >= 2**256:
            raise MalformedInput("a transaction's signature is out of range")
        signature = Signature(r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + y]))
        sender = recover(
            keccak256(TRANSACTION_TYPE + rlp.encode(members[:_UNSIGNED_MEMBERS])), signature
        )
        return cls(raw, keccak256(raw), sender, unsigned)


def _decoded(encoded: bytes, count: int) -> list[Any]:
    """Read the members of a transaction. The ninth is its access list, which is empty.

    They are read one by one, because rlp follows nested lists as deep as somebody nests them.
    """
    body = encoded[1:]
    members: list[Any] = []
    try:
        _, kind, length, at = consume_length_prefix(body, 0)
        if kind is not list or at + length != len(body):
            raise MalformedInput("a transaction that does not decode")
        while at < len(body):
            if len(members) == count:
                raise MalformedInput("a transaction with other members")
            _, kind, length, at = consume_length_prefix(body, at)
            is_access_list = len(members) == _ACCESS_LIST
            if is_access_list != (kind is list) or (is_access_list and length):
                raise MalformedInput("a transaction with other members")
            if length > len(body) - at:
                raise MalformedInput("a transaction that does not decode")
            members.append([] if is_access_list else body[at : at + length])
            at += length
    except (RLPException, IndexError) as error:
        raise MalformedInput("a transaction that does not decode") from error
    if len(members) != count:
        raise MalformedInput("a transaction with other members")
    return members


def _read(members: list[Any]) -> UnsignedTransaction:
    if any(len(members[i]) > _WORD_BYTES for i in (0, 1, 2, 3, 4, 6)):
        raise MalformedInput("a number of a transaction is out of range")
    chain_id, nonce, priority_fee, max_fee, gas_limit = (
        int.from_bytes(m, "big") for m in members[:5]
    )
    to, value, data = members[5], int.from_bytes(members[6], "big"), members[7]
    if len(to) not in (0, ADDRESS_BYTES):
        raise MalformedInput("a transaction's recipient is 20 bytes")
    fees = Fees(max_fee, priority_fee)
    return UnsignedTransaction(
        chain_id, nonce, fees, gas_limit, Address(to) if to else None, value, data
    )


def _minimal(value: int) -> bytes:
    """RLP integers are big endian without leading zeros; zero is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
