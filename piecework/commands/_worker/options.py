"""Which options of `piecework worker` are which settings."""

from __future__ import annotations

from typing import Any

import typer

SETTING_OF_OPTION = {
    "payout": "payout",
    "bind": "bind",
    "endpoint": "endpoint",
    "price_prompt": "price_per_million_prompt_tokens",
    "price_output": "price_per_million_output_tokens",
    "price_steps": "price_per_thousand_steps",
    "slots": "slots",
    "index": "indexes",
    "relay": "relays",
    "rpc_url": "rpc_url",
    "signer": "signer",
    "model": "model",
    "vllm": "vllm_endpoints",
    "vllm_model": "vllm_model",
}


FLAG_OF_SETTING = {
    setting: "--" + option.replace("_", "-") for option, setting in SETTING_OF_OPTION.items()
}


def asked(context: typer.Context) -> frozenset[str]:
    """The settings that the person chose by an option. The others are defaults of `init`."""
    chosen = {
        setting
        for option, setting in SETTING_OF_OPTION.items()
        if getattr(context.get_parameter_source(option), "name", "") == "COMMANDLINE"
    }
    # What goes with a choice was chosen with it.
    chosen |= {"model_store"} if "model" in chosen else set()
    chosen |= {"backend"} if "vllm_endpoints" in chosen else set()
    return frozenset(chosen)


def where(
    context: typer.Context, bind: str, endpoint: str, relays: list[str] | None
) -> dict[str, Any]:
    """Where clients find the worker. With relays it listens only if it is told where."""
    listens = not relays or bool(endpoint) or "bind" in asked(context)
    return {"bind": bind if listens else "", "endpoint": endpoint, "relays": tuple(relays or ())}
