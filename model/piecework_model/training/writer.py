"""Writing a trained model in the published checkpoint format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.checkpoint.manifest import MANIFEST_FILE, manifest_text
from piecework_model.training import vocabulary

# The published defaults of generation, with the end marks of this tokenizer.
GENERATION_CONFIG = {
    "bos_token_id": vocabulary.BOS,
    "confidence_threshold": 0.005,
    "eos_token_id": list(vocabulary.END_IDS),
    "max_denoising_steps": 48,
    "max_new_tokens": 256,
    "pad_token_id": vocabulary.PAD,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
    "stability_threshold": 1,
    "t_max": 0.8,
    "t_min": 0.4,
}


def write_checkpoint(model: DiffusionGemmaForBlockDiffusion, folder: Path) -> None:
    """Write config, weights (rounded to bfloat16), tokenizer, chat template, generation config and
    manifest.

    `model` itself is rounded too, so that what is evaluated afterwards is what was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    generation = json.dumps(GENERATION_CONFIG, indent=2, sort_keys=True) + "\n"
    (folder / "generation_config.json").write_text(generation, encoding="utf-8")
    vocabulary.write_tokenizer(folder, model.config.text_config.max_position_embeddings)
    (folder / MANIFEST_FILE).write_text(manifest_text(folder), encoding="utf-8")
    model.float()
