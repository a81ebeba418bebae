"""What the index shows: filters, order, and offers as JSON. Pure."""

from __future__ import annotations

import base64
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from piecework.base.jsons import loads
from piecework.market.errors import Declined
from piecework.market.limits import (
    DEFAULT_LISTED_OFFERS,
    MAX_LISTED_OFFERS,
    MAX_OFFERS,
    MEAN_STEPS,
)
from piecework.market.offer_store import Listed
from piecework_protocol.limits import MAX_DETAILS_DEPTH
from piecework_protocol.objects import ModelOffer, Service
from piecework_protocol.service import service_name
from piecework_protocol.types import Timestamp, to_hex
from piecework_protocol.views import as_json, listed_models, members


class Sort(enum.Enum):
    """The order of a list: cheapest or fastest first."""

    PRICE = "price"
    SPEED = "speed"


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

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Query:
        """From a URL's query; `Declined` (400) names what is wrong."""
        unknown = sorted(
            set(parameters)
            - {"model", "max_price", "min_speed", "service", "sort", "limit", "offset"}
        )
        if unknown:
            raise Declined(400, "unknown_parameter", f"unknown parameter {unknown[0][:64]!r}")
        try:
            sort = Sort(parameters.get("sort", "price"))
        except ValueError:
            raise Declined(400, "bad_parameter", "sort is price or speed") from None
        limit = _number(parameters, "limit", MAX_LISTED_OFFERS)
        return cls(
            model=parameters.get("model", "")[:256] or None,
            max_price=_number(parameters, "max_price", 1 << 96),
            min_speed=_number(parameters, "min_speed", 1 << 32),
            service=_service(parameters.get("service", "")),
            sort=sort,
            limit=DEFAULT_LISTED_OFFERS if limit is None else limit,
            offset=_number(parameters, "offset", MAX_OFFERS) or 0,
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One model at one worker: a row of the list."""

    listed: Listed
    model: ModelOffer


def blended_price(model: ModelOffer) -> int:
    """One number to compare by: base units for a million output tokens at a canvas's mean steps."""
    steps = min(model.max_steps, MEAN_STEPS)
    per_token = steps * model.price_per_thousand_steps * 1000 // model.canvas_size
    return model.price_per_million_output_tokens + per_token


def select(offers: Iterable[Listed], query: Query) -> tuple[Entry, ...]:
    """The rows that a query asks for, in its order; ties by operator, so that a page is stable."""
    entries = [Entry(listed, model) for listed in offers for model in listed.signed.offer.models]
    entries = [e for e in entries if _matches(e.model, query)]
    if query.sort is Sort.SPEED:
        entries.sort(key=lambda e: (-e.model.tokens_per_second, e.listed.signed.offer.operator))
    else:
        entries.sort(key=lambda e: (blended_price(e.model), e.listed.signed.offer.operator))
    return tuple(entries)


def offers_json(entries: Iterable[Entry], query: Query) -> dict[str, Any]:
    """One page. Each offer once, at the place of its best row, with the bytes that a client
    verifies itself."""
    unique: dict[bytes, Listed] = {}
    for entry in entries:
        unique.setdefault(entry.listed.signed.offer.operator, entry.listed)
    chosen = list(unique.values())
    page = chosen[query.offset : query.offset + query.limit]
    return {"offers": [offer_json(listed) for listed in page], "total": len(chosen)}


def offer_json(listed: Listed) -> dict[str, Any]:
    """One offer: decoded for readers, with the signed bytes for clients that verify them."""
    offer = listed.signed.offer
    return {
        **as_json(offer),
        "models": [model_json(model) for model in offer.models],
        "details": _details(offer.details),
        "received_at": listed.received_at,
        "stake": listed.stake,
        "signed_offer": base64.b64encode(listed.wire_bytes).decode(),
    }


def model_json(model: ModelOffer) -> dict[str, Any]:
    """One model of an offer. Prices in base units."""
    return {**as_json(model), "blended_price_per_million_output_tokens": blended_price(model)}


def models_json(offers: Iterable[Listed]) -> dict[str, Any]:
    """Every model that somebody serves, by digest: names are claims, the digest is the model."""
    served = listed_models((listed.signed.offer for listed in offers), lambda model: model.digest)
    rows = [
        {
            "digest": to_hex(digest),
            **members(model, "names", "services", "workers"),
            "slots_free": sum(offer.slots_free for offer, _ in model.entries),
            "lowest_blended_price_per_million_output_tokens": min(
                blended_price(entry) for _, entry in model.entries
            ),
            "fastest_tokens_per_second": max(e.tokens_per_second for _, e in model.entries),
            "max_context": max(entry.max_context for _, entry in model.entries),
        }
        for digest, model in served.items()
    ]
    return {"models": sorted(rows, key=lambda row: (-int(str(row["workers"])), row["digest"]))}


def workers_json(offers: Iterable[Listed], now: Timestamp) -> dict[str, Any]:
    """Every worker with a live offer, in short."""
    rows = [
        {
            **members(x.signed.offer, "operator", "endpoint", "slots", "slots_free", "queue_free"),
            "models": [model.name for model in x.signed.offer.models],
            "stake": x.stake,
            "expires_in_s": x.signed.offer.expires_at - now,
        }
        for x in offers
    ]
    return {"workers": sorted(rows, key=lambda row: str(row["operator"]))}


def _matches(model: ModelOffer, query: Query) -> bool:
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
