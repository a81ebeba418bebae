"""`/v1/models`: what can be asked for, in the words that routers and clients look for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final

from piecework.base.amounts import Token
from piecework.client.gateway.formats.common import token_object
from piecework.client.jobs.rates import Rate, RateOf
from piecework_protocol.objects import Kind, ModelOffer, Offer
from piecework_protocol.views import ListedModel, listed_models, members

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
_STORED: Final = {
    "int4": "int4",
    "int8": "int8",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
}
"""Words of profiles, the smallest first."""
_FEATURES: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.TEXT: ("chat", "completions", "fill_in_the_middle", "responses"),
    Kind.READ: ("decisions",),
}
_MORE_FEATURES: Final = ("tools", "json_mode", "structured_outputs", "reasoning")


def model_list(
    offers: Iterable[Offer], rates: RateOf, token: Token, usd_price: Decimal | None = None
) -> dict[str, dict[str, Any]]:
    """The entries of `/v1/models`, by name.

    Prices under `pricing` are dollars for one token, as texts, when the price of the currency in
    dollars is known. `completion` has the denoising steps in it, so that it can be multiplied with
    a count of tokens. Those under `piecework` are base units of `token`.
    """
    return {
        name: _entry(name, model, rates, token, usd_price)
        for name, model in listed_models(offers, lambda model: model.name).items()
    }


def _entry(
    name: str, model: ListedModel, rates: RateOf, token: Token, usd_price: Decimal | None
) -> dict[str, Any]:
    lines = [entry for _, entry in model.entries]
    context = max(entry.max_context for entry in lines)
    output = max(entry.max_output for entry in lines)
    kinds = [kind for kind in _FEATURES if any(entry.kinds & kind.bit for entry in lines)]
    text = Kind.TEXT in kinds
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
        "quantization": _quantization(lines),
        "supported_sampling_parameters": ["temperature", "seed", "stop"] if text else [],
        "supported_parameters": list(TEXT_PARAMETERS) if text else [],
        "supported_features": [*features, *_MORE_FEATURES] if text else features,
        **({} if usd_price is None else {"pricing": _pricing(rate, cheapest, token, usd_price)}),
        "piecework": {
            **members(model, "digests", "services", "workers"),
            "kinds": [kind.name.lower() for kind in kinds],
            "profiles": _profiles(lines),
            "lowest_prices": members(
                cheapest,
                "price_per_million_prompt_tokens",
                "price_per_million_output_tokens",
                "price_per_thousand_steps",
            ),
            "lowest_output_price_per_million": rate.expected,
            "measured": rate_object(rate),
            "token": token_object(token),
        },
    }


def _profiles(lines: Sequence[ModelOffer]) -> list[str]:
    return sorted({entry.profile for entry in lines})


def _quantization(lines: Sequence[ModelOffer]) -> str:
    """How the weights are stored, in routers' words. Workers say it in their profiles."""
    words = {word for entry in lines for word in entry.profile.split("/")}
    found = [name for word, name in _STORED.items() if word in words]
    return found[0] if found else "unknown"


def rate_object(rate: Rate) -> dict[str, Any]:
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


def _pricing(rate: Rate, entry: ModelOffer, token: Token, usd_price: Decimal) -> dict[str, str]:
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
