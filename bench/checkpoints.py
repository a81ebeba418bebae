"""Checkpoints with random weights, in the published format, for measurements that need size and not
sense.

*mid*: 72.8 M parameters, everything switched on that the released model has: 8 experts of which 2
work, sliding windows of 128 tokens at 5 layers to 1 full one, canvases of 64. Same seed, same
bytes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
)

from piecework_model.checkpoint.manifest import (
    MANIFEST_FILE,
    bundled_checkpoint_path,
    manifest_text,
)
from piecework_model.training.architecture import smallest_vision

SEED: Final = 20261125
WEIGHT_SPREAD: Final = 0.06
"""Standard deviation of the weights: logits with a spread of about 2 and entropies between 0 and 6
nats. With transformers' 0.02 every distribution is flat."""
MID_SHARD: Final = "40MB"
"""Several shards, as the released model has."""


def mid_config() -> DiffusionGemmaConfig:
    """The configuration of *mid*."""
    text = DiffusionGemmaTextConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=960,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        global_head_dim=128,
        num_global_key_value_heads=2,
        max_position_embeddings=4096,
        sliding_window=128,
        layer_types=[
            *["sliding_attention"] * 5,
            "full_attention",
            "sliding_attention",
            "full_attention",
        ],
        num_experts=8,
        top_k_experts=2,
        moe_intermediate_size=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    text.initializer_range = WEIGHT_SPREAD
    return _with_small_vision(text, canvas=64)


def write_mid(folder: Path, seed: int = SEED) -> None:
    """Writes *mid* with the bundled tokenizer, whose ids are the first of the 4,096."""
    write_random(folder, mid_config(), seed, MID_SHARD)


def write_random(folder: Path, config: DiffusionGemmaConfig, seed: int, shard: str) -> None:
    """Writes a checkpoint of `config` with normally distributed weights in bfloat16, shards of at
    most `shard`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(config)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, max_shard_size=shard)
    bundled = bundled_checkpoint_path()
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        shutil.copyfile(bundled / name, folder / name)
    (folder / MANIFEST_FILE).write_text(manifest_text(folder), encoding="utf-8")


def _with_small_vision(text: DiffusionGemmaTextConfig, canvas: int) -> DiffusionGemmaConfig:
    """The vision tower belongs to the format and is never used: as small as it can be."""
    size = text.vocab_size
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=smallest_vision(),
        canvas_length=canvas,
        boi_token_id=size,
        eoi_token_id=size + 1,
        image_token_id=size + 2,
        initializer_range=text.initializer_range,
        architectures=["DiffusionGemmaForBlockDiffusion"],
    )
