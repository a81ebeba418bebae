"""Typed data of the token: deposits, openings, permits. Pure.

It has the domain of the token. Sources: EIP-2612 (permit), EIP-3009 (transfer with authorization),
EIP-712.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.errors import BadAnswer
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.frames import OpeningAuthorization
from piecework_protocol.objects import Channel, WithdrawPooled
from piecework_protocol.signing import AsyncSigner, Signer, sign
from piecework_protocol.types import (
    MAX_PAYER_SIGNATURE_BYTES,
    SIGNATURE_BYTES,
    Address,
    Amount,
    Bytes32,
    ChannelId,
    PayerSignature,
    Timestamp,
    Uint64,
    Uint256,
    keccak256,
    parse_address,
    parse_hex,
    to_hex,
)

ALWAYS = Timestamp(0)
"""Before every block: an authorization that is valid from now on."""


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
class SignedDeposit:
    """What a payer gives to the account that pays the gas of its deposit.

    The escrow derives the authorization's nonce from `salt`. So an authorization that opens a
    channel cannot be submitted as a plain deposit.
    """

    token: Address
    escrow: Address
    owner: Address
    amount: Amount
    valid_after: Timestamp
    valid_before: Timestamp
    salt: Bytes32
    signature: PayerSignature

    def to_json(self) -> dict[str, Any]:
        """Give the members as JSON holds them: hex strings and integers."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: to_hex(v) if isinstance(v, bytes) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SignedDeposit:
        """Parse what `to_json` makes. The signature is checked on the chain.

        Raises:
            MalformedInput: A member is missing or malformed.
        """
        try:
            return cls(
                token=parse_address(raw["token"]),
                escrow=parse_address(raw["escrow"]),
                owner=parse_address(raw["owner"]),
                amount=Amount(_number(raw["amount"])),
                valid_after=Timestamp(_number(raw["valid_after"])),
                valid_before=Timestamp(_number(raw["valid_before"])),
                salt=Bytes32(parse_hex(raw["salt"], 32, "salt")),
                signature=_signature(raw["signature"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedInput(f"not a signed deposit: {error}") from error


@dataclass(frozen=True, slots=True)
class SignedWithdrawal:
    """What an owner gives to the account that pays the gas of a withdrawal from its pool."""

    order: WithdrawPooled
    signature: PayerSignature

    def to_json(self) -> dict[str, Any]:
        """Give the members as JSON holds them: hex strings and integers."""
        values = {name: getattr(self.order, name) for name in _ORDER}
        values["signature"] = self.signature
        return {k: to_hex(v) if isinstance(v, bytes) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SignedWithdrawal:
        """Parse what `to_json` makes. The signature is checked on the chain.

        Raises:
            MalformedInput: A member is missing or malformed.
        """
        try:
            order = WithdrawPooled(
                owner=parse_address(raw["owner"]),
                token=parse_address(raw["token"]),
                amount=Amount(_number(raw["amount"])),
                to=parse_address(raw["to"]),
                fee=Amount(_number(raw["fee"])),
                nonce=Uint64(_number(raw["nonce"])),
                deadline=Timestamp(_number(raw["deadline"])),
            )
            return cls(order, _signature(raw["signature"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MalformedInput(f"not a signed withdrawal: {error}") from error


_ORDER: Final = ("owner", "token", "amount", "to", "fee", "nonce", "deadline")


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
    signature: PayerSignature


def deposit_authorization(
    escrow: Address,
    owner: Address,
    amount: Amount,
    *,
    valid_after: Timestamp,
    valid_before: Timestamp,
    salt: Bytes32,
) -> ReceiveWithAuthorization:
    """Give what the owner signs, under the token's domain, to put `amount` into its pool."""
    times = Uint256(valid_after), Uint256(valid_before)
    return ReceiveWithAuthorization(owner, escrow, Uint256(amount), *times, deposit_nonce(salt))


def sign_deposit(
    token: Domain,
    escrow: Address,
    owner: Signer,
    amount: Amount,
    *,
    valid_after: Timestamp = ALWAYS,
    valid_before: Timestamp,
    salt: Bytes32,
) -> SignedDeposit:
    """Sign a gasless deposit. `token` is the token's domain (`ChainReader.token_domain`)."""
    message = deposit_authorization(
        escrow, owner.address, amount, valid_after=valid_after, valid_before=valid_before, salt=salt
    )
    return SignedDeposit(
        token=token.verifying_contract,
        escrow=escrow,
        owner=owner.address,
        amount=amount,
        valid_after=valid_after,
        valid_before=valid_before,
        salt=salt,
        signature=PayerSignature(sign(token, message, owner)),
    )


def opening_authorization(
    escrow: Domain, channel: Channel, funded_before: Amount, opening: OpeningAuthorization
) -> ReceiveWithAuthorization:
    """Give what the payer signs, under the token's domain, to open or top up a channel.

    `funded_before` is the channel's total before. The signature of `opening` is not read.
    """
    return ReceiveWithAuthorization(
        channel.payer,
        escrow.verifying_contract,
        Uint256(opening.amount + opening.fee),
        Uint256(opening.valid_after),
        Uint256(opening.valid_before),
        opening_nonce(channel.id(escrow), funded_before, opening.fee),
    )


def sign_opening(
    token: Domain,
    escrow: Domain,
    channel: Channel,
    payer: Signer,
    *,
    amount: Amount,
    fee: Amount,
    funded_before: Amount,
    valid_after: Timestamp = ALWAYS,
    valid_before: Timestamp,
) -> OpeningAuthorization:
    """Sign the one authorization that opens a channel, or tops it up, out of the payer's tokens."""
    times = (valid_after, valid_before)
    unsigned = OpeningAuthorization(amount, fee, *times, PayerSignature(b""))
    message = opening_authorization(escrow, channel, funded_before, unsigned)
    return OpeningAuthorization(amount, fee, *times, PayerSignature(sign(token, message, payer)))


def deposit_nonce(salt: Bytes32) -> Bytes32:
    """The EIP-3009 nonce of a deposit: keccak256(abi.encode(salt))."""
    return keccak256(salt)


def opening_nonce(channel: ChannelId, funded_before: Amount, fee: Amount) -> Bytes32:
    """The EIP-3009 nonce of an opening: keccak256(abi.encode(channelId, fundedBefore, fee))."""
    words = channel + funded_before.to_bytes(32, "big") + fee.to_bytes(32, "big")
    return keccak256(words)


async def signed_permit(domain: Domain, permit: Permit, signer: AsyncSigner) -> SignedPermit:
    """As `sign_permit`, by a signer that may have to be waited for."""
    signature = PayerSignature(await signer.typed(domain, permit))
    return SignedPermit(domain.verifying_contract, permit, signature)


def sign_permit(domain: Domain, permit: Permit, signer: Signer) -> SignedPermit:
    """Sign an allowance. `domain` is the token's."""
    signature = PayerSignature(sign(domain, permit, signer))
    return SignedPermit(domain.verifying_contract, permit, signature)


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


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**128:
        raise ValueError("an amount or a time is not a whole number")
    return value


def _signature(value: Any) -> PayerSignature:
    length = (len(value) - 2) // 2
    if not SIGNATURE_BYTES <= length <= MAX_PAYER_SIGNATURE_BYTES:
        raise ValueError("a signature has another length")
    return PayerSignature(parse_hex(value, length, "signature"))
