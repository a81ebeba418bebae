"""The environment of the engine's process."""

from __future__ import annotations

from collections.abc import Mapping


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without our settings and secrets, a hub's token, and the network."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("PIECEWORK_") and name != "HF_TOKEN"
    }
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A model.py in the current folder must not be imported.
        "PYTHONSAFEPATH": "1",
    }
