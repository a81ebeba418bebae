"""What other workers ask for a model: verified offers of the worker's indexes, each operator once.

An index is not believed. It may hide workers, and it may be away. Every offer is verified against
its signature, the clock and the registry, so a price costs whoever invents it a stake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlencode

from piecework.base.http import HttpError, HttpLimits, host_of
from piecework_protocol.capacity import capacity_of
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.index_pages import parse_page
from piecework_protocol.objects import ModelOffer, Offer, Service
from piecework_protocol.offers import (
    OfferRejected,
    Standing,
    check_standing,
    check_terms,
    offer_signer,
)
from piecework_protocol.types import Address, Digest, Timestamp
from piecework_protocol.usual import assumed, price_with_steps
from piecework_protocol.wire import SignedOffer

MARKET_LIMITS: Final = HttpLimits(total_s=10.0, connect_s=5.0, max_bytes=8 * 1024 * 1024)
PAGE_OFFERS: Final = 100
"""Of each index, those with the most stake. Each costs one question to the registry an hour."""
REGISTRY_CALLS: Final = 4
"""At once. The node serves settlement first."""


class PageReader(Protocol):
    """A way to read an index (`piecework.base.http.HttpReader`)."""

    async def get(self, url: str) -> bytes:
        """Return the body of an answer.

        Raises:
            HttpError: there is none.
        """
        ...


class StakeRegistry(Protocol):
    """What the chain says of operators (`piecework.chain.reading.reader.ChainReader`)."""

    async def worker(self, operator: Address) -> Standing | None: ...

    async def is_signer(self, operator: Address, key: Address) -> bool: ...


class WantedModel(Protocol):
    """Which entries of offers are compared: those that sell the same thing."""

    @property
    def query(self) -> str:
        """What an index is asked for. Empty: every model."""
        ...

    def is_sold_by(self, entry: ModelOffer) -> bool: ...


@dataclass(frozen=True, slots=True)
class FollowedModel:
    """What the worker offers: the same model at the same service is what others are asked for."""

    digest: Digest
    service: Service

    @property
    def query(self) -> str:
        """The model of any service: the answer is filtered here."""
        return self.digest.hex()

    def is_sold_by(self, entry: ModelOffer) -> bool:
        """Whether an entry is of this model at this service."""
        return entry.digest == self.digest and entry.service is self.service


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model whose digest is not known here. Its name is what other workers say."""

    name: str
    service: Service

    @property
    def query(self) -> str:
        """The name, which an index compares too."""
        return self.name

    def is_sold_by(self, entry: ModelOffer) -> bool:
        """Whether an entry has this name at this service."""
        return entry.name == self.name and entry.service is self.service


@dataclass(frozen=True, slots=True)
class AnyModel:
    """Every model of a service, for a newcomer who has none yet."""

    service: Service
    query: str = ""

    def is_sold_by(self, entry: ModelOffer) -> bool:
        """Whether an entry is of this service."""
        return entry.service is self.service


@dataclass(frozen=True, slots=True)
class SeenOffers:
    """What may be believed of what indexes show.

    Attributes:
        offers: The newest of each operator, in no order.
        answered: The indexes that answered, as host[:port].
        away: Those that did not, and why.
    """

    offers: tuple[Offer, ...]
    answered: tuple[str, ...]
    away: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OperatorAsk:
    """What one operator asks for a model.

    Attributes:
        output: Base units for a million output tokens, of the cheapest entry.
        steps: Base units for a thousand steps, of the same entry.
        slots: Jobs of the model that run at once, as the worker says.
        slots_free: Those that could start now.
    """

    output: int
    steps: int
    slots: int
    slots_free: int


@dataclass(frozen=True, slots=True)
class MarketView:
    """What others ask.

    Attributes:
        prices: The blended price of each operator, in no order.
        answered: The indexes that answered, as host[:port].
        away: Those that did not, and why.
    """

    prices: tuple[int, ...]
    answered: tuple[str, ...]
    away: tuple[str, ...]


