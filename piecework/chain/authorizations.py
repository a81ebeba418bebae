"""Typed data of the token and of the registry: gasless deposits, permits and a worker's
registration. Pure.

These have domains of their own (the token's, the registry's) and 256-bit members, unlike the
objects of `protocol.objects`. Sources: EIP-2612 (permit), EIP-3009 (transfer with authorization),
EIP-712.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piecework.chain.errors import BadAnswer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import Signer
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Signature,
    Timestamp,
    keccak256,
    parse_address,
    parse_hex,
    to_hex,
)

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
_RECEIVE_TYPE = (
    b"ReceiveWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_PERMIT_TYPE = b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
_REGISTRATION_TYPE = (
    b"Registration(address operator,address owner,address payout,"
    b"uint128 stake,string endpoint,uint64 deadline)"
)
REGISTRY_NAME = "Piecework Registry"
REGISTRY_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ContractDomain:
    """The EIP-712 domain of a token or of the registry."""

    name: str
    version: str
    chain_id: int
    contract: Address

    def separator(self) -> Bytes32:
        return keccak256(
            keccak256(_DOMAIN_TYPE)
            + keccak256(self.name.encode())
            + keccak256(self.version.encode())
            + _word(self.chain_id)
            + _padded(self.contract)
        )

    def digest(self, struct_hash: bytes) -> Bytes32:
        return keccak256(b"\x19\x01" + self.separator() + struct_hash)

    def require_separator(self, on_chain: bytes) -> None:
        """Refuse a contract whose real separator differs: a signature for it would mean something
        else."""
        if on_chain != self.separator():
            raise BadAnswer(
                f"{to_hex(self.contract)} does not sign under the domain {self.name!r} "
                f"{self.version!r}"
            )


@dataclass(frozen=True, slots=True)
class Authorization:
    """EIP-3009: `owner` lets `to` (and nobody else) take `value`, once, between two times, both
    exclusive."""

    owner: Address
    to: Address
    value: Amount
    valid_after: Timestamp
    valid_before: Timestamp
    nonce: Bytes32

    def struct_hash(self) -> Bytes32:
        return keccak256(
            keccak256(_RECEIVE_TYPE)
            + _padded(self.owner)
            + _padded(self.to)
            + _word(self.value)
            + _word(self.valid_after)
            + _word(self.valid_before)
            + self.nonce
        )


@dataclass(frozen=True, slots=True)
class SignedAuthorization:
    """What a payer hands to whoever pays the gas of its deposit."""

    token: Address
    authorization: Authorization
    signature: Signature

    def to_json(self) -> dict[str, Any]:
        a = self.authorization
        return {
            "token": to_hex(self.token),
            "owner": to_hex(a.owner),
            "to": to_hex(a.to),
            "value": a.value,
            "valid_after": a.valid_after,
            "valid_before": a.valid_before,
            "nonce": to_hex(a.nonce),
            "signature": to_hex(self.signature),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SignedAuthorization:
        """`MalformedInput` when a member is missing or malformed. The signature is checked on the
        chain."""
        try:
            authorization = Authorization(
                parse_address(raw["owner"]),
                parse_address(raw["to"]),
                Amount(int(raw["value"])),
                Timestamp(int(raw["valid_after"])),
                Timestamp(int(raw["valid_before"])),
                Bytes32(parse_hex(raw["nonce"], 32, "nonce")),
            )
            signature = Signature(parse_hex(raw["signature"], 65, "signature"))
            return cls(parse_address(raw["token"]), authorization, signature)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedInput(f"not a signed deposit authorization: {error}") from error


@dataclass(frozen=True, slots=True)
class Permit:
    """EIP-2612: `owner` lets `spender` take up to `value`. `nonce` is the owner's next one at the
    token."""

    owner: Address
    spender: Address
    value: Amount
    nonce: int
    deadline: Timestamp

    def struct_hash(self) -> Bytes32:
        return keccak256(
            keccak256(_PERMIT_TYPE)
            + _padded(self.owner)
            + _padded(self.spender)
            + _word(self.value)
            + _word(self.nonce)
            + _word(self.deadline)
        )


@dataclass(frozen=True, slots=True)
class SignedPermit:
    """A permit and its signature."""

    token: Address
    permit: Permit
    signature: Signature


@dataclass(frozen=True, slots=True)
class Registration:
    """What an operator agrees to when it joins; signed by the operator unless it submits itself."""

    operator: Address
    owner: Address
    payout: Address
    stake: Amount
    endpoint: str
    deadline: Timestamp

    def struct_hash(self) -> Bytes32:
        return keccak256(
            keccak256(_REGISTRATION_TYPE)
            + _padded(self.operator)
            + _padded(self.owner)
            + _padded(self.payout)
            + _word(self.stake)
            + keccak256(self.endpoint.encode())
            + _word(self.deadline)
        )


def sign_authorization(
    domain: ContractDomain, authorization: Authorization, signer: Signer
) -> SignedAuthorization:
    """Sign a gasless deposit; `domain` is the token's (`ChainReader.token_domain`)."""
    signature = signer.sign(domain.digest(authorization.struct_hash()))
    return SignedAuthorization(domain.contract, authorization, signature)


def sign_permit(domain: ContractDomain, permit: Permit, signer: Signer) -> SignedPermit:
    """Sign an allowance; `domain` is the token's."""
    return SignedPermit(domain.contract, permit, signer.sign(domain.digest(permit.struct_hash())))


def registry_domain(chain_id: int, registry: Address) -> ContractDomain:
    """The registry's domain."""
    return ContractDomain(REGISTRY_NAME, REGISTRY_VERSION, chain_id, registry)


def sign_registration(
    domain: ContractDomain, registration: Registration, operator: Signer
) -> Signature:
    """The operator's consent, for a registration that another account pays for."""
    return operator.sign(domain.digest(registration.struct_hash()))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def _padded(address: Address) -> bytes:
    return bytes(12) + address
