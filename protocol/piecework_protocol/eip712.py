"""EIP-712 typed data from frozen dataclasses.

A class that derives from `TypedData` *is* its EIP-712 type. The type string, the encoding and the
bounds are all read from its annotations, so they cannot differ. An attribute in snake case has its
name in camel case, and an underscore at the end, which keeps it apart from a Python keyword, is
dropped. Golden vectors in tests/vectors hold the encoder equal to eth-account's and to Solidity.

Source: EIP-712, https://eips.ethereum.org/EIPS/eip-712.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self

from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Seconds,
    Timestamp,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Uint128,
    Uint256,
    address_hex,
    keccak256,
)

_SCALARS: dict[Any, tuple[str, int]] = {
    Uint8: ("uint8", 1),
    Uint16: ("uint16", 2),
    Uint32: ("uint32", 4),
    Uint64: ("uint64", 8),
    Uint128: ("uint128", 16),
    Uint256: ("uint256", 32),
    Amount: ("uint128", 16),
    Timestamp: ("uint64", 8),
    Seconds: ("uint64", 8),
    Micros: ("uint32", 4),
    Bytes32: ("bytes32", 32),
    ChannelId: ("bytes32", 32),
    JobId: ("bytes32", 32),
    Digest: ("bytes32", 32),
    PublicKey: ("bytes32", 32),
    Address: ("address", 20),
}


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """How one member is named, typed and encoded. `nested` is the class of a struct or array."""

    attribute: str
    name: str
    type_name: str
    check: Callable[[Any], None]
    encode: Callable[[Any], bytes]
    nested: type[TypedData] | None


class TypedData:
    """The base of every signed object: a frozen slotted dataclass that checks its bounds.

    Raises:
        ValueError: A member does not fit its type. The text names it.
    """

    __slots__ = ("_digest", "_message", "_struct_hash")
    __dataclass_fields__: ClassVar[dict[str, Any]]
    _struct_hash: Bytes32
    _message: object
    """The message that the object travels in, once `wire` has made it."""
    _digest: tuple[Domain, Bytes32]
    """The last digest, and the domain that it is under."""

    def __post_init__(self) -> None:
        for spec in specs(type(self)):
            try:
                spec.check(getattr(self, spec.attribute))
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}.{spec.name}: {error}") from None

    def struct_hash(self) -> Bytes32:
        """Give hashStruct(s) = keccak256(typeHash || encodeData(s)).

        The object is frozen and so is all that it holds, so the hash is computed once.
        """
        try:
            return self._struct_hash
        except AttributeError:
            found = keccak256(self.encoded())
            object.__setattr__(self, "_struct_hash", found)
            return found

    def encoded(self) -> bytes:
        """Give typeHash || encodeData(s): one word for the type, then one for each member."""
        cls = type(self)
        parts: list[bytes] = [type_hash(cls)]
        parts.extend([spec.encode(getattr(self, spec.attribute)) for spec in specs(cls)])
        return b"".join(parts)

    def replace(self, **changes: Any) -> Self:
        """Give a copy with some members changed. Its bounds are checked again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**(values | changes))


@dataclass(frozen=True, slots=True)
class Domain:
    """The EIP-712 domain: the contract on one chain that a message is signed for (clause 1.2).

    Name and version are those of the escrow unless they are given. The worker registry and every
    token have their own.
    """

    chain_id: int
    verifying_contract: Address
    name: str = "Piecework"
    version: str = "2"

    def separator(self) -> Bytes32:
        """Give the keccak256 of the encoded EIP712Domain struct."""
        return _separator(self)

    def digest(self, message: TypedData) -> Bytes32:
        """Give the 32 bytes to sign: keccak256(0x1901 || separator || hashStruct(message))."""
        try:
            domain, found = message._digest
        except AttributeError:
            pass
        else:
            if domain is self:
                return found
        found = keccak256(b"\x19\x01" + self.separator() + message.struct_hash())
        object.__setattr__(message, "_digest", (self, found))
        return found


@cache
def _separator(domain: Domain) -> Bytes32:
    kind = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    return keccak256(
        keccak256(kind)
        + keccak256(domain.name.encode())
        + keccak256(domain.version.encode())
        + domain.chain_id.to_bytes(32, "big")
        + bytes(12)
        + domain.verifying_contract
    )


_SPECS: dict[type[TypedData], tuple[FieldSpec, ...]] = {}
_TYPE_HASHES: dict[type[TypedData], Bytes32] = {}


def specs(cls: type[TypedData]) -> tuple[FieldSpec, ...]:
    """List the members of a typed-data class in the order of their declaration."""
    if cls not in _SPECS:
        hints = typing.get_type_hints(cls)
        _SPECS[cls] = tuple(_spec(f.name, hints[f.name]) for f in fields(cls))
    return _SPECS[cls]


