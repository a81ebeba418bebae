"""Joining a market by its descriptor: what a home pins, and what a newcomer might ask."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from piecework.base.clock import Clock
from piecework.base.files import read, write_private
from piecework.chain.descriptor import (
    MAX_DESCRIPTOR_BYTES,
    MarketDescriptor,
    PinnedMarket,
)
from piecework_node import config as settings
from piecework_node.home import Home
from piecework_node.pricing.market import AnyModel, MarketReader, PageReader, StakeRegistry
from piecework_node.times import now
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Service
from piecework_protocol.types import Address

ANY_MODEL: Final = AnyModel(Service.REPLAYABLE)
"""A newcomer has none yet. The first of each worker counts. Best effort charges no steps."""
MAX_CONFIG_BYTES: Final = 1024 * 1024
MARKED_USD: Final = 1.0
"""What `usd_per_token` is where a market marks its token as a dollar."""
PLACES: Final = ("indexes", "relays")
"""Settings that follow the descriptor while their owner leaves them alone."""


@dataclass(frozen=True, slots=True)
class PriceSuggestion:
    """Prices for a newcomer, in base units, and where they come from."""

    prompt: int
    output: int
    steps: int
    why: str


class BondedWorkers(StakeRegistry, Protocol):
    """What the suggestion reads from the chain. `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...


async def suggest_prices(
    indexes: Sequence[str],
    http: PageReader,
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
    market = MarketReader(indexes, http, registry, registry.domain, me=None, token=token)
    seen = await market.offers(ANY_MODEL, now(clock))
    priced = [next(filter(ANY_MODEL.is_sold_by, offer.models)) for offer in seen.offers]
    if not priced:
        return None
    return PriceSuggestion(
        statistics.median_low(m.price_per_million_prompt_tokens for m in priced),
        statistics.median_low(m.price_per_million_output_tokens for m in priced),
        statistics.median_low(m.price_per_thousand_steps for m in priced),
        f"the middle of what {len(priced)} bonded workers ask now, by "
        f"{', '.join(dict.fromkeys(seen.answered))}",
    )


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
    new one. The price of the token stays in any case, and the line says how to change it.
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
    said += _mark_line(config.usd_per_token, before, after)
    if text != written:
        write_private(home.config, text.encode(), replace=True)
        settings.load(home.root, environment={})
    return said


def _mark_line(mine: float, before: MarketDescriptor, after: MarketDescriptor) -> list[str]:
    """What a mark that came or went means for a home that shows dollars at a price, or none."""
    wanted = MARKED_USD if after.token_is_usd else 0.0
    if before.token_is_usd == after.token_is_usd or mine == wanted:
        return []
    now = "now says" if after.token_is_usd else "no longer says"
    line = f"the market {now} that its token is 1 USD. Your usd_per_token stays {mine:g}. "
    return [f"{line}To follow it: piecework worker set usd_per_token {wanted:g}"]


def _lines(toml: str) -> list[str]:
    return [line for line in toml.splitlines() if line and not line.startswith("#")]
