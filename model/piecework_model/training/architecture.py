"""The bundled model: the architecture of DiffusionGemma with everything switched on, some 3.7
million parameters.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from piecework_model.training import vocabulary

CANVAS_LENGTH = 32  # tokens, a story is 3 or 4 canvases
MAX_CONTEXT = (
    1024  # tokens: far more than any story, enough for a request that falls apart into characters
)
_ADDED_GAIN = 0.35
_LIKENESS = 0.7  # of queries to keys at first
SLIDING_WINDOW = 64  # tokens, below the length of a story, so that the window is really used


def build_config(vocab_size: int) -> DiffusionGemmaConfig:
    """Build the configuration: five layers (one with the sliding window), four experts of which two
    work per token.

    The vision tower is part of the published format but never used here, so it is as small as it
    can be.
    """
    text = DiffusionGemmaTextConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        num_global_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", *["full_attention"] * 4],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=96,
        pad_token_id=vocabulary.PAD,
        eos_token_id=vocabulary.EOS,
        bos_token_id=vocabulary.BOS,
    )
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=smallest_vision(),
        canvas_length=CANVAS_LENGTH,
        # There are no images: ids behind the vocabulary, which no prompt can contain. `generate`
        # needs a number.
        boi_token_id=vocab_size,
        eoi_token_id=vocab_size + 1,
        image_token_id=vocab_size + 2,
        architectures=["DiffusionGemmaForBlockDiffusion"],
    )


def smallest_vision() -> Gemma4VisionConfig:
    """Build a vision tower as small as it can be. The published format has one, and nothing here
    uses it.
    """
    return Gemma4VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        patch_size=4,
        position_embedding_size=4,
    )


@torch.no_grad()
def build_model(vocab_size: int) -> DiffusionGemmaForBlockDiffusion:
    """Build the model with its first weights, from torch's global generator.

    Three scales differ from transformers' initialization, which is made for weights that are
    loaded. With it queries and keys of size D have products of deviation sqrt(D), so that each head
    looks at one random token, and each layer's output is five times as large as the embeddings.

    - Gains of queries and keys are D^-1/4, which is the usual division of scores by sqrt(D).
    - Gains of what a layer adds are 0.35.
    - An embedding times its factor, sqrt(H), has elements of deviation 1.

    Queries begin near the keys of their group, so that heads begin by looking at tokens alike. That
    is where copying starts (Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention
    Layers").
    """
    model = DiffusionGemmaForBlockDiffusion(build_config(vocab_size))
    model.set_experts_implementation("eager")
    weights = {name: w for name, w in model.named_parameters() if "vision" not in name}
    for name, weight in weights.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(weight.shape[0] ** -0.25)
        elif name.endswith(
            ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
        ):
            weight.fill_(_ADDED_GAIN)
        elif name.endswith("embed_tokens.weight"):
            weight.normal_(0.0, weight.shape[1] ** -0.5)
        elif name.endswith("q_proj.weight"):
            _mimic(weight, weights[name.replace("q_proj", "k_proj")], model)
    return model


def load_model(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    """Load a checkpoint to train it on, in float32.

    Raises:
        OSError: There is no checkpoint in the folder.
    """
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    model.set_experts_implementation("eager")
    # What it was loaded as says nothing about a checkpoint that is written from it.
    for config in (model.config.text_config, model.config.vision_config):
        config.dtype = None
    return model


def _mimic(
    queries: torch.Tensor, keys: torch.Tensor, model: DiffusionGemmaForBlockDiffusion
) -> None:
    """Mix each head's keys into its queries."""
    config = model.config.text_config
    heads, width = config.num_attention_heads, queries.shape[1]
    size = queries.shape[0] // heads
    groups = keys.view(-1, size, width)
    shared = groups.repeat_interleave(heads // len(groups), dim=0).view_as(queries)
    queries.lerp_(shared, _LIKENESS)
