"""How much memory a model needs, computed from its configuration before anything is loaded. Pure, no torch.

Weights are exact (`precision.stored_bytes` is what the loader stores by), keys and values are exact, what a
step needs beside them is an upper bound. Bytes are of one device unless they are called host bytes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from model import files, headers, limits, precision
from model.errors import CheckpointError, DeviceError
from model.precision import DTYPE_BYTES, Dtype, Precision, Quantization

GIB: Final = 2**30
LOGIT_COPIES: Final = 6
"""Float32 arrays [C, V] alive at once while one row is sampled; 5 were counted, one is for the allocator."""
PREFILL_CHUNK_TOKENS: Final = 2048
"""Prompt tokens whose activations are alive at once."""
CUDA_RESERVE_BYTES: Final = GIB
"""CUDA's context, cuBLAS workspaces and what the allocator cannot use: an estimate, not a measurement."""
CPU_RESERVE_SHARE: Final = 0.25
"""Of host memory left to the operating system and everything else that runs here."""
MIN_CACHE_SHARE: Final = 0.1
"""Of the experts that must fit the device when the rest is in host memory; below this every step copies
nearly all of them, and a CPU is no slower."""

Tensors = Iterable[tuple[str, tuple[int, ...]]]
"""Published names and shapes of weights."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's attention. `window`: tokens that it looks back at most, or None for all."""

    head_dim: int
    kv_heads: int
    window: int | None


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What of a config.json decides about memory. Sizes in elements, canvas and context in tokens."""

    vocabulary: int
    hidden: int
    intermediate: int
    expert_intermediate: int
    experts: int
    top_k: int
    heads: int
    layers: tuple[Layer, ...]
    canvas: int
    max_context: int


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model shall run. `memory_bytes`: all of the device's; of a CPU, all of the host's."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    host_memory_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What is left for a model. From totals, not from what is free at the moment: the choice of a
        precision must not change from one start to the next."""
        if self.kind == "cuda":
            return max(0, self.memory_bytes - CUDA_RESERVE_BYTES)
        return int(self.memory_bytes * (1 - CPU_RESERVE_SHARE))

    @property
    def usable_host_bytes(self) -> int:
        """What of the host's memory can hold experts; none where the host is the device."""
        return int(self.host_memory_bytes * (1 - CPU_RESERVE_SHARE)) if self.kind == "cuda" else 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights in one precision. unused: the vision tower, which stays in host memory."""

    shared_bytes: int
    experts_bytes: int
    unused_bytes: int


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs in one precision for `rows` rows of `context` tokens each.

    offloaded: the experts are in host memory (host_bytes), and cache_bytes of the device hold a part of them.
    """

    precision: Precision
    dtype: Dtype
    quantization: Quantization
    rows: int
    context: int
    offloaded: bool
    weights_bytes: int
    kv_bytes: int
    work_bytes: int
    cache_bytes: int
    host_bytes: int

    @property
    def device_bytes(self) -> int:
        """All of it that is on the device."""
        return self.weights_bytes + self.kv_bytes + self.work_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """The need that was chosen, and in one sentence why."""

    need: Need
    reason: str

    @property
    def expert_budget_bytes(self) -> int | None:
        """For the loader: bytes of the device for experts whose home is the host, or None."""
        return self.need.cache_bytes if self.need.offloaded else None


# --- the model


def dimensions(config: Mapping[str, Any], path: Path) -> Dimensions:
    """Reads the object of a config.json; `path` is named in the CheckpointError when it is malformed.

    Where the file is silent, what transformers 5.23 falls back to.
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
    if type(canvas) is not int or not 0 < canvas <= limits.MAX_DIMENSION:
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
            Layer(dim, heads, None if kind == "full_attention" else window)
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
    """(kind, head size, KV heads) of each layer: five sliding ones to one full, unless the file says
    otherwise.
    """
    kinds = text.get("layer_types") or [
        "full_attention" if (number + 1) % 6 == 0 else "sliding_attention" for number in range(count)
    ]
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} layer_types for {count} layers")
    kinds = [*kinds[:-1], "full_attention"]  # the last one always is
    written = text.get("per_layer_config")
    wide = {"head_dim": text.get("global_head_dim", 512)}
    if text.get("num_global_key_value_heads") is not None and text.get("attention_k_eq_v", True):
        wide["num_key_value_heads"] = text["num_global_key_value_heads"]
    for number, kind in enumerate(kinds):
        own = (wide if kind == "full_attention" else {}) if written is None else written.get(str(number), {})
        sizes = own.get("head_dim", head_dim), own.get("num_key_value_heads", kv_heads)
        if not all(type(size) is int and 0 < size <= limits.MAX_DIMENSION for size in sizes):
            raise ValueError(f"layer {number} has heads {sizes}")
        yield kind, *sizes


def published_tensors(of: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the text weights of such a model, for one that is not on this disk."""
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


