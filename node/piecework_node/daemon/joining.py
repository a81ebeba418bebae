"""Joining a market by its descriptor: what a home pins, and what a newcomer might ask."""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.files import read, write_private
from piecework.base.http import HttpError, host_of
from piecework.chain.descriptor import (
    MAX_DESCRIPTOR_BYTES,
    MarketDescriptor,
    PinnedMarket,
)
from piecework.chain.reader import RegisteredWorker
from piecework_node import config as settings
from piecework_node.home import Home
from piecework_node.times import now
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import ModelOffer, Service
from piecework_protocol.offers import OfferRejected, check_standing, check_terms, offer_signer
from piecework_protocol.types import Address
from piecework_protocol.wire import SignedOffer, decode_offer

MAX_ASKED_OFFERS: Final = 100
"""Of each index. A median of so many is one."""
MAX_CONFIG_BYTES: Final = 1024 * 1024
PLACES: Final = ("indexes", "relays")
"""Settings that follow the descriptor while their owner leaves them alone."""


@dataclass(frozen=True, slots=True)
class PriceSuggestion:
    """Prices for a newcomer, in base units, and where they come from."""

    prompt: int
    output: int
    steps: int
    why: str


class OfferPages(Protocol):
    """A way to read an index (`piecework.base.http.HttpReader`)."""

    async def get_json(self, url: str) -> Any:
        """Return a JSON value.

        Raises:
            HttpError: there is none.
        """
        ...


class BondedWorkers(Protocol):
    """What the suggestion reads from the chain. `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...

    async def worker(self, operator: Address) -> RegisteredWorker | None: ...


async def suggest_prices(
    indexes: Sequence[str],
    http: OfferPages,
    registry: BondedWorkers,
    clock: Clock,
    *,
    token: Address,
) -> PriceSuggestion | None:
    """Return the middle of what bonded workers ask now. None: no index shows one.

    Every offer is verified against the registry. An index can hide offers and cannot make one up.
    token: what the newcomer is paid in. Base units of another one are another price.

    Raises:
        ChainError: the chain does not answer.
    """
    offers: dict[Address, SignedOffer] = {}
    hosts = []
    for index in indexes:
        for signed in await _shown(index, http):
            if token in signed.offer.tokens and await _is_good(signed, registry, clock):
                offers.setdefault(signed.offer.operator, signed)
                hosts.append(host_of(index))
    asked = [_asked(signed) for signed in offers.values()]
    priced = [model for model in asked if model is not None]
    if not priced:
        return None
    return PriceSuggestion(
        statistics.median_low(m.price_per_million_prompt_tokens for m in priced),
        statistics.median_low(m.price_per_million_output_tokens for m in priced),
        statistics.median_low(m.price_per_thousand_steps for m in priced),
        f"the middle of what {len(priced)} bonded workers ask now, by "
        f"{', '.join(dict.fromkeys(hosts))}",
    )


async def _shown(index: str, http: OfferPages) -> list[SignedOffer]:
    """The offers of an index, as far as they can be read. One that is away shows none."""
    try:
        body = await http.get_json(f"{index.rstrip('/')}/v1/offers?limit={MAX_ASKED_OFFERS}")
        rows: Any = body["offers"]
        encoded = [row["signed_offer"] for row in rows[:MAX_ASKED_OFFERS]]
        return [decode_offer(base64.b64decode(text, validate=True)) for text in encoded]
    except (HttpError, MalformedInput, ValueError, KeyError, TypeError):
        return []


async def _is_good(signed: SignedOffer, registry: BondedWorkers, clock: Clock) -> bool:
    try:
        check_terms(signed.offer, now(clock))
        signer = offer_signer(registry.domain, signed)
        standing = await registry.worker(signed.offer.operator)
        check_standing(signed.offer, signer, standing, session_key=False)
    except OfferRejected:
        return False
    return True


def _asked(signed: SignedOffer) -> ModelOffer | None:
    """A worker's first replayable model. Best effort charges no steps."""
    replayable = (m for m in signed.offer.models if m.service is Service.REPLAYABLE)
    return next(replayable, None)


# --- what a home pins


def pinned(home: Home) -> PinnedMarket | None:
    """Return the market that a home has pinned, or None.

    Raises:
        BadDescriptor: the file is damaged.
        FileError: it cannot be read.
    """
    if not home.market.is_file():
        return None
    return PinnedMarket.decode(read(home.market, 2 * MAX_DESCRIPTOR_BYTES))


def pin(home: Home, market: PinnedMarket) -> None:
    """Keep a market that its owner has accepted."""
    home.create()
    write_private(home.market, market.encode(), replace=True)


def follow(home: Home, before: MarketDescriptor, after: MarketDescriptor) -> list[str]:
    """Bring indexes and relays of a home up to date, and return one line for each that differs.

    What the owner wrote stays. Only a setting that still has the old descriptor's value gets the
    new one.
    """
    if not home.config.is_file():
        return []
    written = read(home.config, MAX_CONFIG_BYTES).decode()
    text, said = written, []
    config = settings.load(home.root, environment={})
    for name in PLACES:
        old, new = getattr(before, name), getattr(after, name)
        if old == new or getattr(config, name) == new:
            continue
        (line,) = _lines(settings.to_toml({name: new}))
        found = re.findall(rf"(?m)^{name} = .*$", text)
        if getattr(config, name) == old and found == _lines(settings.to_toml({name: old})):
            text = text.replace(found[0], line)
            said.append(f"{name} follow the market: {', '.join(new) or 'none'}")
        else:
            said.append(f"the market names other {name}. Yours stay. To follow it: {line}")
    if text != written:
        write_private(home.config, text.encode(), replace=True)
        settings.load(home.root, environment={})
    return said


def _lines(toml: str) -> list[str]:
    return [line for line in toml.splitlines() if line and not line.startswith("#")]
