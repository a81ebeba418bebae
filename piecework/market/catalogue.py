"""The live offers in every order that a reader asks for. Pure, and kept sorted as offers come.

Ten thousand workers renew their offers twice a minute, and nobody waits for a look through them
all. An offer is put at its place in each order when it comes, the sums of the market and of each
model are changed by what it changes, and its JSON is written once. What has expired leaves before
anything is read. Only a filter and the spreads of a sample look at every offer, once a second in a
large market.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import lcm
from typing import Any, Final, TypeAlias

from piecework.market.history import FiveNumbers, MarketSample
from piecework.market.limits import MAX_PAGE_BYTES
from piecework.market.listing import (
    Entry,
    Listed,
    Query,
    Sort,
    blended_price,
    matches,
    offer_json,
    worker_json,
)
from piecework.market.served import ServedModels
from piecework_protocol.capacity import capacity_of
from piecework_protocol.types import Address, Timestamp

Key: TypeAlias = tuple[int, Address, int]
"""What an order goes by, then the operator and the place in its offer, so that no two are equal."""
_Item: TypeAlias = tuple[Key, Entry]
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
    spreads: tuple[FiveNumbers, FiveNumbers] | None = None
    """Of prices and of speeds."""


class Catalogue:
    """Offers by operator, and their models in each order."""

    def __init__(self, exact: int = EXACT_OFFERS) -> None:
        """With more than `exact` offers, a filter shows a new one after a second at most."""
        self._exact = exact
        self._offers: dict[Address, Listed] = {}
        self._operators: list[Address] = []
        """Sorted."""
        self._ends: list[tuple[Timestamp, Address]] = []
        """When offers expire, sorted."""
        self._orders: dict[Sort, list[_Item]] = {sort: [] for sort in Sort}
        self._firsts: dict[Sort, list[Key]] = {sort: [] for sort in Sort}
        """The first place of each worker in each order."""
        self._slots = self._slots_free = 0
        self._models = ServedModels()
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
        self._slots += offer.slots
        self._slots_free += offer.slots_free
        self._models.add(listed)
        for sort in Sort:
            items = _items(sort, listed)
            for item in items:
                insort(self._orders[sort], item, key=_key)
            insort(self._firsts[sort], min(key for key, _ in items))

    def remove(self, operator: Address) -> None:
        """Forget the offer of a worker, if there is one."""
        listed = self._offers.pop(operator, None)
        self._texts.pop(operator, None)
        if listed is None:
            return
        self._forget()
        offer = listed.signed.offer
        del self._operators[bisect_left(self._operators, operator)]
        del self._ends[bisect_left(self._ends, (offer.expires_at, operator))]
        self._slots -= offer.slots
        self._slots_free -= offer.slots_free
        self._models.remove(listed)
        for sort in Sort:
            items, order, firsts = _items(sort, listed), self._orders[sort], self._firsts[sort]
            for key, _ in items:
                del order[bisect_left(order, key, key=_key)]
            del firsts[bisect_left(firsts, min(key for key, _ in items))]

    def expire(self, now: Timestamp) -> int:
        """Forget the offers that have expired. Return how many they were."""
        gone = self._ends[: bisect_right(self._ends, (now, _LAST))]
        for _, operator in gone:
            self.remove(operator)
        return len(gone)

    def count(self, now: Timestamp) -> int:
        """Return how many offers have not expired."""
        self.expire(now)
        return len(self._offers)

    def live(self, now: Timestamp) -> Sequence[Address]:
        """Return the workers whose offers have not expired, sorted."""
        self.expire(now)
        return tuple(self._operators)

    def find(self, query: Query, now: Timestamp) -> FoundEntries:
        """Return one page of models at workers."""
        self.expire(now)
        page = slice(query.offset, query.offset + query.limit)
        if query.is_filtered:
            entries = self._matching(query, now).entries
            return FoundEntries(entries[page], len(entries))
        order = self._orders[query.sort]
        return FoundEntries(tuple(entry for _, entry in order[page]), len(order))

    def offers_text(self, query: Query, now: Timestamp) -> str:
        """Return one page of offers as JSON. Each stands once, at the place of its best model.

        A page ends early at `MAX_PAGE_BYTES`, and with one offer at least.
        """
        self.expire(now)
        page = slice(query.offset, query.offset + query.limit)
        if query.is_filtered:
            found = self._matching(query, now).operators
            total, shown = len(found), found[page]
        else:
            total = len(self._offers)
            shown = tuple(operator for _, operator, _ in self._firsts[query.sort][page])
        texts, size = list[str](), 0
        for operator in shown:
            # One that was withdrawn since is gone from the page. The next second counts without.
            if operator in self._offers:
                text = self._text(operator)
                size += len(text)
                if texts and size > MAX_PAGE_BYTES:
                    break
                texts.append(text)
        return f'{{"offers": [{", ".join(texts)}], "total": {total}}}'

    def workers(self, query: Query, now: Timestamp) -> dict[str, Any]:
        """Return one page of workers, by operator, as JSON values."""
        self.expire(now)
        page = self._operators[query.offset : query.offset + query.limit]
        shown = [worker_json(self._offers[operator], now) for operator in page]
        return {"workers": shown, "total": len(self._operators)}

    def models(self, now: Timestamp, limit: int, offset: int = 0) -> dict[str, Any]:
        """Return one page of models with their sums, those of most workers first."""
        self.expire(now)
        return {"models": self._models.page(limit, offset), "total": len(self._models)}

    def sample(self, now: Timestamp) -> MarketSample:
        """Return the figures of the market. Its spreads may be a second old in a large one."""
        self.expire(now)
        second = self._second_of(now)
        if second.spreads is None:
            # Fastest first, so speeds are counted from the end.
            second.spreads = (
                _spread(self._orders[Sort.PRICE], lambda at: at[0][0]),
                _spread(self._orders[Sort.SPEED][::-1], lambda at: at[1].model.tokens_per_second),
            )
        prices, speeds = second.spreads
        return MarketSample(
            now,
            len(self._offers),
            len(self._models),
            self._slots,
            self._slots_free,
            *prices,
            *speeds,
        )

    def _matching(self, query: Query, now: Timestamp) -> _Matching:
        second = self._second_of(now)
        every = replace(query, limit=0, offset=0)
        found = second.found.get(every)
        if found is None:
            entries = tuple(entry for _, entry in self._orders[query.sort] if matches(entry, query))
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

    def _text(self, operator: Address) -> str:
        text = self._texts.get(operator)
        if text is None:
            text = self._texts[operator] = json.dumps(offer_json(self._offers[operator]))
        return text


def _spread(items: Sequence[_Item], value: Callable[[_Item], int]) -> FiveNumbers:
    """Return the least, the quartiles and the most of items in their order.

    Each worker counts once: a model has its share of the worker's offer. Models cost nothing to
    invent, and nobody moves the middle of the market by their number.
    """
    if not items:
        return (None,) * 5
    sizes = [len(entry.listed.signed.offer.models) for _, entry in items]
    of_all = lcm(*set(sizes))
    shares = {size: of_all // size for size in set(sizes)}
    # How much lies before each. Of equal shares that is the item's number.
    before = list(accumulate([shares[size] for size in sizes], initial=0))[:-1]
    at = (bisect_right(before, before[-1] * part // 4) - 1 for part in range(5))
    least, lower, middle, upper, most = (value(items[place]) for place in at)
    return least, lower, middle, upper, most


def _items(sort: Sort, listed: Listed) -> list[_Item]:
    value, offer = _VALUES[sort], listed.signed.offer
    entries = [Entry(listed, model) for model in offer.models]
    return [((value(e), offer.operator, place), e) for place, e in enumerate(entries)]


def _key(item: _Item) -> Key:
    return item[0]
