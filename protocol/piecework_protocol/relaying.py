"""What a worker and a relay say to each other (clause 2.7). Pure.

A worker dials a relay and keeps that link open. For each client that the relay has, the worker
dials once more and takes the client over. So a worker behind a router listens on no address, and
the relay passes bytes of TLS that it cannot read.

A connection to a relay begins with one line of ASCII (`Join`, `Take` or `Dial`), or it is a
client's TLS. On a joined link both sides write one JSON object a line. Behind `Dial` stands a
signed request as an index takes it (`dialling.py`), and the relay answers with one line (clause
2.8).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Address,
    Bytes32,
    Signature,
    Timestamp,
    Uint32,
    parse_hex,
)

SERVER_SUFFIX: Final = ".piecework"
RELAY_NAME: Final = "Piecework Relay"
TOKEN_BYTES: Final = 16
MAX_RELAY_NAME_BYTES: Final = 256
MAX_LINE_BYTES: Final = 1024
"""Of everything that is said on a link, with its end of line."""
MAX_REFUSAL_CHARACTERS: Final = 200
MAX_RETRY_S: Final = 24 * 3600
MAX_CLIENTS: Final = 2**20
MAX_PEER_CHARACTERS: Final = 64
OPENING: Final = b"PIECEWORK-RELAY/1 "
"""How a worker's connection begins. A client's begins with the byte of a TLS handshake."""
MAX_OPENING_BYTES: Final = len(OPENING) + 64

_SERVER_NAME: Final = re.compile(r"[0-9a-f]{40}\.piecework")
_PEER: Final = re.compile(r"[0-9A-Fa-f:.%]+")


def server_name(operator: Address) -> str:
    """Give the name that a worker's certificate has and that clients ask for: 40 hex digits and
    `.piecework`."""
    return operator.hex() + SERVER_SUFFIX


def named_operator(name: str) -> Address | None:
    """Read an operator out of a TLS server name, which has no case. None: it names no worker."""
    lower = name.lower()
    if not _SERVER_NAME.fullmatch(lower):
        return None
    return Address(bytes.fromhex(lower.removesuffix(SERVER_SUFFIX)))


def relay_domain(chain_id: int, registry: Address) -> Domain:
    """Give the domain of admissions to relays of one market."""
    return Domain(chain_id, registry, RELAY_NAME)


@dataclass(frozen=True, slots=True)
class RelayAdmission(TypedData):
    """What an operator signs to be reached through a relay.

    `relay` is the address that the worker dialled, so nobody can pass the signature on to another
    relay. `nonce` is the relay's and counts for one connection.
    """

    relay: str
    nonce: Bytes32
    at: Timestamp


# --- the first line of a worker's connection


@dataclass(frozen=True, slots=True)
class Join:
    """A worker wants to be reached through this relay."""

    operator: Address


@dataclass(frozen=True, slots=True)
class Take:
    """A worker takes over the client of this token. What follows is the client's TLS."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Dial:
    """A worker wants its addresses dialled. What follows is one line with its signed request."""


Opening = Join | Take | Dial


def encode_opening(opening: Opening) -> bytes:
    """Write a first line."""
    if isinstance(opening, Dial):
        return OPENING + b"dial\n"
    if isinstance(opening, Join):
        return OPENING + b"join " + opening.operator.hex().encode() + b"\n"
    return OPENING + b"take " + opening.token.hex().encode() + b"\n"


def decode_opening(line: bytes) -> Opening:
    """Read a first line, without its end.

    Raises:
        MalformedInput: It is none.
    """
    if line == OPENING + b"dial":
        return Dial()
    found = re.fullmatch(rb"(join ([0-9a-f]{40})|take ([0-9a-f]{32}))", line.removeprefix(OPENING))
    if not line.startswith(OPENING) or found is None:
        raise MalformedInput("that is not a first line of a worker")
    if found[2] is not None:
        return Join(Address(bytes.fromhex(found[2].decode())))
    return Take(bytes.fromhex(found[3].decode()))


# --- lines of a joined link


@dataclass(frozen=True, slots=True)
class RelayChallenge:
    """The relay: sign this. `relay` is what it calls itself."""

    relay: str
    nonce: Bytes32


