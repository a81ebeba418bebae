"""What the index shows: filters, order, and offers as JSON. Pure."""

from __future__ import annotations

import base64
import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from piecework.base.jsons import loads
from piecework.market.errors import Declined
from piecework.market.limits import (
    DEFAULT_LISTED_OFFERS,
    MAX_LISTED_OFFERS,
    MAX_OFFSET,
)
from piecework_protocol.capacity import capacity_of
from piecework_protocol.limits import MAX_DETAILS_DEPTH
from piecework_protocol.objects import ModelOffer, Offer, Service
from piecework_protocol.service import service_name
from piecework_protocol.types import Amount, Timestamp
from piecework_protocol.usual import assumed, price_with_steps, usual_jobs
from piecework_protocol.views import as_json, members
from piecework_protocol.wire import SignedOffer

PARAMETERS: Final = ("model", "max_price", "min_speed", "service", "sort", "limit", "offset")


class Sort(enum.Enum):
    """The order of a list. Equal ones stand by operator, so that a page is stable."""

    PRICE = "price"
    """Cheapest first, by `blended_price`."""
    SPEED = "speed"
    """Most tokens a second first."""
    FIRST = "first"
    """Shortest time to the first canvas first."""
    FREE = "free"
    """Most free slots first."""
    STAKE = "stake"
    """Most stake first."""


@dataclass(frozen=True, slots=True)
class Query:
    """`max_price`: base units for a million output tokens (`blended_price`); speed: tokens a
    second."""

    model: str | None = None
    max_price: int | None = None
    min_speed: int | None = None
    service: Service | None = None
    sort: Sort = Sort.PRICE
    limit: int = DEFAULT_LISTED_OFFERS
    offset: int = 0

    @property
    def is_filtered(self) -> bool:
        """Whether it leaves some out."""
        wanted = (self.model, self.max_price, self.min_speed, self.service)
        return any(value is not None for value in wanted)

    @property
    def url(self) -> str:
        """The address of the page that shows this."""
        standard = Query()
        values = {
            "model": self.model,
            "max_price": self.max_price,
            "min_speed": self.min_speed,
            "service": None if self.service is None else service_name(self.service),
            "sort": None if self.sort is standard.sort else self.sort.value,
            "limit": None if self.limit == standard.limit else self.limit,
            "offset": self.offset or None,
        }
        chosen = {name: value for name, value in values.items() if value is not None}
        return f"/?{urlencode(chosen)}" if chosen else "/"

    @classmethod
    def parse(cls, parameters: Mapping[str, str], only: Collection[str] = PARAMETERS) -> Query:
        """From a URL's query, with these parameters. `Declined` (400) names what is wrong."""
        unknown = sorted(set(parameters) - set(only))
        if unknown:
            raise Declined(400, "unknown_parameter", f"unknown parameter {unknown[0][:64]!r}")
        try:
            sort = Sort(parameters.get("sort", "price"))
        except ValueError:
            orders = ", ".join(sort.value for sort in Sort)
            raise Declined(400, "bad_parameter", f"sort is one of {orders}") from None
        limit = _number(parameters, "limit", MAX_LISTED_OFFERS)
        return cls(
            model=parameters.get("model", "")[:256] or None,
            max_price=_number(parameters, "max_price", 1 << 96),
            min_speed=_number(parameters, "min_speed", 1 << 32),
            service=_service(parameters.get("service", "")),
            sort=sort,
            limit=DEFAULT_LISTED_OFFERS if limit is None else limit,
            offset=_number(parameters, "offset", MAX_OFFSET) or 0,
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """One live offer. `wire_bytes` are passed on as they came; `stake` in the registry's base
    units."""

    signed: SignedOffer
    wire_bytes: bytes
    stake: Amount
    received_at: Timestamp


@dataclass(frozen=True, slots=True)
class Entry:
    """One model at one worker: a row of the list."""

    listed: Listed
    model: ModelOffer


def blended_price(model: ModelOffer) -> int:
    """One number to compare by: base units for a million output tokens at a canvas's mean steps.

    Both terms are signed prices, and the steps are the same for all. What a worker says of its own
    steps moves no order: otherwise the first place would be free for whoever claims the least.
    """
    return price_with_steps(model, assumed(model).steps_p50)


def measured_json(offer: Offer, model: ModelOffer) -> dict[str, Any]:
    """What a million output tokens cost with their steps in the worker's jobs, as it says itself.

    `source` tells receipts from its benchmark, and from an assumption where it says nothing.
    """
    usual = usual_jobs(offer, model)
    return {
        "price_per_million_output_tokens": {
            "p50": price_with_steps(model, usual.steps_p50),
            "p90": price_with_steps(model, usual.steps_p90),
        },
        **members(usual, "jobs", "source"),
    }


def offer_json(listed: Listed) -> dict[str, Any]:
    """One offer: decoded for readers, with the signed bytes for clients that verify them."""
    offer = listed.signed.offer
    return {
        **as_json(offer),
        "models": [model_json(offer, model) for model in offer.models],
        "details": _details(offer.details),
        "received_at": listed.received_at,
        "stake": listed.stake,
        "signed_offer": base64.b64encode(listed.wire_bytes).decode(),
    }


def model_json(offer: Offer, model: ModelOffer) -> dict[str, Any]:
    """One model of an offer. Prices in base units."""
    return {
        **as_json(model),
        "kinds": model.kind_names,
        "blended_price_per_million_output_tokens": blended_price(model),
        "measured": measured_json(offer, model),
        "capacity": capacity_of(offer, model).members(),
    }


def worker_json(listed: Listed, now: Timestamp) -> dict[str, Any]:
    """One worker with a live offer, in short."""
    offer = listed.signed.offer
    return {
        **members(offer, "operator", "endpoint", "slots", "slots_free", "queue_free"),
        "models": [model.name for model in offer.models],
        "stake": listed.stake,
        "expires_in_s": offer.expires_at - now,
    }


def matches(entry: Entry, query: Query) -> bool:
    """Whether a query asks for a model at a worker."""
    model = entry.model
    if query.model is not None and not _is(model, query.model):
        return False
    if query.max_price is not None and blended_price(model) > query.max_price:
        return False
    if query.service is not None and model.service is not query.service:
        return False
    return query.min_speed is None or model.tokens_per_second >= query.min_speed


def _is(model: ModelOffer, wanted: str) -> bool:
    return model.name == wanted or model.digest.hex() == wanted.removeprefix("0x").lower()


def _details(text: str) -> Any:
    """A worker's own facts, if they are the JSON object that they should be. Nobody pays by
    them."""
    try:
        details = loads(text, max_depth=MAX_DETAILS_DEPTH)
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}


def _service(text: str) -> Service | None:
    if not text:
        return None
    known = {service_name(service): service for service in Service}
    if text not in known:
        raise Declined(400, "bad_parameter", f"service is {' or '.join(known)}")
    return known[text]


def _number(parameters: Mapping[str, str], name: str, most: int) -> int | None:
    text = parameters.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 40 or int(text) > most:
        raise Declined(400, "bad_parameter", f"{name} is a whole number up to {most}")
    return int(text)
