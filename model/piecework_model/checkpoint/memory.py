"""How much memory a model needs, computed before anything is loaded. Pure, no torch.

Weights are exact, because the loader stores by the same `precision.stored_bytes`. Keys and values
are exact. What a step needs besides them is an upper bound. Bytes are of one device unless they are
called host bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from piecework_model import bounds, limits, precision
from piecework_model.checkpoint.dimensions import (
    Blueprint,
    Dimensions,
    Tensors,
    VisionDimensions,
)
from piecework_model.errors import DeviceError
from piecework_model.precision import DTYPE_BYTES, Dtype, Precision, Quantization

GIB: Final = 2**30
CUDA_RESERVE_BYTES: Final = GIB + limits.GRAPH_BYTES
"""CUDA's context, cuBLAS workspaces and what the allocator cannot use: an estimate, not a
measurement. It includes what recorded pieces of a step may take.
"""
CPU_RESERVE_SHARE: Final = 0.25
"""Share of host memory that is left to the operating system and other programs."""
MIN_CACHE_SHARE: Final = 0.1
"""Share of the experts that must fit the device when the rest is in host memory. Below this every
step copies nearly all of them, and a CPU is as fast.
"""

FASTER_ELSEWHERE: Final = ". The vllm backend is faster on such a card (docs/vllm.md)"
"""Of int4, until its kernels were measured on a card: other engines are several times as fast."""
SLOW_COPIES: Final = (
    ". Each step copies experts to the card, so it is slow. The vllm backend is faster on a card "
    "that holds the model (docs/vllm.md)"
)
"""Of experts in host memory: the bus is what a step waits for, however they run."""

Kind = Literal["cpu", "cuda"]
Format = tuple[Precision, Dtype, Quantization]


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model is to run.

    memory_bytes: all of the device's. For a CPU, all of the host's. unified: a GPU that has no
    memory of its own, so that the rest of the machine lives in the same.
    """

    kind: Kind
    name: str
    memory_bytes: int
    host_memory_bytes: int
    unified: bool = False

    @property
    def usable_bytes(self) -> int:
        """What is left for a model.

        It follows from totals, not from what is free at the moment, so that the choice of a
        precision is the same at every start.
        """
        reserve = CUDA_RESERVE_BYTES if self.kind == "cuda" else 0
        if self.kind == "cuda" and not self.unified:
            return max(0, self.memory_bytes - reserve)
        shared = min(self.memory_bytes, self.host_memory_bytes)
        return max(0, int(shared * (1 - CPU_RESERVE_SHARE)) - reserve)

    @property
    def usable_host_bytes(self) -> int:
        """What of the host's memory can hold experts. 0 if the device has no other memory."""
        apart = self.kind == "cuda" and not self.unified
        return int(self.host_memory_bytes * (1 - CPU_RESERVE_SHARE)) if apart else 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model's weights in one precision.

    vision_bytes: the vision tower. Where no images are taken it stays in host memory.
    """

    shared_bytes: int
    experts_bytes: int
    vision_bytes: int


@dataclass(frozen=True, slots=True)
class Need:
    """What a model needs in one precision for `sequences` sequences of `context` tokens each.

    offloaded: the experts are in host memory (host_bytes), and cache_bytes of the device hold some
    of them.
    """

    precision: Precision
    dtype: Dtype
    quantization: Quantization
    sequences: int
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
class PrecisionPlan:
    """The need that was chosen, and why, in one sentence. kind: of the device."""

    kind: Kind
    need: Need
    reason: str
    kv_budget_bytes: int
    """For the engine: what is left for KV caches. At least what the planned sequences need."""

    @property
    def expert_budget_bytes(self) -> int | None:
        """For the loader: bytes of the device for experts in host memory, or None."""
        return self.need.cache_bytes if self.need.offloaded else None


def weights(tensors: Tensors, dtype: Dtype, quantization: Quantization) -> Weights:
    """Count the bytes of these weights once loaded."""
    shared = experts = vision = 0
    for name, shape in tensors:
        size = precision.stored_bytes(name, shape, dtype, quantization)
        if precision.is_experts(name):
            experts += size
        elif precision.is_vision(name):
            vision += size
        else:
            shared += size
    return Weights(shared, experts, vision)


def sequence_bytes(of: Dimensions, context: int, dtype: Dtype) -> int:
    """Count the keys and values of a sequence of at most `context` tokens, canvases included."""
    return of.cache.sequence_bytes(context, DTYPE_BYTES[dtype])


def work_bytes(of: Dimensions, kind: Kind, sequences: int, context: int, dtype: Dtype) -> int:
    """Bound what a step needs besides weights and KV caches.

    sequences: of texts. Short reads run beside them, in passes that are no larger.

    These are the logits of the sequences of a tile, the activations of one pass with norms in
    float32, the soft embeddings of all sequences and those of one pass three times, the masks of
    prefill, the rotations of one pass and those that are remembered, and the largest matrix
    unpacked three times.
    """
    size = DTYPE_BYTES[dtype]
    most = limits.CPU_PASS_TOKENS if kind == "cpu" else limits.GPU_PASS_TOKENS
    # One sequence may prefill a chunk and denoise, even if that is more than a pass takes.
    tokens = max(bounds.pass_tokens(most, sequences, of.canvas, of.chunk), of.chunk + of.canvas)
    tile = max(1, limits.LOGIT_TILE_VALUES // (of.canvas * of.vocabulary)) * of.canvas
    logits = limits.LOGIT_COPIES * min(tile, tokens) * of.vocabulary * 4
    widest = max(of.heads * layer.head_dim for layer in of.layers)
    wide = max(of.intermediate, 2 * of.top_k * of.expert_intermediate)
    a_token = (
        size * (8 * of.hidden + 4 * widest + 3 * wide + 3 * of.top_k * of.hidden)
        + 4 * 3 * of.hidden
    )
    held = (sequences + limits.SHORT_SEQUENCES) * of.canvas
    soft = (held + 3 * min(held, tokens)) * (of.hidden * size + 8)
    # One byte a pair of tokens, and a second array while it is made.
    mask = min(of.chunk, context) * context
    in_a_pass = (limits.PREFILL_STEP_CHUNKS + 1) * mask  # one a chunk, and the one being made
    # Attention turns the mask that it is given into numbers, and pads a copy of them.
    numbers = 2 * size * mask
    masks = min(limits.KEPT_MASK_BYTES, -(-context // of.chunk) * mask) + in_a_pass + numbers
    unpacked = 3 * size * of.hidden * max(widest, of.intermediate, 2 * of.expert_intermediate)
    images = vision_work_bytes(of.vision, size) if of.vision else 0
    angle = 2 * size * _rotated_dims(of)
    angles = tokens * angle + bounds.kept_angle_bytes(of.max_context, angle)
    return logits + tokens * a_token + soft + masks + angles + unpacked + images


def _rotated_dims(of: Dimensions) -> int:
    """Count the numbers of a token's positions, whose cosine and sine each kind of layer has."""
    kinds = {bool(layer.window) for layer in of.layers}
    return sum(max(x.head_dim for x in of.layers if bool(x.window) is kind) for kind in kinds)