@dataclass(frozen=True, slots=True)
class ChallengeAnswer:
    """The worker: a signed `RelayAdmission`."""

    at: Timestamp
    signature: Signature


@dataclass(frozen=True, slots=True)
class Admitted:
    """The relay: clients come from now on, at most so many at once."""

    clients: Uint32


@dataclass(frozen=True, slots=True)
class NotAdmitted:
    """The relay: no, and when to ask again."""

    why: str
    retry_s: Uint32


@dataclass(frozen=True, slots=True)
class Incoming:
    """The relay: a client is there. `peer` is the IP address that it comes from, by the relay's
    word."""

    token: bytes
    peer: str


@dataclass(frozen=True, slots=True)
class ClientDeclined:
    """The worker: it does not take this client."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Either side: the link is alive."""


RelayLine = (
    RelayChallenge | ChallengeAnswer | Admitted | NotAdmitted | Incoming | ClientDeclined | Ping
)


def encode_line(line: RelayLine) -> bytes:
    """Write one line of a link, with its end."""
    match line:
        case RelayChallenge(relay, nonce):
            values: dict[str, Any] = {"is": "challenge", "relay": relay, "nonce": nonce.hex()}
        case ChallengeAnswer(at, signature):
            values = {"is": "answer", "at": at, "signature": signature.hex()}
        case Admitted(clients):
            values = {"is": "admitted", "clients": clients}
        case NotAdmitted(why, retry_s):
            values = {"is": "not admitted", "why": why, "retry_s": retry_s}
        case Incoming(token, peer):
            values = {"is": "incoming", "token": token.hex(), "peer": peer}
        case ClientDeclined(token):
            values = {"is": "declined", "token": token.hex()}
        case Ping():
            values = {"is": "ping"}
    return json.dumps(values).encode() + b"\n"


def decode_line(data: bytes) -> RelayLine:
    """Read one line of a link. Members that are not known are skipped.

    Raises:
        MalformedInput: It is none, or a member is missing or out of range.
    """
    if len(data) > MAX_LINE_BYTES:
        raise MalformedInput(f"a line is at most {MAX_LINE_BYTES} bytes")
    try:
        values = loads(data, max_depth=4)
        read = _READERS[values["is"]]
        return read(values)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedInput(f"that is not a line of a relay: {type(error).__name__}") from None


def _hex(values: dict[str, Any], name: str, length: int) -> bytes:
    return parse_hex(_text(values, name, 2 * length), length, name)


def _token(values: dict[str, Any]) -> bytes:
    return _hex(values, "token", TOKEN_BYTES)


def _number(values: dict[str, Any], name: str, most: int) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} is out of range")
    return value


def _text(values: dict[str, Any], name: str, most: int) -> str:
    value = values[name]
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name} is not a short text")
    return value


def _challenge(values: dict[str, Any]) -> RelayLine:
    relay = _text(values, "relay", MAX_RELAY_NAME_BYTES)
    return RelayChallenge(relay, Bytes32(_hex(values, "nonce", 32)))


def _answer(values: dict[str, Any]) -> RelayLine:
    signature = Signature(_hex(values, "signature", SIGNATURE_BYTES))
    return ChallengeAnswer(Timestamp(_number(values, "at", 2**40 - 1)), signature)


def _not_admitted(values: dict[str, Any]) -> RelayLine:
    why = _text(values, "why", MAX_REFUSAL_CHARACTERS)
    return NotAdmitted(why, Uint32(_number(values, "retry_s", MAX_RETRY_S)))


def _incoming(values: dict[str, Any]) -> RelayLine:
    peer = _text(values, "peer", MAX_PEER_CHARACTERS)
    if not _PEER.fullmatch(peer):
        raise ValueError("peer is not an IP address")
    return Incoming(_token(values), peer)


_READERS: Final[dict[str, Callable[[dict[str, Any]], RelayLine]]] = {
    "challenge": _challenge,
    "answer": _answer,
    "admitted": lambda values: Admitted(Uint32(_number(values, "clients", MAX_CLIENTS))),
    "not admitted": _not_admitted,
    "incoming": _incoming,
    "declined": lambda values: ClientDeclined(_token(values)),
    "ping": lambda _: Ping(),
}
