"""The checkpoint that an operator says vLLM serves: its digest, its tokenizer, its canvases. No
torch.

vLLM reports a name and a length, never a digest. So the digest in the offer is the operator's word,
taken from a folder on this machine. What can be checked is checked: the endpoint's tokenizer must
give the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework_model import files
from piecework_model.checkpoint import manifest
from piecework_model.errors import CheckpointError
from piecework_model.text.tokens import TextCodec, load_codec
from piecework_protocol.limits import MAX_CANVAS_TOKENS
from piecework_protocol.types import Digest

CANVAS_TOKENS: Final = 256
"""For a model without canvases of its own. It is the canvas of the released diffusion model, so
that prices, credit windows and proofs have the same granularity. It is part of what the digest
stands for, so no setting changes it.
"""
MAX_VOCAB: Final = 2**24


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests need of a checkpoint."""

    codec: TextCodec
    canvas_size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """What the offer and the canvases need of a checkpoint."""

    name: str
    digest: Digest
    shape: Shape

    @property
    def codec(self) -> TextCodec:
        """The tokenizer."""
        return self.shape.codec

    @property
    def canvas_size(self) -> int:
        """In tokens."""
        return self.shape.canvas_size

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.shape.vocab_size


def load(folder: Path) -> ServedCheckpoint:
    """Read and verify a checkpoint folder. All of it is hashed. `CheckpointError` names the file at
    fault.
    """
    shape = load_shape(folder)
    name = folder.resolve().name
    pinned = (folder / manifest.MANIFEST_FILE).is_file()
    digest = (
        manifest.verify(folder)
        if pinned
        else manifest.manifest_digest(manifest.manifest_text(folder))
    )
    return ServedCheckpoint(name, Digest(digest), shape)


def load_shape(folder: Path) -> Shape:
    """Read what requests need of a checkpoint folder, without the weights."""
    config = files.read_json(folder / "config.json")
    vocab = _count(_text_config(config).get("vocab_size"), "vocab_size", MAX_VOCAB, folder)
    canvas = _count(
        config.get("canvas_length", CANVAS_TOKENS), "canvas_length", MAX_CANVAS_TOKENS, folder
    )
    eos_ids = _eos_ids(files.read_json(folder / "generation_config.json"), folder)
    return Shape(load_codec(folder, eos_ids), canvas, vocab)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the text model's part of the configuration. Multimodal models keep it apart."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _count(value: object, name: str, most: int, folder: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise CheckpointError(
            folder / "config.json", f"{name} is not a whole number from 1 to {most}"
        )
    return value


def _eos_ids(generation: dict[str, Any], folder: Path) -> frozenset[int]:
    value = generation.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(
            folder / "generation_config.json", "eos_token_id is missing or malformed"
        )
    return frozenset(ids)
