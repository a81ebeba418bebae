"""The dimensions of the released model, for plans before its 50 GB are here.

What config.json of google/diffusiongemma-26B-A4B-it says could not be read where this was written.
These are the published figures; the widths of the two MLPs, 2112 and 704, are those with which they
add up to 25.2 billion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from piecework_model.checkpoint.dimensions import Blueprint, dimensions, published_tensors

NAME: Final = "diffusiongemma-26B-A4B"
_CONFIG: Final[Mapping[str, Any]] = {
    "canvas_length": 256,
    "text_config": {
        "vocab_size": 262_144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "moe_intermediate_size": 704,
        "num_experts": 128,
        "top_k_experts": 8,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "sliding_window": 1024,
        "max_position_embeddings": 262_144,
    },
}


def blueprint() -> Blueprint:
    """The text part of the released model."""
    of = dimensions(_CONFIG, Path("config.json"))
    return Blueprint(of, tuple(published_tensors(of)))
