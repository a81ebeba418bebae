"""Encoding and decoding of calls, results, events and errors from the committed artifacts. Pure.

Source: the contract ABI specification, https://docs.soliditylang.org/en/latest/abi-spec.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import encode as abi_encode
from eth_abi.codec import ABIDecoder
from eth_abi.decoding import StringDecoder
from eth_abi.exceptions import DecodingError
from eth_abi.registry import BaseEquals, registry

from chain.errors import BadAnswer, TransactionReverted
from chain.limits import MAX_REVERT_BYTES
from contracts import CONTRACTS, load_artifact
from protocol.types import Address, Bytes32, keccak256, parse_address, to_hex

_STANDARD_ERRORS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Error", ("message",), ("string",)),
    ("Panic", ("code",), ("uint256",)),
)


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its 4-byte selector and the ABI types of what goes in and comes out."""

    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `indexed` are (name, type) of the topics after the first, `data` those of the data part."""

    name: str
    topic: Bytes32
    indexed: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CustomError:
    """One custom error and its named, typed arguments."""

    name: str
    arguments: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """A contract's ABI by name."""

    contract: str
    functions: Mapping[str, Function]
    events: Mapping[str, Event]
    constructor: tuple[str, ...]

    def encode(self, name: str, arguments: Sequence[Any]) -> bytes:
        """Call data: selector and arguments. Addresses are 20 bytes, structs are tuples."""
        function = self.functions[name]
        return function.selector + abi_encode(function.inputs, _plain(arguments))

    def encode_constructor(self, arguments: Sequence[Any]) -> bytes:
        """Creation code with the constructor's arguments appended."""
        return load_artifact(self.contract).bytecode + abi_encode(self.constructor, _plain(arguments))

    def decode(self, name: str, data: bytes) -> tuple[Any, ...]:
        """The results of a call; addresses as 20 bytes. `BadAnswer` for data of another shape."""
        types = self.functions[name].outputs
        return tuple(decode_values(types, data, f"{self.contract}.{name}"))

    def decode_event(self, name: str, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """The named arguments of a log that has this event's topic. `BadAnswer` for any other shape."""
        event = self.events[name]
        what = f"{self.contract}.{name}"
        if len(topics) != 1 + len(event.indexed) or topics[0] != event.topic:
            raise BadAnswer(f"a log does not have the topics of {what}")
        values: dict[str, Any] = {}
        for (argument, kind), topic in zip(event.indexed, topics[1:], strict=True):
            values[argument] = decode_values((kind,), topic, what)[0]
        rest = decode_values([kind for _, kind in event.data], data, what)
        values.update(zip([argument for argument, _ in event.data], rest, strict=True))
        return values


@cache
def interface(contract: str) -> Interface:
    """The interface of one of the committed contracts."""
    functions: dict[str, Function] = {}
    events: dict[str, Event] = {}
    constructor: tuple[str, ...] = ()
    for entry in load_artifact(contract).abi:
        if entry["type"] == "function":
            functions[entry["name"]] = _function(entry)
        elif entry["type"] == "event":
            events[entry["name"]] = _event(entry)
        elif entry["type"] == "constructor":
            constructor = tuple(_type(i) for i in entry["inputs"])
    return Interface(contract, functions, events, constructor)


def decode_values(types: Sequence[str], data: bytes, what: str) -> list[Any]:
    """ABI-decode; addresses become 20 bytes. `BadAnswer` names `what` when the data has another shape."""
    try:
        values = _decoder().decode(list(types), data)
    except (DecodingError, OverflowError) as error:
        raise BadAnswer(f"the node's answer for {what} does not decode: {error}") from error
    return [_native(kind, value) for kind, value in zip(types, values, strict=True)]


@cache
def _decoder() -> ABIDecoder:
    """eth-abi's decoder, but text that is not UTF-8 comes out with replacement characters.

    Anybody can write such bytes into a registry entry; that must not make a whole page of workers unreadable.
    """
    own = registry.copy()  # type: ignore[no-untyped-call]
    own.unregister_decoder("string")
    text = BaseEquals("string", with_sub=False)  # type: ignore[no-untyped-call]
    lenient = StringDecoder(handle_string_errors="replace")  # type: ignore[no-untyped-call]
    own.register_decoder(text, lenient, label="string")
    return ABIDecoder(own)


def decode_revert(data: bytes) -> TransactionReverted:
    """The error that a contract reverted with, by name and arguments if it is one that we know."""
    errors = _errors()
    known = errors.get(data[:4])
    if known is None or len(data) > MAX_REVERT_BYTES:
        arguments = {"data": data[:MAX_REVERT_BYTES]} if data else {}
        return TransactionReverted("UnknownError" if data else "", arguments, data)
    try:
        values = decode_values(known.types, data[4:], known.name)
    except BadAnswer:
        return TransactionReverted(known.name, {"data": data}, data)
    named = {
        name: to_hex(value) if isinstance(value, bytes) else value
        for name, value in zip(known.arguments, values, strict=True)
    }
    return TransactionReverted(known.name, named, data)


@cache
def _errors() -> Mapping[bytes, CustomError]:
    table: dict[bytes, CustomError] = {}
    for name, arguments, types in _STANDARD_ERRORS:
        table[_selector(name, types)] = CustomError(name, arguments, types)
    for contract in CONTRACTS:
        for entry in load_artifact(contract).abi:
            if entry["type"] == "error":
                types = tuple(_type(i) for i in entry["inputs"])
                names = tuple(i["name"] for i in entry["inputs"])
                table[_selector(entry["name"], types)] = CustomError(entry["name"], names, types)
    return table


def _selector(name: str, types: Sequence[str]) -> bytes:
    return keccak256(f"{name}({','.join(types)})".encode())[:4]


def _function(entry: Mapping[str, Any]) -> Function:
    inputs = tuple(_type(i) for i in entry["inputs"])
    outputs = tuple(_type(o) for o in entry["outputs"])
    return Function(entry["name"], _selector(entry["name"], inputs), inputs, outputs)


def _event(entry: Mapping[str, Any]) -> Event:
    types = ",".join(_type(i) for i in entry["inputs"])
    indexed = tuple((i["name"], _type(i)) for i in entry["inputs"] if i["indexed"])
    data = tuple((i["name"], _type(i)) for i in entry["inputs"] if not i["indexed"])
    return Event(entry["name"], keccak256(f"{entry['name']}({types})".encode()), indexed, data)


def _type(item: Mapping[str, Any]) -> str:
    """The canonical type; a struct is the tuple of its members."""
    kind: str = item["type"]
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(_type(c) for c in item["components"]) + ")" + kind.removeprefix("tuple")


def _plain(values: Sequence[Any]) -> list[Any]:
    """eth-abi takes addresses as 20 bytes or hex; a bytes subtype or tuple passes as it is."""
    return [tuple(_plain(v)) if isinstance(v, tuple) else v for v in values]


def _native(kind: str, value: Any) -> Any:
    """eth-abi returns addresses as checksummed text; inside Piecework they are 20 bytes."""
    if kind == "address":
        return Address(parse_address(value))
    if kind.startswith("address["):
        return tuple(Address(parse_address(v)) for v in value)
    if kind.startswith("("):
        return _native_tuple(kind, value)
    return value


def _native_tuple(kind: str, value: Any) -> Any:
    inner, _, suffix = kind[1:].rpartition(")")
    members = _split(inner)
    if suffix:
        return tuple(_native("(" + inner + ")", v) for v in value)
    return tuple(_native(k, v) for k, v in zip(members, value, strict=True))


def _split(inner: str) -> list[str]:
    """Split the members of a tuple type at its top-level commas."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(inner):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(inner[start:position])
            start = position + 1
    return [*parts, inner[start:]]
