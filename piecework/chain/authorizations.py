"""Typed data of the token: deposits and permits. Pure.

The domain is the token's own. Sources: EIP-2612 (permit), EIP-3009 (transfer with
authorization), EIP-712.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piecework.chain.errors import BadAnswer
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.signing import Signer, sign
from piecework_protocol.types import (
    Address,
    Bytes32,
    Signature,
    Uint256,
    parse_address,
    parse_hex,
    to_hex,
)


@dataclass(frozen=True, slots=True)
class ReceiveWithAuthorization(TypedData):
    """EIP-3009: the owner `from_` lets `to`, and nobody else, take `value` once.

    It is valid after the one time and before the other, both in Unix seconds and both exclusive.
    """

    from_: Address
    to: Address
    value: Uint256
    valid_after: Uint256
    valid_before: Uint256
    nonce: Bytes32


@dataclass(frozen=True, slots=True)
class SignedAuthorization:
    """What a payer gives to the account that pays the gas of its deposit."""

    token: Address
    authorization: ReceiveWithAuthorization
    signature: Signature

    def to_json(self) -> dict[str, Any]:
        """Give the members as JSON holds them: hex strings and integers."""
        a = self.authorization
        return {
            "token": to_hex(self.token),
            "owner": to_hex(a.from_),
            "to": to_hex(a.to),
            "value": a.value,
            "valid_after": a.valid_after,
            "valid_before": a.valid_before,
            "nonce": to_hex(a.nonce),
            "signature": to_hex(self.signature),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SignedAuthorization:
        """Parse what `to_json` makes. The signature is checked on the chain.

        Raises:
            MalformedInput: A member is missing or malformed.
        """
        try:
            authorization = ReceiveWithAuthorization(
                parse_address(raw["owner"]),
                parse_address(raw["to"]),
                Uint256(int(raw["value"])),
                Uint256(int(raw["valid_after"])),
                Uint256(int(raw["valid_before"])),
                Bytes32(parse_hex(raw["nonce"], 32, "nonce")),
            )
            signature = Signature(parse_hex(raw["signature"], 65, "signature"))
            return cls(parse_address(raw["token"]), authorization, signature)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedInput(f"not a signed deposit authorization: {error}") from error


@dataclass(frozen=True, slots=True)
class Permit(TypedData):
    """EIP-2612: `owner` lets `spender` take up to `value`.

    `nonce` is the owner's next one at the token. `deadline` is in Unix seconds.
    """

    owner: Address
    spender: Address
    value: Uint256
    nonce: Uint256
    deadline: Uint256


@dataclass(frozen=True, slots=True)
class SignedPermit:
    """A permit and its signature."""

    token: Address
    permit: Permit
    signature: Signature


def sign_authorization(
    domain: Domain, authorization: ReceiveWithAuthorization, signer: Signer
) -> SignedAuthorization:
    """Sign a gasless deposit. `domain` is the token's (`ChainReader.token_domain`)."""
    signature = sign(domain, authorization, signer)
    return SignedAuthorization(domain.verifying_contract, authorization, signature)


def sign_permit(domain: Domain, permit: Permit, signer: Signer) -> SignedPermit:
    """Sign an allowance. `domain` is the token's."""
    return SignedPermit(domain.verifying_contract, permit, sign(domain, permit, signer))


def require_separator(domain: Domain, on_chain: bytes) -> None:
    """Refuse a contract that signs under another domain: a signature would mean something else.

    Raises:
        BadAnswer: The contract's separator is not that of `domain`.
    """
    if on_chain != domain.separator():
        raise BadAnswer(
            f"{to_hex(domain.verifying_contract)} does not sign under the domain "
            f"{domain.name!r} {domain.version!r}"
        )
