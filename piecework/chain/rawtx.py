"""Type-2 transactions as bytes: built, signed, read back from a journal. Pure. EIP-1559,
EIP-2718."""

from __future__ import annotations

from dataclasses import dataclass

import rlp  # type: ignore[import-untyped]
from rlp.exceptions import RLPException  # type: ignore[import-untyped]

from piecework.chain.fees import Fees
from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import Signer, recover
from piecework_protocol.types import ADDRESS_BYTES, Address, Bytes32, Signature, keccak256

_TYPE = b"\x02"
_MEMBERS = 12


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

    def sign(self, signer: Signer) -> SignedTransaction:
        """RFC 6979 makes this deterministic: signing again gives the same bytes and the same
        hash."""
        members = self.members()
        signature = signer.sign(keccak256(_TYPE + rlp.encode(members)))
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        raw = _TYPE + rlp.encode([*members, _minimal(signature[64] - 27), _minimal(r), _minimal(s)])
        return SignedTransaction(raw, keccak256(raw), signer.address, self)


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
        if raw[:1] != _TYPE:
            raise MalformedInput("not a type-2 transaction")
        try:
            members = rlp.decode(raw[1:])
        except RLPException as error:
            raise MalformedInput("a transaction that does not decode") from error
        if not isinstance(members, list) or len(members) != _MEMBERS or members[8] != []:
            raise MalformedInput("a transaction with other members")
        if any(not isinstance(m, bytes) for i, m in enumerate(members) if i != 8):
            raise MalformedInput("a transaction with other members")
        unsigned = _read(members)
        y, r, s = (int.from_bytes(m, "big") for m in members[9:])
        if y not in (0, 1) or max(r, s) >= 2**256:
            raise MalformedInput("a transaction's signature is out of range")
        signature = Signature(r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + y]))
        sender = recover(keccak256(_TYPE + rlp.encode(members[:9])), signature)
        return cls(raw, keccak256(raw), sender, unsigned)


def _read(members: list[bytes]) -> UnsignedTransaction:
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
