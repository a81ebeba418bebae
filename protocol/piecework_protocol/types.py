"""Sized, named scalar types. Inside Piecework no amount, id or time is a bare `int` or `bytes`.

Each type is a `NewType`, free at run time. Sizes are checked where a value enters a typed-data
object (`eip712.TypedData`), and where it is parsed from bytes or text.
"""

from __future__ import annotations

from typing import Final, NewType

from sha3 import keccak_256

Uint8 = NewType("Uint8", int)
Uint16 = NewType("Uint16", int)
Uint32 = NewType("Uint32", int)
Uint64 = NewType("Uint64", int)
Uint128 = NewType("Uint128", int)
Uint256 = NewType("Uint256", int)
Bytes32 = NewType("Bytes32", bytes)
Address = NewType("Address", bytes)
Signature = NewType("Signature", bytes)
PayerSignature = NewType("PayerSignature", bytes)
"""65 bytes of a plain key, or whatever a smart account takes (ERC-1271)."""

ChannelId = NewType("ChannelId", bytes)
JobId = NewType("JobId", bytes)
Digest = NewType("Digest", bytes)
PublicKey = NewType("PublicKey", bytes)
Amount = NewType("Amount", int)
"""Base units of the channel's token: millionths of a dollar for a 6-decimal stablecoin."""
Timestamp = NewType("Timestamp", int)
"""Seconds since the Unix epoch."""
Seconds = NewType("Seconds", int)
Micros = NewType("Micros", int)
"""A real number in millionths: 0.1 is 100_000."""

ZERO_ADDRESS = Address(bytes(20))
ADDRESS_BYTES: Final = 20
AMOUNT_BYTES: Final = 16
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 65
MAX_PAYER_SIGNATURE_BYTES: Final = 1024


def keccak256(data: bytes) -> Bytes32:
    """Hash with Keccak-256 as Ethereum uses it: the original padding, not that of SHA3-256."""
    return Bytes32(keccak_256(data).digest())


def parse_hex(text: str, length: int, what: str) -> bytes:
    """Parse exactly `length` bytes from hex, with or without 0x. `what` names the field.

    Raises:
        ValueError: The text is not that many bytes of hex.
    """
    digits = text.removeprefix("0x")
    if len(digits) != 2 * length:
        raise ValueError(f"{what}: expected {length} bytes of hex, got {len(digits)} digits")
    try:
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{what}: not hexadecimal") from None


def parse_address(text: str) -> Address:
    """Parse an address. An address in mixed case must have its EIP-55 checksum.

    Raises:
        ValueError: The text is not 20 bytes of hex, or a digit is mistyped.
    """
    address = Address(parse_hex(text, ADDRESS_BYTES, "address"))
    digits = text.removeprefix("0x")
    if digits != digits.lower() and digits != digits.upper() and to_hex(address) != "0x" + digits:
        raise ValueError("address: the EIP-55 checksum does not match; a digit is mistyped")
    return address


def address_hex(address: Address) -> str:
    """Write an address in its EIP-55 mixed-case form."""
    digits = address.hex()
    mask = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(
        c.upper() if int(m, 16) >= 8 else c for c, m in zip(digits, mask, strict=False)
    )


def to_hex(value: bytes) -> str:
    """Write 0x-prefixed lower-case hex. 20 bytes are an address in its EIP-55 form."""
    return address_hex(Address(value)) if len(value) == ADDRESS_BYTES else "0x" + value.hex()
