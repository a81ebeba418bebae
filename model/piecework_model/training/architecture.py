"""The bundled model: the architecture of DiffusionGemma with everything switched on, about a
million parameters.
"""

from __future__ import annotations

from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from piecework_model.training import vocabulary

CANVAS_LENGTH = 32  # tokens, a story is 3 or 4 canvases
MAX_CONTEXT = (
    1024  # tokens: far more than any story, enough for a request that falls apart into characters
)
SLIDING_WINDOW = 64  # tokens, below the length of a story, so that the window is really used


def build_config(vocab_size: int) -> DiffusionGemmaConfig:
    """Build the configuration: three layers (one with the sliding window), four experts of which
    two work per token.

    The vision tower is part of the published format but never used here, so it is as small as it
    can be.
    """
    text = DiffusionGemmaTextConfig(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=64,
        num_global_key_value_heads=2,
        max_position_embeddings=MAX_CONTEXT,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", *["full_attention"] * 3],
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=128,
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
