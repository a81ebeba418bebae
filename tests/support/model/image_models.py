"""A small random checkpoint that takes images, in the published format.

Its window is 32 tokens, as is a prefill chunk, and an image has up to 70: so images are longer than
both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
)
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.text.images import ImageSettings
from tests.support.model import gemma_grammar

SPECIAL: Final = (*gemma_grammar.SPECIAL, *gemma_grammar.IMAGE_MARKS)
BEGIN, MARK, END = map(SPECIAL.index, gemma_grammar.IMAGE_MARKS)
CANVAS: Final = 16
WINDOW: Final = 32
CONTEXT: Final = 512
SETTINGS: Final = ImageSettings(patch=4, most_tokens=70)
PROCESSOR: Final[dict[str, Any]] = {
    "image_processor": {
        "image_processor_type": "Gemma4ImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True,
        "do_resize": True,
        "max_soft_tokens": SETTINGS.most_tokens,
        "patch_size": SETTINGS.patch,
        "pooling_kernel_size": SETTINGS.pooling,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
}


def image_config(vocabulary: int, spread: float, **text_fields: Any) -> DiffusionGemmaConfig:
    """A model of three layers, one of them full, whose images see both ways.

    spread: standard deviation of the weights. With 0.3 the last bit of a sum changes the text, with
    0.05 it hardly ever does.
    """
    text = DiffusionGemmaTextConfig(
        **{
            "vocab_size": vocabulary,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
            "use_bidirectional_attention": "vision",
            **text_fields,
        }
    )
    text.initializer_range = spread
    return DiffusionGemmaConfig(
        text_config=text,
        vision_config=Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            patch_size=SETTINGS.patch,
            pooling_kernel_size=SETTINGS.pooling,
            position_embedding_size=SETTINGS.most_tokens * SETTINGS.pooling,
            standardize=True,
            initializer_range=spread,
        ),
        canvas_length=CANVAS,
        boi_token_id=BEGIN,
        eoi_token_id=END,
        image_token_id=MARK,
        initializer_range=spread,
        architectures=["DiffusionGemmaForBlockDiffusion"],
    )


def random_model(vocabulary: int, spread: float, **text_fields: Any) -> Any:
    """Build it with random weights, those of the vision tower included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = DiffusionGemmaForBlockDiffusion(image_config(vocabulary, spread, **text_fields))
        tower = model.model.encoder.vision_tower
        torch.nn.init.normal_(tower.patch_embedder.position_embedding_table, std=0.3)
        torch.nn.init.normal_(tower.std_bias, std=0.3)
        torch.nn.init.normal_(tower.std_scale, mean=1.0, std=0.1)
    model.set_experts_implementation("eager")
    return model.eval().requires_grad_(False)


def write_with_images(folder: Path, spread: float = 0.3, **text_fields: Any) -> Path:
    """Write such a checkpoint with its tokenizer, chat template and image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = gemma_grammar.build_tokenizer(SPECIAL)
    model = random_model(tokenizer.get_vocab_size(), spread, **text_fields).bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>"}))
    (folder / "chat_template.jinja").write_text(gemma_grammar.TEMPLATE)
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR))
    shutil.copyfile(
        bundled_checkpoint_path() / "generation_config.json", folder / "generation_config.json"
    )
    return folder
