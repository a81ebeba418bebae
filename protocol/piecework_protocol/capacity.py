"""The places of each entry of an offer, when it has several.

The signed members `slots`, `slots_free` and `queue_free` are sums over the worker's cards. A job is
bound to one entry. So a worker with several entries says in the `details` of its offer how many
places each of them has. That is a claim: nobody pays by it, and a worker refuses what it cannot
take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_protocol.limits import MAX_DETAILS_DEPTH
from piecework_protocol.objects import ModelOffer, Offer

MEMBER: Final = "capacity"
"""The member of an offer's `details`: a list with one object for each entry of its models."""
_PARSED: Final = 1_024
"""Offers whose details stay parsed. A ranking looks at each of them again."""


@dataclass(frozen=True, slots=True)
class EntryCapacity:
    """Jobs that run at once, those that could start now, and those that could wait."""

    slots: int
    slots_free: int
    queue_free: int

    def members(self) -> dict[str, int]:
        """Give the object that an offer's details have."""
        return {
            "slots": self.slots,
            "slots_free": self.slots_free,
            "queue_free": self.queue_free,
        }

    @property
    def is_full(self) -> bool:
        """Whether a job would be refused now."""
        return not self.slots_free and not self.queue_free


def capacity_of(offer: Offer, model: ModelOffer) -> EntryCapacity:
    """Give the places of an entry: what the worker says of it, at most those of the offer."""
    whole = EntryCapacity(offer.slots, offer.slots_free, offer.queue_free)
    if len(offer.models) < 2 or model not in offer.models:
        return whole
    said = _said(offer.details)
    place = offer.models.index(model)
    claim = said[place] if place < len(said) else None
    if claim is None:
        return whole
    return EntryCapacity(
        min(claim.slots, whole.slots),
        min(claim.slots_free, whole.slots_free),
        min(claim.queue_free, whole.queue_free),
    )


@lru_cache(maxsize=_PARSED)
def _said(details: str) -> tuple[EntryCapacity | None, ...]:
    """What the details say of each entry. None stands for what is not as it should be."""
    try:
        rows = loads(details, max_depth=MAX_DETAILS_DEPTH)[MEMBER]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(_row(row) for row in rows) if isinstance(rows, list) else ()


def _row(row: Any) -> EntryCapacity | None:
    if not isinstance(row, Mapping):
        return None
    counts = [_count(row.get(name)) for name in ("slots", "slots_free", "queue_free")]
    known = [count for count in counts if count is not None]
    return EntryCapacity(*known) if len(known) == len(counts) else None


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and value >= 0 else None
