"""The sizes that decide a model's memory, read from config.json and headers before anything is
loaded.

Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework_model import files, limits
from piecework_model.checkpoint import headers
from piecework_model.errors import CheckpointError
from piecework_model.layout import CacheLayout, LayerLayout
from piecework_protocol.limits import MAX_CANVAS_TOKENS

Tensors = tuple[tuple[str, tuple[int, ...]], ...]
"""Published names and shapes of weights."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What of a config.json decides about memory. Sizes in elements, canvas and context in
    tokens.
    """

    vocabulary: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    top_k: int
    heads: int
    layers: tuple[LayerLayout, ...]
    canvas: int
    max_context: int

    @property
    def chunk(self) -> int:
        """Tokens of a prefill chunk."""
        return limits.PREFILL_CHUNK_CANVASES * self.canvas

    @property
    def cache(self) -> CacheLayout:
        """How a sequence's keys and values are laid out."""
        return CacheLayout(self.layers, self.canvas, self.chunk)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model that is not loaded: its dimensions and its weights."""

    of: Dimensions
    tensors: Tensors


def read(folder: Path) -> Blueprint:
    """Read the blueprint of a checkpoint folder. Raises CheckpointError.

    For a config.json without weights, the weights are those that the published format has, without
    the vision tower.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "this folder does not exist")
    path = folder / "config.json"
    of = dimensions(files.read_json(path), path)
    if not any(folder.glob("*.safetensors*")):
        return Blueprint(of, tuple(published_tensors(of)))
    found = headers.read_folder(folder).values()
    return Blueprint(of, tuple((header.name, header.shape) for header in found))


def dimensions(config: Mapping[str, Any], path: Path) -> Dimensions:
    """Read the object of a config.json. Raises CheckpointError, which names `path`, if it is
    malformed.

    Missing values are those that transformers 5.23 falls back to.
    """
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(path, "has no text_config")
    try:
        return _dimensions(config, text)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"text_config is malformed: {error!r}") from error


def _dimensions(config: Mapping[str, Any], text: dict[str, Any]) -> Dimensions:
    def number(name: str, default: int | None = None, most: int = limits.MAX_DIMENSION) -> int:
        value = text.get(name, default)
        if type(value) is not int or not 0 < value <= most:
            raise ValueError(f"{name} is {value!r}")
        return value

    canvas = config.get("canvas_length", 256)
    if type(canvas) is not int or not 0 < canvas <= MAX_CANVAS_TOKENS:
        raise ValueError(f"canvas_length is {canvas!r}")
    count = number("num_hidden_layers", 30, limits.MAX_LAYERS)
    window = number("sliding_window", 512)
    if text.get("use_bidirectional_attention") == "all":
        window = window // 2 + 1
    experts = number("num_experts", most=limits.MAX_EXPERTS)
    return Dimensions(
        vocabulary=number("vocab_size", 262_144),
        hidden=number("hidden_size", 2304),
        intermediate=number("intermediate_size", 9216),
        expert_intermediate=number("moe_intermediate_size"),
        experts=experts,
        top_k=number("top_k_experts", most=experts),
        heads=number("num_attention_heads", 8),
        layers=tuple(
            LayerLayout(heads, dim, 0 if kind == "full_attention" else window)
            for kind, dim, heads in _attention(
                text, count, number("head_dim", 256), number("num_key_value_heads", 4)
            )
        ),
        canvas=canvas,
        max_context=number("max_position_embeddings", 131_072),
    )


def _attention(
    text: dict[str, Any], count: int, head_dim: int, kv_heads: int
) -> Iterator[tuple[str, int, int]]:
    """List (kind, head size, KV heads) of each layer.

    There are five sliding layers to one full layer, unless the file says otherwise.
    """
    kinds = text.get("layer_types") or [
        "full_attention" if (number + 1) % 6 == 0 else "sliding_attention"
        for number in range(count)
    ]
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} layer_types for {count} layers")
    kinds = [*kinds[:-1], "full_attention"]  # the last one always is
    written = text.get("per_layer_config")
    wide = {"head_dim": text.get("global_head_dim", 512)}
    if text.get("num_global_key_value_heads") is not None and text.get("attention_k_eq_v", True):
        wide["num_key_value_heads"] = text["num_global_key_value_heads"]
    for number, kind in enumerate(kinds):
        own = (
            (wide if kind == "full_attention" else {})
            if written is None
            else written.get(str(number), {})
        )
        sizes = own.get("head_dim", head_dim), own.get("num_key_value_heads", kv_heads)
        if not all(type(size) is int and 0 < size <= limits.MAX_DIMENSION for size in sizes):
            raise ValueError(f"layer {number} has heads {sizes}")
        yield kind, *sizes


def published_tensors(of: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List names and shapes of the text weights of such a model, which need not be on this disk."""
    hidden, wide, narrow = of.hidden, of.intermediate, of.expert_intermediate
    yield "model.decoder.embed_tokens.weight", (of.vocabulary, hidden)
    yield "model.decoder.norm.weight", (hidden,)
    for name, shape in _mlp(hidden, wide):
        yield f"model.decoder.self_conditioning.{name}", shape
    yield "model.decoder.self_conditioning.pre_norm.weight", (hidden,)
    for number, layer in enumerate(of.layers):
        prefix = f"model.decoder.layers.{number}."
        yield f"model.encoder.language_model.layers.{number}.layer_scalar", (1,)
        yield f"{prefix}layer_scalar", (1,)
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{prefix}{norm}_layernorm.weight", (hidden,)
        for norm in (
            "post_feedforward_layernorm_1",
            "post_feedforward_layernorm_2",
            "pre_feedforward_layernorm_2",
        ):
            yield f"{prefix}{norm}.weight", (hidden,)
        for name, shape in _mlp(hidden, wide):
            yield f"{prefix}mlp.{name}", shape
        for name, shape in _projections(hidden, of.heads, layer):
            yield f"{prefix}self_attn.{name}.weight", shape
        yield f"{prefix}router.proj.weight", (of.experts, hidden)
        yield f"{prefix}router.scale", (hidden,)
        yield f"{prefix}router.per_expert_scale", (of.experts,)
        yield f"{prefix}experts.gate_up_proj", (of.experts, 2 * narrow, hidden)
        yield f"{prefix}experts.down_proj", (of.experts, hidden, narrow)


def _mlp(hidden: int, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "gate_proj.weight", (wide, hidden)
    yield "up_proj.weight", (wide, hidden)
    yield "down_proj.weight", (hidden, wide)


def _projections(
    hidden: int, heads: int, layer: LayerLayout
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the projections of one layer's attention. In a full layer the values are the keys, so it
    has no v_proj.
    """
    queries, keys = heads * layer.head_dim, layer.heads * layer.head_dim
    yield "q_proj", (queries, hidden)
    yield "k_proj", (keys, hidden)
    if layer.window:
        yield "v_proj", (keys, hidden)
    yield "o_proj", (hidden, queries)
    yield "q_norm", (layer.head_dim,)
    yield "k_norm", (layer.head_dim,)


# --- the released model

RELEASED_NAME: Final = "diffusiongemma-26B-A4B"
_RELEASED_CONFIG: Final[Mapping[str, Any]] = {
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
"""As published, to plan before its 50 GB are on this disk. The two MLPs are 2112 and 704 wide: with
these widths the published figures add up to 25.2 billion parameters.
"""


def released_blueprint() -> Blueprint:
    """Return the text part of the released model."""
    of = dimensions(_RELEASED_CONFIG, Path("config.json"))
    return Blueprint(of, tuple(published_tensors(of)))
