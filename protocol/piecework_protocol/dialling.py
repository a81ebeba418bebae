"""What an operator signs to have its addresses dialled by an index (clause 2.8). Pure.

A worker cannot see itself as clients do. An index can, and dials for registered operators alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_ENDPOINT_BYTES, MAX_OFFER_ENDPOINTS
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Address,
    Digest,
    Signature,
    Timestamp,
    parse_hex,
    to_hex,
)

DIAL_NAME: Final = "Piecework Dial"
MAX_DIAL_BYTES: Final = 8 * 1024
"""Of a request as JSON."""


def dial_domain(market: Domain) -> Domain:
    """Give the domain of such requests in the market of an escrow."""
    return Domain(market.chain_id, market.verifying_contract, DIAL_NAME)


@dataclass(frozen=True, slots=True)
class DialRequest(TypedData):
    """Dial these, and see whether this certificate answers to the operator's server name."""

    operator: Address
    endpoints: tuple[Endpoint, ...]
    tls_certificate: Digest
    at: Timestamp


def encode_dial(request: DialRequest, signature: Signature) -> bytes:
    """Write a signed request as JSON."""
    values = {
        "operator": to_hex(request.operator),
        "endpoints": [[int(one.route), one.address] for one in request.endpoints],
        "tls_certificate": to_hex(request.tls_certificate),
        "at": request.at,
        "signature": to_hex(signature),
    }
    return json.dumps(values).encode()


def decode_dial(data: bytes) -> tuple[DialRequest, Signature]:
    """Read a request and its signature, which is not checked.

    Raises:
        MalformedInput: It is none, or a member is missing or out of range.
    """
    if len(data) > MAX_DIAL_BYTES:
        raise MalformedInput(f"a request to dial is at most {MAX_DIAL_BYTES} bytes")
    try:
        values = loads(data, max_depth=4)
        request = DialRequest(
            Address(parse_hex(values["operator"], 20, "operator")),
            tuple(map(_endpoint, _several(values["endpoints"]))),
            Digest(parse_hex(values["tls_certificate"], 32, "tls_certificate")),
            _time(values["at"]),
        )
        return request, Signature(parse_hex(values["signature"], SIGNATURE_BYTES, "signature"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedInput(f"that is not a request to dial: {type(error).__name__}") from None


def _several(values: Any) -> list[Any]:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_OFFER_ENDPOINTS:
        raise ValueError("endpoints are a short list")
    return values


def _endpoint(value: Any) -> Endpoint:
    route, address = value
    if not isinstance(address, str) or len(address.encode()) > MAX_ENDPOINT_BYTES:
        raise ValueError("an address is a short text")
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 2**16:
        raise ValueError("an address is host:port")
    return Endpoint(Route(route), address)


def _time(value: Any) -> Timestamp:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError("a time is in seconds")
    return Timestamp(value)