def vision_work_bytes(of: VisionDimensions, size: int) -> int:
    """Bound what a pass of the vision tower needs. It takes one image at a time.

    These are the pixel values three times, the activations with norms in float32, the mask of
    patches and what attention makes of it, and the weights of pooling. size: bytes of a number.
    """
    pixels = 3 * of.patches * of.patch_values * 4
    a_patch = size * (8 * of.hidden + 6 * of.attention + 3 * of.intermediate) + 4 * 4 * of.hidden
    mask = of.patches**2 * (1 + 2 * size)
    pooling = of.patches * of.tokens * (8 + 3 * 4)
    return pixels + of.patches * a_patch + mask + pooling


def need(model: Blueprint, what: Format, kind: Kind, sequences: int, context: int) -> Need:
    """Compute what the model needs with everything on the device."""
    name, dtype, quantization = what
    size, of = weights(model.tensors, dtype, quantization), model.of
    seen, unseen = (size.vision_bytes, 0) if of.vision else (0, size.vision_bytes)
    on_device = size.shared_bytes + size.experts_bytes
    again = kind == "cpu" and dtype == "bfloat16" and on_device <= limits.PACK_MAX_BYTES
    return Need(
        precision=name,
        dtype=dtype,
        quantization=quantization,
        sequences=sequences,
        context=context,
        offloaded=False,
        weights_bytes=on_device + seen,
        kv_bytes=_beside_reads(sequences * sequence_bytes(of, context, dtype)),
        # A small bfloat16 model is kept twice on a CPU, once in float32 on some (projections.py).
        # Of the vocabulary there are two such copies: of the last layer and of soft embeddings.
        work_bytes=work_bytes(of, kind, sequences, context, dtype)
        + (2 * on_device + 4 * of.vocabulary * of.hidden) * again,
        cache_bytes=0,
        host_bytes=unseen,
    )


