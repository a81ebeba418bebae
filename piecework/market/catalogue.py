"""The live offers in every order that a reader asks for. Pure, and kept sorted as offers come.

Ten thousand workers renew their offers twice a minute, and nobody waits for a sort of them all. An
offer is put at its place in each order when it comes, and its JSON is written once. What has to
look at every offer (a filter, the sums by model) is done once a second in a large market.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, TypeAlias

from piecework.market.history import MarketSample, sample
from piecework.market.limits import MAX_PAGE_BYTES
from piecework.market.listing import (
    Entry,
    Listed,
    Query,
    Sort,
    blended_price,
    matches,
    models_json,
    offer_json,
    worker_json,
)
from piecework_protocol.capacity import capacity_of
from piecework_protocol.types import Address, Timestamp

Key: TypeAlias = tuple[int, Address, int]
"""What an order goes by, then the operator and the place in its offer, so that no two are equal."""
MAX_KEPT_QUERIES: Final = 64
EXACT_OFFERS: Final = 500
"""Up to so many offers, a reader sees each one at once."""
_LAST: Final = Address(b"\xff" * 20)

_VALUES: Final[Mapping[Sort, Callable[[Entry], int]]] = {
    Sort.PRICE: lambda entry: blended_price(entry.model),
    Sort.SPEED: lambda entry: -entry.model.tokens_per_second,
    Sort.FIRST: lambda entry: entry.model.first_canvas_ms,
    Sort.FREE: lambda entry: -capacity_of(entry.listed.signed.offer, entry.model).slots_free,
    Sort.STAKE: lambda entry: -entry.listed.stake,
}


@dataclass(frozen=True, slots=True)
class FoundEntries:
    """What a query finds.

    Attributes:
        entries: One page: each model at each worker, in the order of the query.
        total: How many there are on all pages.
    """

    entries: tuple[Entry, ...]
    total: int


@dataclass(frozen=True, slots=True)
class _Matching:
    """All that a query asks for, in its order. `operators`: each worker once."""

    entries: tuple[Entry, ...]
    operators: tuple[Address, ...]


@dataclass(slots=True)
class _Second:
    """What was looked through in one second."""

    now: Timestamp
    found: dict[Query, _Matching] = field(default_factory=dict)
    models: dict[str, Any] | None = None
    sample: MarketSample | None = None


class Catalogue:
    """Offers by operator, and their models in each order."""

    def __init__(self, exact: int = EXACT_OFFERS) -> None:
        """With more than `exact` offers, a reader sees a new one after a second at most."""
        self._exact = exact
        self._offers: dict[Address, Listed] = {}
        self._operators: list[Address] = []
        """Sorted."""
        self._ends: list[tuple[Timestamp, Address]] = []
        """When offers expire, sorted."""
        self._orders: dict[Sort, list[tuple[Key, Entry]]] = {sort: [] for sort in Sort}
        self._texts: dict[Address, str] = {}
        self._second = _Second(Timestamp(0))

    def __len__(self) -> int:
        return len(self._offers)

    def __contains__(self, operator: Address) -> bool:
        return operator in self._offers

    def get(self, operator: Address) -> Listed | None:
        """Return the offer of a worker, which may have expired."""
        return self._offers.get(operator)

    def put(self, listed: Listed) -> None:
        """Take an offer in, in place of the worker's last one."""
        offer = listed.signed.offer
        self.remove(offer.operator)
        self._forget()
        self._offers[offer.operator] = listed
        insort(self._operators, offer.operator)
        insort(self._ends, (offer.expires_at, offer.operator))
        for sort, order in self._orders.items():
            for item in _items(sort, listed):
                insort(order, item, key=_key)

    def remove(self, operator: Address) -> None:
        """Forget the offer of a worker, if there is one."""
        listed = self._offers.pop(operator, None)
        self._texts.pop(operator, None)
        if listed is None:
            return
        self._forget()
        del self._operators[bisect_left(self._operators, operator)]
        del self._ends[bisect_left(self._ends, (listed.signed.offer.expires_at, operator))]
        for sort, order in self._orders.items():
            for key, _ in _items(sort, listed):
                del order[bisect_left(order, key, key=_key)]

    def count(self, now: Timestamp) -> int:
        """Return how many offers have not expired."""
        return len(self._ends) - self._first_live(now)

    def live(self, now: Timestamp) -> tuple[Listed, ...]:
        """Return the offers that have not expired, in the order in which they will."""
        return tuple(self._offers[operator] for _, operator in self._ends[self._first_live(now) :])

    def expired(self, now: Timestamp) -> tuple[Address, ...]:
        """Return the workers whose offers have expired."""
        return tuple(operator for _, operator in self._ends[: self._first_live(now)])

    def find(self, query: Query, now: Timestamp) -> FoundEntries:
        """Return one page of models at workers."""
        entries = self._matching(query, now).entries
        return FoundEntries(entries[query.offset : query.offset + query.limit], len(entries))

    def offers_text(self, query: Query, now: Timestamp) -> str:
        """Return one page of offers as JSON. Each stands once, at the place of its best model.

        A page ends early at `MAX_PAGE_BYTES`, and with one offer at least.
        """
        found = self._matching(query, now).operators
        texts, size = list[str](), 0
        for operator in found[query.offset : query.offset + query.limit]:
            # One that was withdrawn since is gone from the page. The next second counts without.
            if operator in self._offers:
                text = self._text(operator)
                size += len(text)
                if texts and size > MAX_PAGE_BYTES:
                    break
                texts.append(text)
        return f'{{"offers": [{", ".join(texts)}], "total": {len(found)}}}'

    def workers(self, query: Query, now: Timestamp) -> dict[str, Any]:
        """Return one page of workers, by operator, as JSON values."""
        live = (
            offer
            for operator in self._operators
            if (offer := self._offers[operator]).signed.offer.expires_at > now
        )
        page = islice(live, query.offset, query.offset + query.limit)
        return {"workers": [worker_json(one, now) for one in page], "total": self.count(now)}

    def models(self, now: Timestamp) -> dict[str, Any]:
        """Return every model with its sums, as JSON values."""
        second = self._second_of(now)
        if second.models is None:
            second.models = models_json(self._priced(now))
        return second.models

    def sample(self, now: Timestamp) -> MarketSample:
        """Return the figures of the market."""
        second = self._second_of(now)
        if second.sample is None:
            prices = [price for price, _ in self._priced(now)]
            second.sample = sample(self.live(now), now, prices)
        return second.sample

    def _priced(self, now: Timestamp) -> Iterator[tuple[int, Entry]]:
        """Give each live model at each worker with its blended price, cheapest first."""
        for key, entry in self._orders[Sort.PRICE]:
            if entry.listed.signed.offer.expires_at > now:
                yield key[0], entry

    def _matching(self, query: Query, now: Timestamp) -> _Matching:
        second = self._second_of(now)
        every = replace(query, limit=0, offset=0)
        found = second.found.get(every)
        if found is None:
            entries = tuple(
                entry
                for _, entry in self._orders[query.sort]
                if entry.listed.signed.offer.expires_at > now and matches(entry, query)
            )
            operators = dict.fromkeys([e.listed.signed.offer.operator for e in entries])
            found = _Matching(entries, tuple(operators))
            if len(second.found) < MAX_KEPT_QUERIES:
                second.found[every] = found
        return found

    def _second_of(self, now: Timestamp) -> _Second:
        if self._second.now != now:
            self._second = _Second(now)
        return self._second

    def _forget(self) -> None:
        if len(self._offers) <= self._exact:
            self._second = _Second(Timestamp(0))

    def _first_live(self, now: Timestamp) -> int:
        """Return the place in `_ends` of the first offer that has not expired."""
        return bisect_right(self._ends, (now, _LAST))

    def _text(self, operator: Address) -> str:
        text = self._texts.get(operator)
        if text is None:
            text = self._texts[operator] = json.dumps(offer_json(self._offers[operator]))
        return text


def _items(sort: Sort, listed: Listed) -> Iterator[tuple[Key, Entry]]:
    value, operator = _VALUES[sort], listed.signed.offer.operator
    for place, model in enumerate(listed.signed.offer.models):
        entry = Entry(listed, model)
        yield (value(entry), operator, place), entry


def _key(item: tuple[Key, Entry]) -> Key:
    return item[0]
