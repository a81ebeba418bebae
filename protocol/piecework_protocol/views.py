"""Values of the protocol as JSON, for people and programs. Pure.

One rule for every value: bytes as 0x hex, whole numbers as numbers, enums by their names. Amounts
are base units. This JSON is never hashed or signed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, TypeVar

from piecework_protocol.objects import ModelOffer, Offer, Service
from piecework_protocol.service import service_name
from piecework_protocol.types import to_hex

PRICES: Final = (
    "price_per_million_prompt_tokens",
    "price_per_million_output_tokens",
    "price_per_thousand_steps",
)
"""The prices of a model in an offer."""

K = TypeVar("K", bound=Hashable)


def as_json(value: Any) -> Any:
    """Return a value as JSON has it. A dataclass becomes an object with its fields."""
    if is_dataclass(value) and not isinstance(value, type):
        return members(value, *(f.name for f in fields(value)))
    if isinstance(value, bytes):
        return to_hex(value)
    if isinstance(value, Service):
        return service_name(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [as_json(one) for one in value]
    return value


def members(value: Any, *names: str) -> dict[str, Any]:
    """Return an object with these attributes of a value."""
    return {name: as_json(getattr(value, name)) for name in names}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model as the workers that serve it describe it. Never empty."""

    entries: tuple[tuple[Offer, ModelOffer], ...]

    @property
    def names(self) -> list[str]:
        """What the workers call it, in order. A name is a worker's claim."""
        return sorted({model.name for _, model in self.entries})

    @property
    def digests(self) -> list[str]:
        """What it is, as 0x hex, in order."""
        return sorted({to_hex(model.digest) for _, model in self.entries})

    @property
    def services(self) -> list[str]:
        """The services at which it is served, in order."""
        return sorted({service_name(model.service) for _, model in self.entries})

    @property
    def workers(self) -> int:
        """How many entries of offers serve it."""
        return len(self.entries)


def listed_models(offers: Iterable[Offer], key: Callable[[ModelOffer], K]) -> dict[K, ListedModel]:
    """Return the models of many offers, put together by a key such as the digest or the name."""
    found: dict[K, list[tuple[Offer, ModelOffer]]] = {}
    for offer in offers:
        for model in offer.models:
            found.setdefault(key(model), []).append((offer, model))
    return {name: ListedModel(tuple(entries)) for name, entries in found.items()}
