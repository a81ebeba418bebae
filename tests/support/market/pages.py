"""Indexes that show what they were given, and a registry that knows some operators."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlsplit

from piecework_node.pricing.market import FollowedModel
from piecework_protocol.objects import Service
from piecework_protocol.types import Amount
from piecework_protocol.wire import SignedOffer, encode_offer
from tests.support.chain.fake_chain import FakeChain
from tests.support.market.offers import model, offer, operator, receiver

ME = operator("me").address
FOLLOWED = FollowedModel(model().digest, Service.REPLAYABLE)
NAMES = ("ann", "bob", "cai", "dee")


class Pages:
    """Indexes that show what they were given, by host."""

    def __init__(self, **shown: list[SignedOffer] | Exception | bytes) -> None:
        self.shown, self.urls = shown, list[str]()

    async def get_json(self, url: str) -> Any:
        return json.loads(await self.get(url))

    async def get(self, url: str) -> bytes:
        self.urls.append(url)
        page = self.shown[urlsplit(url).hostname or ""]
        if isinstance(page, Exception):
            raise page
        if isinstance(page, bytes):
            return page
        rows = [{"signed_offer": base64.b64encode(encode_offer(one)).decode()} for one in page]
        return json.dumps({"offers": rows, "total": len(rows)}).encode()


def asks(name: str, units: int, **changes: Any) -> SignedOffer:
    """An offer whose blended price is known: no steps are charged."""
    entry = model(price_per_million_output_tokens=Amount(units), price_per_thousand_steps=Amount(0))
    return offer(name, **{"models": (entry,), **changes})


def chain_of(*names: str) -> FakeChain:
    chain = FakeChain()
    for name in names:
        chain.register(operator(name).address, receiver(name))
    return chain