def _projections(hidden: int, heads: int, layer: Layer) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Attention of one layer: a full layer's values are its keys, it has no v_proj."""
    queries, keys = heads * layer.head_dim, layer.kv_heads * layer.head_dim
    yield "q_proj", (queries, hidden)
    yield "k_proj", (keys, hidden)
    if layer.window is not None:
        yield "v_proj", (keys, hidden)
    yield "o_proj", (hidden, queries)
    yield "q_norm", (layer.head_dim,)
    yield "k_norm", (layer.head_dim,)


def read(folder: Path) -> tuple[Dimensions, list[tuple[str, tuple[int, ...]]]]:
    """Dimensions and weights of a checkpoint folder; of a bare config.json, the published weights."""
    path = folder / "config.json"
    of = dimensions(files.read_json(path), path)
    if not any(folder.glob("*.safetensors*")):
        return of, list(published_tensors(of))
    return of, [(header.name, header.shape) for header in headers.read_folder(folder).values()]


# --- what it needs


def weights(tensors: Tensors, dtype: Dtype, quantization: Quantization) -> Weights:
    """Bytes of these weights once loaded."""
    shared = experts = unused = 0
    for name, shape in tensors:
        size = precision.stored_bytes(name, shape, dtype, quantization)
        if precision.is_experts(name):
            experts += size
        elif precision.is_unused(name):
            unused += size
        else:
            shared += size
    return Weights(shared, experts, unused)


def kv_bytes(of: Dimensions, context: int, dtype: Dtype) -> int:
    """Keys and values of one row whose prompt and canvases have `context` tokens."""
    return (
        sum(
            2 * layer.kv_heads * layer.head_dim * min(context, layer.window or context) for layer in of.layers
        )
        * DTYPE_BYTES[dtype]
    )


def work_bytes(of: Dimensions, rows: int, context: int, dtype: Dtype) -> int:
    """An upper bound of what a step needs beside weights and KV cache.

    Logits of the row that is being sampled; soft embeddings and canvases of all; activations of the tokens in
    one pass, norms in float32 and masks among them; the largest matrix unpacked, three times over.
    """
    size = DTYPE_BYTES[dtype]
    tokens = max(rows * of.canvas, min(context, PREFILL_CHUNK_TOKENS))
    widest = max(of.heads * layer.head_dim for layer in of.layers)
    a_token = size * (8 * of.hidden + 4 * widest + 3 * max(of.intermediate, 2 * of.expert_intermediate))
    a_token += 4 * 3 * of.hidden + 8 * 2 * of.top_k * of.experts  # norms in float32; the routing masks
    logits = LOGIT_COPIES * of.canvas * of.vocabulary * 4
    soft = rows * of.canvas * (of.hidden * size + 8)
    masks = 2 * min(context, PREFILL_CHUNK_TOKENS) * context
    unpacked = 3 * size * of.hidden * max(widest, of.intermediate, 2 * of.expert_intermediate)
    return logits + soft + tokens * a_token + masks + unpacked


def need(
    of: Dimensions, tensors: Tensors, what: tuple[Precision, Dtype, Quantization], rows: int, context: int
) -> Need:
    """What the model needs with everything on the device."""
    name, dtype, quantization = what
    size = weights(tensors, dtype, quantization)
    return Need(
        precision=name,
        dtype=dtype,
        quantization=quantization,
        rows=rows,
        context=context,
        offloaded=False,
        weights_bytes=size.shared_bytes + size.experts_bytes,
        kv_bytes=rows * kv_bytes(of, context, dtype),
        work_bytes=work_bytes(of, rows, context, dtype),
        cache_bytes=0,
        host_bytes=size.unused_bytes,
    )