class MarketReader:
    """Looks at a market through several indexes."""

    def __init__(
        self,
        indexes: Sequence[str],
        http: PageReader,
        registry: StakeRegistry,
        domain: Domain,
        *,
        me: Address | None,
        token: Address,
    ) -> None:
        """domain: of the escrow. me: the worker's own operator, who does not count. None: not yet.

        token: what the worker is paid in. Base units of another one are another price.
        """
        self._indexes, self._http = indexes, http
        self._registry, self._domain = registry, domain
        self._me, self._token = me, token

    async def look(self, model: FollowedModel, now: Timestamp) -> MarketView:
        """Return what others ask for a model, with its mean steps.

        Raises:
            ChainError: the registry does not answer.
        """
        seen = await self.offers(model, now)
        prices = tuple(blended(offer, model) for offer in seen.offers)
        return MarketView(prices, seen.answered, seen.away)

    async def offers(self, model: WantedModel, now: Timestamp) -> SeenOffers:
        """Ask every index and verify what it shows.

        Raises:
            ChainError: the registry does not answer.
        """
        pages = await asyncio.gather(*(self._page(index, model) for index in self._indexes))
        answered, away, found = [], [], list[SignedOffer]()
        for index, page in zip(self._indexes, pages, strict=True):
            if isinstance(page, str):
                away.append(f"{host_of(index)}: {page}")
            else:
                answered.append(host_of(index))
                found += page
        believed = await self._verify(self._candidates(found, model), now)
        newest: dict[Address, Offer] = {}
        for offer in believed:
            known = newest.get(offer.operator)
            if known is None or known.sequence < offer.sequence:
                newest[offer.operator] = offer
        return SeenOffers(tuple(newest.values()), tuple(answered), tuple(away))

    async def _page(self, index: str, model: WantedModel) -> list[SignedOffer] | str:
        """The offers of an index, or why there are none."""
        query = {"model": model.query} if model.query else {}
        query |= {"sort": "stake", "limit": str(PAGE_OFFERS)}
        try:
            body = await self._http.get(f"{index.rstrip('/')}/v1/offers?{urlencode(query)}")
            return parse_page(body, PAGE_OFFERS)[0]
        except (HttpError, MalformedInput) as error:
            return str(error)

    def _candidates(
        self, found: Iterable[SignedOffer], model: WantedModel
    ) -> dict[Address, list[SignedOffer]]:
        """Offers of the model in our token by operator, each once, without our own."""
        by_operator: dict[Address, list[SignedOffer]] = {}
        for signed in found:
            operator = signed.offer.operator
            if operator == self._me or self._token not in signed.offer.tokens:
                continue
            if not _entries(signed.offer, model):
                continue
            known = by_operator.setdefault(operator, [])
            if signed not in known:
                known.append(signed)
        return by_operator

    async def _verify(
        self, candidates: Mapping[Address, Sequence[SignedOffer]], now: Timestamp
    ) -> list[Offer]:
        """Return what may be believed.

        The newest offer is chosen among these: an index that invents a newer one hides nobody.
        """
        gate = asyncio.Semaphore(REGISTRY_CALLS)

        async def of(operator: Address) -> list[Offer]:
            async with gate:
                standing = await self._registry.worker(operator)
                return [
                    signed.offer
                    for signed in candidates[operator]
                    if await self._is_good(signed, standing, now)
                ]

        found = await asyncio.gather(*map(of, candidates))
        return [offer for offers in found for offer in offers]

    async def _is_good(
        self, signed: SignedOffer, standing: Standing | None, now: Timestamp
    ) -> bool:
        offer = signed.offer
        try:
            check_terms(offer, now)
            signer = offer_signer(self._domain, signed)
            other = standing is not None and signer != offer.operator
            key = other and await self._registry.is_signer(offer.operator, signer)
            check_standing(offer, signer, standing, session_key=key)
        except OfferRejected:
            return False
        return True


def blended(offer: Offer, model: WantedModel) -> int:
    """The price of an operator's cheapest entry of a model, its mean steps included.

    What a worker says of its own steps counts nothing here, as in the order of an index.
    """
    return min(map(_with_steps, _entries(offer, model)))


def ask_of(offer: Offer, model: WantedModel) -> OperatorAsk:
    """What an operator asks for a model, and how many jobs of it run there."""
    entries = _entries(offer, model)
    cheapest = min(entries, key=_with_steps)
    places = [capacity_of(offer, entry) for entry in entries]
    # Entries that say nothing of their own have the places of the whole offer.
    slots = min(sum(place.slots for place in places), offer.slots)
    return OperatorAsk(
        cheapest.price_per_million_output_tokens,
        cheapest.price_per_thousand_steps,
        slots,
        min(sum(place.slots_free for place in places), offer.slots_free, slots),
    )


def _with_steps(entry: ModelOffer) -> int:
    return price_with_steps(entry, assumed(entry).steps_p50)


def _entries(offer: Offer, model: WantedModel) -> list[ModelOffer]:
    return [entry for entry in offer.models if model.is_sold_by(entry)]
