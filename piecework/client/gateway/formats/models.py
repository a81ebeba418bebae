"""`/v1/models`: what can be asked for, in the words that routers and clients look for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from piecework.base.amounts import Token
from piecework.client.gateway.formats.common import bad, token_object
from piecework.client.jobs.output_rates import OutputRate, RateOf
from piecework_protocol.objects import Kind, ModelOffer, Offer
from piecework_protocol.offers import takes_images
from piecework_protocol.views import PRICES, ListedModel, listed_models, members

MAX_LISTED_MODELS: Final = 1000
"""An entry takes 2 KB. Anybody with a stake may offer 64 models."""
_MILLION: Final = 1_000_000
_STEPS: Final = 1_000
TEXT_PARAMETERS: Final = (
    "max_tokens",
    "temperature",
    "seed",
    "stop",
    "n",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "structured_outputs",
    "reasoning_effort",
)
_PACKED: Final = {"int4": "int4", "int8": "int8", "fp8": "fp8"}
"""How a profile names a format of packed weights, before its first minus, and what routers call it.
The smallest first.
"""
_PLAIN: Final = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""How a profile names the arithmetic, and what routers call weights that are stored so. The
smallest first."""
_NOT_PACKED: Final = "none"
_UNKNOWN: Final = "unknown"
_QUANTIZATIONS: Final = (*_PACKED.values(), *_PLAIN.values())
_FEATURES: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.TEXT: ("chat", "completions", "fill_in_the_middle", "responses"),
    Kind.READ: ("decisions",),
}
_MORE_FEATURES: Final = ("tools", "json_mode", "structured_outputs", "reasoning")


@dataclass(frozen=True, slots=True)
class ModelPage:
    """Which models are asked for: `limit` of them, behind the name `after`."""

    limit: int = MAX_LISTED_MODELS
    after: str = ""

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> ModelPage:
        """Read a URL's query. Raises `ApiError` (400)."""
        limit = parameters.get("limit", str(MAX_LISTED_MODELS))
        if not limit.isascii() or not limit.isdecimal() or len(limit) > 9 or int(limit) < 1:
            bad("limit is a whole number above 0", "limit")
        return cls(min(int(limit), MAX_LISTED_MODELS), parameters.get("after", ""))

    def cut(self, names: Iterable[str]) -> tuple[list[str], bool]:
        """Return the names of the page, sorted, and whether there are more behind it."""
        behind = sorted(name for name in names if name > self.after)
        return behind[: self.limit], len(behind) > self.limit


WHOLE: Final = ModelPage()


def model_entry(
    name: str, offers: Iterable[Offer], rates: RateOf, token: Token, usd: Decimal | None = None
) -> dict[str, Any] | None:
    """Return the entry of one model, or None if nobody serves it. As `model_list` has it."""
    model = listed_models(offers, lambda model: model.name).get(name)
    return None if model is None else _entry(name, model, rates, token, usd)


def model_list(
    offers: Iterable[Offer],
    rates: RateOf,
    token: Token,
    usd_price: Decimal | None = None,
    page: ModelPage = WHOLE,
) -> dict[str, Any]:
    """One page of `/v1/models`, sorted by name, in the form of OpenAI's lists.

    Prices under `pricing` are dollars for one token, as texts, when the price of the currency in
    dollars is known. `completion` has the denoising steps in it, so that it can be multiplied with
    a count of tokens. Those under `piecework` are base units of `token`.
    """
    models = listed_models(offers, lambda model: model.name)
    names, more = page.cut(models)
    data = [_entry(name, models[name], rates, token, usd_price) for name in names]
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {}
    return {"object": "list", "data": data, "has_more": more, **ends}


