"""Encoding and decoding of calls, results, events and errors from the committed artifacts. Pure.

Source: the contract ABI specification, https://docs.soliditylang.org/en/latest/abi-spec.html.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from piecework.chain.artifacts import CONTRACTS, load_artifact
from piecework.chain.errors import BadAnswer, TransactionReverted
from piecework.chain.limits import MAX_REVERT_BYTES
from piecework_protocol.types import Bytes32, to_hex

_STANDARD_ERRORS: tuple[dict[str, Any], ...] = (
    {"type": "error", "name": "Error", "inputs": [{"name": "message", "type": "string"}]},
    {"type": "error", "name": "Panic", "inputs": [{"name": "code", "type": "uint256"}]},
)


_PLAIN: frozenset[type[Any]] = frozenset({bool, bytes, int, str})


@dataclass(frozen=True, slots=True)
class Function:
    """One function: its 4-byte selector and the ABI types of what goes in and comes out."""

    name: str
    selector: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `indexed` are (name, type) of the topics after the first, `data` those of the data
    part."""

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
        """Call data: selector and arguments. Addresses are 20 bytes. A struct is a tuple, or a
        dataclass with the same members in the same order."""
        function = self.functions[name]
        return function.selector + _encode(function.inputs, [_in_abi(one) for one in arguments])

    def encode_constructor(self, arguments: Sequence[Any]) -> bytes:
        """Creation code with the constructor's arguments appended."""
        given = [_in_abi(one) for one in arguments]
        return load_artifact(self.contract).bytecode + _encode(self.constructor, given)

    def decode(self, name: str, data: bytes) -> tuple[Any, ...]:
        """The results of a call; addresses as 20 bytes. `BadAnswer` for data of another shape."""
        types = self.functions[name].outputs
        return decode_values(types, data, f"{self.contract}.{name}")

    def decode_event(self, name: str, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """The named arguments of a log that has this event's topic. `BadAnswer` for any other
        shape."""
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
    from eth_utils.abi import get_abi_input_types

    abi: Sequence[Any] = load_artifact(contract).abi
    constructor = next(
        (tuple(get_abi_input_types(e)) for e in abi if e["type"] == "constructor"), ()
    )
    functions = _functions([e for e in abi if e["type"] == "function"])
    events = {e["name"]: _event(e) for e in abi if e["type"] == "event"}
    return Interface(contract, functions, events, constructor)


def _in_abi(value: Any) -> Any:
    """Return a value as the encoder takes it: dataclasses as tuples, enums as their numbers."""
    kind: type[Any] = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, tuple | list):
        return [_in_abi(one) for one in value]
    if isinstance(value, enum.IntEnum):
        return int(value)
    if is_dataclass(kind):
        return tuple([_in_abi(getattr(value, name)) for name in _members(kind)])
    return value


@cache
def _members(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def decode_values(types: Sequence[str], data: bytes, what: str) -> tuple[Any, ...]:
    """ABI-decode; addresses become 20 bytes. `BadAnswer` names `what` when the data has another
    shape."""
    from piecework.chain.contracts.codec import decode  # imports web3

    return decode(types, data, what)


def _encode(types: Sequence[str], values: Sequence[Any]) -> bytes:
    from piecework.chain.contracts.codec import encode  # imports web3

    return encode(types, values)


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
    """By selector, over all contracts at once: web3 names an error only with the ABI of the callee,
    and the one that reverted is often another (the token under the escrow).
    """
    from eth_utils.abi import function_abi_to_4byte_selector

    entries: list[Any] = list(_STANDARD_ERRORS)
    for contract in CONTRACTS:
        entries += [entry for entry in load_artifact(contract).abi if entry["type"] == "error"]
    return {function_abi_to_4byte_selector(entry): _error(entry) for entry in entries}


def _error(entry: Any) -> CustomError:
    from eth_utils.abi import get_abi_input_types

    names = tuple(i["name"] for i in entry["inputs"])
    return CustomError(entry["name"], names, tuple(get_abi_input_types(entry)))


def _function(entry: Any) -> Function:
    from eth_utils.abi import (
        function_abi_to_4byte_selector,
        get_abi_input_types,
        get_abi_output_types,
    )

    inputs, outputs = get_abi_input_types(entry), get_abi_output_types(entry)
    return Function(
        entry["name"], function_abi_to_4byte_selector(entry), tuple(inputs), tuple(outputs)
    )


def _functions(entries: Sequence[Any]) -> dict[str, Function]:
    """By name. Of functions that share a name, each has its whole signature for a name."""
    made = [_function(entry) for entry in entries]
    names = [function.name for function in made]
    return {
        f.name if names.count(f.name) == 1 else f"{f.name}({','.join(f.inputs)})": f for f in made
    }


def _event(entry: Any) -> Event:
    from eth_utils.abi import event_abi_to_log_topic, get_abi_input_types

    typed = list(zip(entry["inputs"], get_abi_input_types(entry), strict=True))
    indexed = tuple((i["name"], kind) for i, kind in typed if i["indexed"])
    data = tuple((i["name"], kind) for i, kind in typed if not i["indexed"])
    return Event(entry["name"], Bytes32(event_abi_to_log_topic(entry)), indexed, data)
