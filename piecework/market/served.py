"""The models that somebody serves, each with its sums over workers. Kept as offers come and go.

By digest: names are claims, the digest is the model.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from piecework.market.listing import Listed, blended_price
from piecework_protocol.capacity import capacity_of
from piecework_protocol.objects import ModelOffer, Offer
from piecework_protocol.service import service_name
from piecework_protocol.types import Address, Digest, to_hex

_Key = TypeVar("_Key")
Rank: TypeAlias = tuple[int, Digest]
"""Most workers first, then by digest."""


@dataclass(slots=True)
class _Served:
    """One model as the workers that serve it describe it. The lists are sorted."""

    names: Counter[str] = field(default_factory=Counter)
    services: Counter[str] = field(default_factory=Counter)
    workers: Counter[Address] = field(default_factory=Counter)
    """A worker may offer a model in several entries."""
    slots_free: int = 0
    prices: list[int] = field(default_factory=list)
    speeds: list[int] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)

    def add(self, offer: Offer, model: ModelOffer) -> None:
        if offer.operator not in self.workers:
            self.slots_free += _free_for(offer, model.digest)
        self.workers[offer.operator] += 1
        self.names[model.name] += 1
        self.services[service_name(model.service)] += 1
        for values, value in self._figures(model):
            insort(values, value)

    def remove(self, offer: Offer, model: ModelOffer) -> None:
        _take(self.workers, offer.operator)
        if offer.operator not in self.workers:
            self.slots_free -= _free_for(offer, model.digest)
        _take(self.names, model.name)
        _take(self.services, service_name(model.service))
        for values, value in self._figures(model):
            del values[bisect_left(values, value)]

    def row(self, digest: Digest) -> dict[str, Any]:
        return {
            "digest": to_hex(digest),
            "names": sorted(self.names),
            "services": sorted(self.services),
            "workers": len(self.workers),
            "slots_free": self.slots_free,
            "lowest_blended_price_per_million_output_tokens": self.prices[0],
            "fastest_tokens_per_second": self.speeds[-1],
            "max_context": self.contexts[-1],
        }

    def _figures(self, model: ModelOffer) -> tuple[tuple[list[int], int], ...]:
        return (
            (self.prices, blended_price(model)),
            (self.speeds, model.tokens_per_second),
            (self.contexts, model.max_context),
        )


class ServedModels:
    """Every model that a listed offer has."""

    def __init__(self) -> None:
        self._served: dict[Digest, _Served] = {}
        self._ranks: list[Rank] = []

    def __len__(self) -> int:
        return len(self._served)

    def add(self, listed: Listed) -> None:
        """Count an offer in."""
        offer = listed.signed.offer
        for model in offer.models:
            served = self._served.setdefault(model.digest, _Served())
            before = len(served.workers)
            served.add(offer, model)
            self._move(model.digest, before, len(served.workers))

    def remove(self, listed: Listed) -> None:
        """Count out an offer that was counted in."""
        offer = listed.signed.offer
        for model in offer.models:
            served = self._served[model.digest]
            before = len(served.workers)
            served.remove(offer, model)
            self._move(model.digest, before, len(served.workers))
            if not served.workers:
                del self._served[model.digest]

    def page(self, limit: int, offset: int = 0) -> list[dict[str, Any]]:
        """Return models as JSON values, those of most workers first."""
        ranks = self._ranks[offset : offset + limit]
        return [self._served[digest].row(digest) for _, digest in ranks]

    def _move(self, digest: Digest, before: int, after: int) -> None:
        if before == after:
            return
        if before:
            del self._ranks[bisect_left(self._ranks, (-before, digest))]
        if after:
            insort(self._ranks, (-after, digest))


def _free_for(offer: Offer, model: Digest) -> int:
    """Free slots of a worker for a model, over all entries that it has of it."""
    mine = (capacity_of(offer, one).slots_free for one in offer.models if one.digest == model)
    return min(offer.slots_free, sum(mine))


def _take(counts: Counter[_Key], key: _Key) -> None:
    """Count one out, and forget what is counted no more."""
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
