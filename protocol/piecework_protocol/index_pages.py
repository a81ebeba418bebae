"""The page of offers that an index shows (clause 3.1). Pure: clients and workers read it alike.

An index is not believed. What is read here has not been verified yet.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from piecework.base.jsons import loads
from piecework_protocol import wire
from piecework_protocol.errors import MalformedInput
from piecework_protocol.wire import SignedOffer


def parse_page(body: bytes, most: int) -> tuple[list[SignedOffer], int, int]:
    """Return the offers of an index's page, how many entries it has, and how many there are in all.

    Args:
        body: What the index answered.
        most: Entries that are read. More are left out.

    Entries that do not parse are left out of the first.

    Raises:
        MalformedInput: the answer is not a list of offers.
    """
    try:
        page: Any = loads(body)
        entries = page["offers"]
        total = page.get("total", 0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise MalformedInput("the index does not answer with a list of offers") from None
    if not isinstance(entries, list) or type(total) is not int:
        raise MalformedInput("the index does not answer with a list of offers")
    offers = []
    for entry in entries[:most]:
        try:
            data = base64.b64decode(entry["signed_offer"], validate=True)
            offers.append(wire.decode_offer(data))
        except (MalformedInput, KeyError, TypeError, binascii.Error, ValueError):
            continue
    return offers, len(entries), total
