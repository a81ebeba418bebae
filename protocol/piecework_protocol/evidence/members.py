"""The one JSON form of each signed object in an evidence file (clause 10.2). Pure.

An object has the members of its EIP-712 type, by name. Bytes are 0x and lower-case hex, addresses
in their EIP-55 form. A whole number up to 2^53 - 1 is a number, a larger one its decimal digits in
a string, so that every JSON reader keeps it.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from piecework_protocol.eip712 import TypedData, specs
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.limits import MAX_OFFER_MODELS
from piecework_protocol.ranges import check_all
from piecework_protocol.types import ADDRESS_BYTES, DIGEST_BYTES, Address, to_hex

MAX_NUMBER: Final = 2**53 - 1
"""The largest whole number that every JSON reader keeps."""
MAX_DIGITS: Final = 39
"""Of a uint128."""
MAX_ENTRIES: Final = MAX_OFFER_MODELS
"""Of a list inside a signed object. An offer's models are the longest."""

_T = TypeVar("_T", bound=TypedData)


def written(value: Any) -> Any:
    """Give the JSON form of a signed object, or of a value in it."""
    if isinstance(value, TypedData):
        return {spec.name: written(getattr(value, spec.attribute)) for spec in specs(type(value))}
    if isinstance(value, tuple):
        return [written(one) for one in value]
    if isinstance(value, bytes):
        return to_hex(value)
    if isinstance(value, enum.IntEnum):
        return int(value)
    if isinstance(value, int):
        return value if value <= MAX_NUMBER else str(value)
    return value


def taken(cls: type[_T], raw: Any, where: str) -> _T:
    """Read a signed object. Every number of it is held to its range.

    `where` names it in errors, such as "job".

    Raises:
        EvidenceRefused: It is not in its one form. The error names the member.
    """
    found = _taken(cls, raw, where)
    try:
        check_all(found)
    except ValueError as error:
        raise EvidenceRefused(where, str(error)) from None
    return found


def _taken(cls: type[_T], raw: Any, where: str) -> _T:
    hints, values = typing.get_type_hints(cls), {}
    given = of_names(raw, where, *(spec.name for spec in specs(cls)))
    for spec in specs(cls):
        member = f"{where}.{spec.name}"
        values[spec.attribute] = _value(hints[spec.attribute], given[spec.name], member)
    try:
        return cls(**values)
    except ValueError as error:
        raise EvidenceRefused(where, str(error)) from None


def of_names(raw: Any, where: str, *names: str) -> Mapping[str, Any]:
    """Take a JSON object that has exactly these members.

    Raises:
        EvidenceRefused: It is another value, or a member is missing or too many.
    """
    if not isinstance(raw, dict):
        raise EvidenceRefused(where, "it is not a JSON object")
    for name in names:
        if name not in raw:
            raise EvidenceRefused(f"{where}.{name}", "it is missing")
    if len(raw) != len(names):
        raise EvidenceRefused(where, f"it has other members than {', '.join(names)}")
    return raw


def entries(raw: Any, where: str, most: int) -> list[Any]:
    """Take a list of at most `most` entries.

    Raises:
        EvidenceRefused: It is another value, or longer.
    """
    if not isinstance(raw, list) or len(raw) > most:
        raise EvidenceRefused(where, f"it is not a list of at most {most}")
    return raw


def hexed(value: bytes) -> str:
    """Give the JSON form of bytes that stand outside of a signed object."""
    return "0x" + value.hex()


def data(raw: Any, where: str, most: int, *, least: int = 0) -> bytes:
    """Take `least` to `most` bytes in hex.

    Raises:
        EvidenceRefused: It is another value, or not in its one form.
    """
    if isinstance(raw, str) and len(raw) <= 2 * most + 2:
        try:
            found = bytes.fromhex(raw.removeprefix("0x"))
        except ValueError:
            found = b""
        if hexed(found) == raw and len(found) >= least:
            return found
    raise EvidenceRefused(where, f"it is not 0x and lower-case hex of {least} to {most} bytes")


def number(raw: Any, where: str) -> int:
    """Take a whole number that is not negative.

    Raises:
        EvidenceRefused: It is not one, or not in its one form.
    """
    found = raw
    if isinstance(raw, str) and len(raw) <= MAX_DIGITS and raw.isascii() and raw.isdecimal():
        found = int(raw)
    whole = isinstance(found, int) and not isinstance(found, bool) and found >= 0
    if not whole or written(found) != raw:
        raise EvidenceRefused(where, "it is not a whole number in its one form")
    return int(found)


def _value(hint: Any, raw: Any, where: str) -> Any:
    """Read one value of an annotated type."""
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        found = entries(raw, where, MAX_ENTRIES)
        return tuple(_value(item, one, f"{where}[{i}]") for i, one in enumerate(found))
    if isinstance(hint, type) and issubclass(hint, TypedData):
        return _taken(hint, raw, where)
    if isinstance(hint, type) and issubclass(hint, enum.IntEnum):
        try:
            return hint(number(raw, where))
        except ValueError:
            raise EvidenceRefused(where, f"it is not a {hint.__name__}") from None
    return _scalar(hint, raw, where)


def _scalar(hint: Any, raw: Any, where: str) -> Any:
    plain = hint.__supertype__ if isinstance(hint, typing.NewType) else hint
    if hint is Address:
        return address(raw, where)
    if plain is bytes:
        return data(raw, where, DIGEST_BYTES, least=DIGEST_BYTES)
    if plain is int:
        return number(raw, where)
    if not isinstance(raw, str):
        raise EvidenceRefused(where, "it is not a text")
    return raw


def address(raw: Any, where: str) -> Address:
    """Take an address in its EIP-55 form.

    Raises:
        EvidenceRefused: It is another value, or in another form.
    """
    text = raw.lower() if isinstance(raw, str) else raw
    found = Address(data(text, where, ADDRESS_BYTES, least=ADDRESS_BYTES))
    if to_hex(found) != raw:
        raise EvidenceRefused(where, "the address is not in its EIP-55 form")
    return found