def type_string(cls: type[TypedData]) -> str:
    """Give encodeType: the struct, then the structs that it refers to in alphabetical order."""
    return _own_type(cls) + "".join(
        _own_type(c) for c in sorted(_references(cls), key=lambda c: c.__name__)
    )


def type_hash(cls: type[TypedData]) -> Bytes32:
    """Give keccak256(encodeType(cls))."""
    if cls not in _TYPE_HASHES:
        _TYPE_HASHES[cls] = keccak256(type_string(cls).encode())
    return _TYPE_HASHES[cls]


def message_dict(message: TypedData) -> dict[str, Any]:
    """Give the message as wallets take it: names in camel case, hex strings, plain integers."""
    return {spec.name: _plain(getattr(message, spec.attribute)) for spec in specs(type(message))}


def type_dict(cls: type[TypedData]) -> dict[str, list[dict[str, str]]]:
    """Give the `types` object of eth_signTypedData for `cls` and all that it refers to."""
    every = [cls, *sorted(_references(cls), key=lambda c: c.__name__)]
    return {c.__name__: [{"name": s.name, "type": s.type_name} for s in specs(c)] for c in every}


def _own_type(cls: type[TypedData]) -> str:
    return cls.__name__ + "(" + ",".join(f"{s.type_name} {s.name}" for s in specs(cls)) + ")"


def _references(cls: type[TypedData]) -> set[type[TypedData]]:
    direct = {s.nested for s in specs(cls) if s.nested is not None}
    return direct.union(*(_references(c) for c in direct)) if direct else direct


def _spec(attribute: str, hint: Any) -> FieldSpec:
    head, *rest = attribute.split("_")
    name = head + "".join(part.capitalize() for part in rest)
    type_name, check, encode, nested = _codec(hint)
    return FieldSpec(attribute, name, type_name, check, encode, nested)


def _codec(
    hint: Any,
) -> tuple[str, Callable[[Any], None], Callable[[Any], bytes], type[TypedData] | None]:
    if hint in _PLAIN:
        return *_PLAIN[hint], None
    if typing.get_origin(hint) is tuple:
        return _array_codec(typing.get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, TypedData):
        return hint.__name__, _check_instance(hint), lambda v: v.struct_hash(), hint
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        return "uint8", _check_member(hint), lambda v: int(v).to_bytes(32, "big"), None
    solidity, size = _SCALARS[hint]
    if solidity.startswith("uint"):
        return solidity, _check_uint(size), lambda v: v.to_bytes(32, "big"), None
    padding = bytes(32 - size)
    return solidity, _check_bytes(size), lambda v: padding + v, None


def _array_codec(
    item: Any,
) -> tuple[str, Callable[[Any], None], Callable[[Any], bytes], type[TypedData] | None]:
    type_name, check, encode, nested = _codec(item)

    def check_all(values: tuple[Any, ...]) -> None:
        for value in values:
            check(value)

    return (
        type_name + "[]",
        check_all,
        lambda vs: keccak256(b"".join(encode(v) for v in vs)),
        nested,
    )


def _check_uint(size: int) -> Callable[[int], None]:
    def check(value: int) -> None:
        if not 0 <= value < 1 << (8 * size):
            raise ValueError(f"{value} does not fit uint{8 * size}")

    return check


def _check_bytes(size: int) -> Callable[[bytes], None]:
    def check(value: bytes) -> None:
        if len(value) != size:
            raise ValueError(f"expected {size} bytes, got {len(value)}")

    return check


def _check_bool(value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError("expected a truth value")


def _check_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("text is not encodable as UTF-8") from None


def _check_instance(cls: type[TypedData]) -> Callable[[object], None]:
    def check(value: object) -> None:
        if not isinstance(value, cls):
            raise ValueError(f"expected a {cls.__name__}")

    return check


def _check_member(kind: type[enum.IntEnum]) -> Callable[[object], None]:
    def check(value: object) -> None:
        if not isinstance(value, kind):
            raise ValueError(f"expected a {kind.__name__}")

    return check


def _plain(value: Any) -> Any:
    if isinstance(value, TypedData):
        return message_dict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return address_hex(Address(value)) if len(value) == 20 else "0x" + value.hex()
    return int(value) if isinstance(value, enum.IntEnum) else value


_PLAIN: dict[Any, tuple[str, Callable[[Any], None], Callable[[Any], bytes]]] = {
    str: ("string", _check_text, lambda v: keccak256(v.encode())),
    bool: ("bool", _check_bool, lambda v: int(v).to_bytes(32, "big")),
}
"""The types of Python itself."""