def _entry(
    name: str, model: ListedModel, rates: RateOf, token: Token, usd_price: Decimal | None
) -> dict[str, Any]:
    lines = [entry for _, entry in model.entries]
    context = max(entry.max_context for entry in lines)
    output = max(entry.max_output for entry in lines)
    kinds = [kind for kind in _FEATURES if any(entry.kinds & kind.bit for entry in lines)]
    text = Kind.TEXT in kinds
    images = any(takes_images(offer) for offer, _ in model.entries)
    features = [feature for kind in kinds for feature in _FEATURES[kind]]
    rate, cheapest = min(
        ((rates(offer, entry), entry) for offer, entry in model.entries),
        key=lambda found: found[0].expected,
    )
    return {
        "id": name,
        "object": "model",
        "created": model.entries[0][0].issued_at,
        "owned_by": "piecework",
        "name": name,
        "context_length": context,
        "max_model_len": context,
        "max_output_length": output,
        "input_modalities": ["text", *(["image"] if images else [])],
        "output_modalities": ["text"],
        "quantization": _quantization(lines),
        "supported_sampling_parameters": ["temperature", "seed", "stop"] if text else [],
        "supported_parameters": list(TEXT_PARAMETERS) if text else [],
        "supported_features": [*features, *_MORE_FEATURES] if text else features,
        **({} if usd_price is None else {"pricing": _pricing(rate, cheapest, token, usd_price)}),
        "piecework": {
            **members(model, "digests", "services", "workers"),
            "kinds": [kind.name.lower() for kind in kinds],
            "profiles": _profiles(lines),
            "lowest_prices": members(cheapest, *PRICES),
            "lowest_output_price_per_million": rate.expected,
            "measured": rate_object(rate),
            "token": token_object(token),
        },
    }


def _profiles(lines: Sequence[ModelOffer]) -> list[str]:
    return sorted({entry.profile for entry in lines})


def _quantization(lines: Sequence[ModelOffer]) -> str:
    """How the weights are stored, in routers' words: the smallest format of all workers."""
    found = {stored_as(entry.profile) for entry in lines}
    return next((name for name in _QUANTIZATIONS if name in found), _UNKNOWN)


def stored_as(profile: str) -> str:
    """Return how a worker of this profile stores most weights, as OpenRouter spells it.

    An engine's profile is `device/build/dtype/quantization/…`. The quantization is "none", or the
    format of the experts and then that of the linears, such as "int4-g64+fp8". A long profile may
    be cut behind the first. The experts are nine tenths of a model. Of other profiles nothing is
    known.
    """
    parts = profile.split("/")
    if len(parts) < 4 or parts[2] not in _PLAIN:
        return _UNKNOWN
    if parts[3] == _NOT_PACKED:
        return _PLAIN[parts[2]]
    experts = parts[3].partition("+")[0].partition("-")[0]
    return _PACKED.get(experts, _UNKNOWN)


def rate_object(rate: OutputRate) -> dict[str, Any]:
    """What a million output tokens cost with their steps: `expected` is what a quote goes by, and
    the rest is what the worker claims."""
    return {
        "expected": rate.expected,
        "own_jobs": round(rate.own_jobs, 1),
        "claimed": {
            "p50": rate.claimed_p50,
            "p90": rate.claimed_p90,
            **members(rate.claim, "jobs", "source"),
        },
    }


def _pricing(
    rate: OutputRate, entry: ModelOffer, token: Token, usd_price: Decimal
) -> dict[str, str]:
    """Dollars for one token, of the cheapest offer: what is paid with steps, and its two parts."""

    def dollars(base_units: int, per: int) -> str:
        dear = Decimal(base_units).scaleb(-token.decimals) * usd_price / per
        return format(dear.normalize(), "f")

    return {
        "prompt": dollars(entry.price_per_million_prompt_tokens, _MILLION),
        "completion": dollars(rate.expected, _MILLION),
        "output_token": dollars(entry.price_per_million_output_tokens, _MILLION),
        "denoising_step": dollars(entry.price_per_thousand_steps, _STEPS),
    }
