"""Small random checkpoints for the tests of weights and memory, written once a session."""

from __future__ import annotations

from pathlib import Path

from transformers import DiffusionGemmaConfig

from bench.checkpoints import write_random
from piecework_model.training.architecture import build_config

VOCABULARY = 2304


def small_config(layers: int = 3, experts: int = 8) -> DiffusionGemmaConfig:
    """Wider than the bundled model and with more experts, so that one matrix is a small part of
    it."""
    config = build_config(VOCABULARY)
    text = config.text_config
    kinds = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    fields = {
        **text.to_dict(),
        "hidden_size": 192,
        "num_experts": experts,
        "moe_intermediate_size": 160,
    }
    fields |= {"num_hidden_layers": layers, "layer_types": kinds, "initializer_range": 0.1}
    fields["per_layer_config"] = {str(layers - 1): {"head_dim": 64}}
    return DiffusionGemmaConfig(
        **{**config.to_dict(), "text_config": fields, "initializer_range": 0.1}
    )


def write_small(folder: Path, layers: int = 3, experts: int = 8) -> Path:
    """Writes one, in several shards, and returns the folder."""
    write_random(folder, small_config(layers, experts), 5, "2MB")
    return folder