def _beside_reads(texts: int) -> int:
    """Count the bytes that hold so many bytes of texts' caches and the share of short reads."""
    others = limits.SHORT_MEMORY_SHARE - 1
    return -(-texts * limits.SHORT_MEMORY_SHARE // others)


def table(
    model: Blueprint, kind: Kind, sequences: Sequence[int], contexts: Sequence[int]
) -> list[Need]:
    """List every precision that packs this model, for every number of sequences and every
    context.
    """
    forms = [
        form for form in options(device_dtype(kind), "auto") if is_possible(model.tensors, form[2])
    ]
    return [
        need(model, form, kind, count, context)
        for form in forms
        for context in contexts
        for count in sequences
    ]


def offloaded(whole: Need, model: Blueprint, device: Device) -> Need:
    """Move the experts to host memory, with as many of them on the device as fit."""
    size = weights(model.tensors, whole.dtype, whole.quantization)
    rest = whole.device_bytes - size.experts_bytes
    return replace(
        whole,
        offloaded=True,
        weights_bytes=whole.weights_bytes - size.experts_bytes,
        cache_bytes=max(0, min(size.experts_bytes, device.usable_bytes - rest)),
        host_bytes=size.experts_bytes + whole.host_bytes,
    )


def fits(wanted: Need, device: Device) -> bool:
    """Say whether it fits.

    If experts are in host memory, that must have room, and enough of them must be cached.
    """
    if wanted.device_bytes > device.usable_bytes:
        return False
    if not wanted.offloaded:
        return True
    return (
        wanted.cache_bytes >= MIN_CACHE_SHARE * wanted.host_bytes
        and wanted.host_bytes <= device.usable_host_bytes
    )


def choose(
    model: Blueprint,
    device: Device,
    *,
    sequences: int,
    context: int,
    asked: Precision | Literal["auto"] = "auto",
) -> PrecisionPlan:
    """Choose the highest precision that fits `device`, or the one that is asked for if that fits.

    Raises DeviceError, with what the smallest would need, if nothing fits.
    """
    possible = [
        what
        for what in options(device_dtype(device.kind), asked)
        if is_possible(model.tensors, what[2])
    ]
    whole = [need(model, what, device.kind, sequences, context) for what in possible]
    for tried, wanted in enumerate(whole):
        if fits(wanted, device):
            return _chosen(wanted, model.of, device, _because(wanted, device, whole[:tried], asked))
    # Offloading costs a copy over the bus for every expert that is not there: of the smallest
    # precision only.
    last = (
        offloaded(whole[-1], model, device) if whole and whole[-1].quantization != "none" else None
    )
    if last is not None and fits(last, device):
        return _chosen(last, model.of, device, _because(last, device, whole, asked))
    smallest = (
        f"{whole[-1].precision} needs {size_text(whole[-1].device_bytes)}"
        if whole
        else "no precision packs it"
    )
    raise DeviceError(
        f"the model does not fit {device.name}: {smallest} for {_sequences(sequences, context)}, "
        f"{size_text(device.usable_bytes)} can be used. "
        "Ask for fewer sequences or a shorter context"
    )


def device_dtype(kind: Kind) -> Dtype:
    """Return the type in which a device computes by default."""
    return "bfloat16" if kind == "cuda" else "float32"


def options(dtype: Dtype, asked: Precision | Literal["auto"]) -> list[Format]:
    """List what is tried, the highest precision first. dtype: in which the device computes by
    default.
    """
    every: list[Format] = [
        ("float32", "float32", "none"),
        ("bfloat16", "bfloat16", "none"),
        ("fp8", dtype, "fp8"),
        ("int4", dtype, "int4"),
    ]
    if asked != "auto":
        return [what for what in every if what[0] == asked]
    return every if dtype == "float32" else every[1:]


def is_possible(tensors: Tensors, quantization: Quantization) -> bool:
    """Say whether the experts can be packed so. 4 bits need widths that a group divides."""
    return quantization == "none" or all(
        precision.is_packed(name, shape, quantization)
        for name, shape in tensors
        if precision.is_experts(name)
    )


def _chosen(wanted: Need, of: Dimensions, device: Device, reason: str) -> PrecisionPlan:
    """Add the KV budget.

    The engine admits sequences as long as the budget holds. A sequence longer than planned has
    larger masks too, so the budget leaves room for those of the longest one.
    """
    most = device.usable_bytes - (wanted.device_bytes - wanted.kv_bytes)
    longest = max(
        wanted.context, of.cache.longest_sequence(most, DTYPE_BYTES[wanted.dtype], of.max_context)
    )
    more = work_bytes(of, device.kind, wanted.sequences, longest, wanted.dtype) - work_bytes(
        of, device.kind, wanted.sequences, wanted.context, wanted.dtype
    )
    return PrecisionPlan(device.kind, wanted, reason, max(wanted.kv_bytes, most - more))


def _because(
    chosen: Need, device: Device, passed: list[Need], asked: Precision | Literal["auto"]
) -> str:
    """Explain the choice in one sentence for logs and people."""
    room = f"of the {size_text(device.usable_bytes)} usable on {device.name}"
    share = (
        f" with experts in host memory, {_share(chosen)} of them cached" if chosen.offloaded else ""
    )
    sequences = _sequences(chosen.sequences, chosen.context)
    text = (
        f"{chosen.precision}{share}: takes {size_text(chosen.device_bytes)} {room} for {sequences}"
    )
    if asked != "auto" and not chosen.offloaded:
        text += ", as asked"
    elif passed:
        text += f"; {passed[-1].precision} would take {size_text(passed[-1].device_bytes)}"
    else:
        text += ", and nothing is more faithful"
    if chosen.offloaded:
        return text + SLOW_COPIES
    return text + (FASTER_ELSEWHERE if device.kind == "cuda" and chosen.precision == "int4" else "")


def _sequences(sequences: int, context: int) -> str:
    return f"{sequences} sequence{'s' if sequences != 1 else ''} of {context:,} tokens"


def _share(of: Need) -> str:
    return f"{of.cache_bytes / max(1, of.host_bytes):.0%}"


def size_text(size_bytes: int) -> str:
    """Write bytes for a person."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / 2**20:.1f} MiB"
