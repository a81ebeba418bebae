"""What a worker and its signer say to each other: JSON objects in frames over a unix socket.

A frame is four bytes of length, big endian, and so many bytes of JSON. A question has a `method`:
`hello`, `typed` or `transaction`. There is no method that takes a digest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.base.text import is_text
from piecework.signer.limits import FRAME_S, MAX_DOMAIN_CHARACTERS, MAX_FRAME_BYTES
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.members import address, data, hexed, number, of_names, written
from piecework_protocol.types import address_hex

LENGTH_BYTES: Final = 4
VERSION: Final = 1


def frame(body: Mapping[str, Any]) -> bytes:
    """Give the bytes of a frame."""
    text = json.dumps(body, separators=(",", ":")).encode()
    return len(text).to_bytes(LENGTH_BYTES, "big") + text


async def read_frame(reader: asyncio.StreamReader, first_byte_s: float) -> dict[str, Any] | None:
    """Read the next frame. None: the other side has ended.

    Args:
        reader: Of a connection.
        first_byte_s: How long to wait for the frame to begin.

    Raises:
        MalformedInput: what came is too long, or no JSON object.
        TimeoutError: it did not come in time.
        OSError: the connection broke.
    """
    async with asyncio.timeout(first_byte_s):
        first = await reader.read(1)
    if not first:
        return None
    try:
        async with asyncio.timeout(FRAME_S):
            length = int.from_bytes(first + await reader.readexactly(LENGTH_BYTES - 1), "big")
            if not 0 < length <= MAX_FRAME_BYTES:
                raise MalformedInput(f"a frame has 1 to {MAX_FRAME_BYTES} bytes, not {length}")
            text = await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
    try:
        body = loads(text)
    except ValueError as error:
        raise MalformedInput(f"a frame is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise MalformedInput("a frame is a JSON object")
    return body


def typed_question(domain: Domain, message: TypedData) -> dict[str, Any]:
    """Ask for a signature over a typed object."""
    return {
        "method": "typed",
        "domain": {
            "name": domain.name,
            "version": domain.version,
            "chainId": domain.chain_id,
            "verifyingContract": address_hex(domain.verifying_contract),
        },
        "kind": type(message).__name__,
        "message": written(message),
    }


def transaction_question(payload: bytes) -> dict[str, Any]:
    """Ask for a signature over a transaction, by its payload."""
    return {"method": "transaction", "payload": hexed(payload)}


def asked_domain(raw: Any) -> Domain:
    """Read the domain of a question.

    Raises:
        MalformedInput: it is another value.
    """
    given = of_names(raw, "domain", "name", "version", "chainId", "verifyingContract")
    for member in ("name", "version"):
        text = given[member]
        if not _is_text(text):
            raise MalformedInput(f"domain.{member} is a text of {MAX_DOMAIN_CHARACTERS} characters")
    return Domain(
        number(given["chainId"], "domain.chainId"),
        address(given["verifyingContract"], "domain.verifyingContract"),
        given["name"],
        given["version"],
    )


def _is_text(value: Any) -> bool:
    """Whether it is text of a bounded length."""
    return isinstance(value, str) and len(value) <= MAX_DOMAIN_CHARACTERS and is_text(value)


def asked_payload(raw: Any) -> bytes:
    """Read the payload of a transaction.

    Raises:
        MalformedInput: it is another value.
    """
    return data(raw, "payload", MAX_FRAME_BYTES // 2, least=1)