def offloaded(whole: Need, tensors: Tensors, device: Device) -> Need:
    """The same with the experts in host memory and as many of them on the device as there is room for."""
    size = weights(tensors, whole.dtype, whole.quantization)
    rest = whole.device_bytes - size.experts_bytes
    return replace(
        whole,
        offloaded=True,
        weights_bytes=size.shared_bytes,
        cache_bytes=max(0, min(size.experts_bytes, device.usable_bytes - rest)),
        host_bytes=size.experts_bytes + size.unused_bytes,
    )


def fits(wanted: Need, device: Device) -> bool:
    """Whether it fits; if experts are in host memory, whether that has room and enough of them are cached."""
    if wanted.device_bytes > device.usable_bytes:
        return False
    if not wanted.offloaded:
        return True
    return (
        wanted.cache_bytes >= MIN_CACHE_SHARE * wanted.host_bytes
        and wanted.host_bytes <= device.usable_host_bytes
    )


def choose(
    of: Dimensions,
    tensors: Tensors,
    device: Device,
    *,
    rows: int,
    context: int,
    asked: Precision | Literal["auto"] = "auto",
) -> Choice:
    """The most faithful precision that fits `device`, or the one that is asked for if that fits.

    Raises DeviceError, with what the smallest would need, when nothing does.
    """
    known = list(tensors)
    dtype: Dtype = "bfloat16" if device.kind == "cuda" else "float32"
    possible = [what for what in options(dtype, asked) if is_possible(known, what[2])]
    whole = [need(of, known, what, rows, context) for what in possible]
    for tried, wanted in enumerate(whole):
        if fits(wanted, device):
            return Choice(wanted, _because(wanted, device, whole[:tried], asked))
    # Offloading costs a copy over the bus for every expert that is not there: of the smallest precision only.
    last = offloaded(whole[-1], known, device) if whole else None
    if last is not None and fits(last, device):
        return Choice(last, _because(last, device, whole, asked))
    smallest = (
        f"{whole[-1].precision} needs {_gib(whole[-1].device_bytes)}" if whole else "no precision packs it"
    )
    raise DeviceError(
        f"the model does not fit {device.name}: {smallest} for {rows} rows of {context} tokens, "
        f"{_gib(device.usable_bytes)} can be used; ask for fewer rows or a shorter context"
    )


def options(dtype: Dtype, asked: Precision | Literal["auto"]) -> list[tuple[Precision, Dtype, Quantization]]:
    """What is tried, the most faithful first. `dtype`: in which the device computes unless told."""
    every: list[tuple[Precision, Dtype, Quantization]] = [
        ("float32", "float32", "none"),
        ("bfloat16", "bfloat16", "none"),
        ("fp8", dtype, "fp8"),
        ("int4", dtype, "int4"),
    ]
    if asked != "auto":
        return [what for what in every if what[0] == asked]
    return every if dtype == "float32" else every[1:]


def is_possible(tensors: Tensors, quantization: Quantization) -> bool:
    """Whether the experts can be packed so: 4 bits need widths that a group divides."""
    return quantization == "none" or all(
        precision.is_packed(name, shape, quantization)
        for name, shape in tensors
        if precision.is_experts(name)
    )


def _because(chosen: Need, device: Device, passed: list[Need], asked: Precision | Literal["auto"]) -> str:
    """Why this one: one sentence for logs and people."""
    room = f"of the {_gib(device.usable_bytes)} usable on {device.name}"
    share = f" with experts in host memory, {_share(chosen)} of them cached" if chosen.offloaded else ""
    text = f"{chosen.precision}{share}: takes {_gib(chosen.device_bytes)} {room} for {_rows(chosen)}"
    if asked != "auto" and not chosen.offloaded:
        return f"{text}, as asked"
    if passed:
        return f"{text}; {passed[-1].precision} would take {_gib(passed[-1].device_bytes)}"
    return f"{text}, and nothing is more faithful"


def _rows(of: Need) -> str:
    return f"{of.rows} row{'s' if of.rows != 1 else ''} of {of.context:,} tokens"


def _share(of: Need) -> str:
    return f"{of.cache_bytes / max(1, of.host_bytes):.0%}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:.1f} MiB"
