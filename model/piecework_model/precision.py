"""Which weights are stored in which format, and how many bytes they take. Pure, no torch.

`memory.py` plans with these functions and `weights.py` loads by them, so the two agree. See
docs/precision.md for the choice of tensors and formats, with measurements.
"""

from __future__ import annotations

import math
import re
from typing import Final, Literal, get_args

Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["none", "fp8", "int4"]
Precision = Literal["float32", "bfloat16", "fp8", "int4"]
"""The names that an operator chooses from.

With fp8 and int4, the weights that stay unquantized and all arithmetic use the device's own type:
bfloat16 on an accelerator, float32 on a CPU. "int4" packs the experts, nine tenths of the model, in
4 bits. It packs the linears, which every token passes, in fp8.
"""

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
DTYPE_BYTES: Final[dict[Dtype, int]] = {"float32": 4, "bfloat16": 2}
INT4_GROUPS: Final = (128, 64, 32)
"""Weights along the input that share one scale. The default is 64: it divides 2816 and 704, the
widths of the released model, and 128 does not divide 704.
"""
DEFAULT_INT4_GROUP: Final = 64
FP8_SCALE_BYTES: Final = 4  # one float32 an output channel
INT4_SCALE_BYTES: Final = 2  # one bfloat16 a group
FIELD_ALIGNMENT_BYTES: Final = 16  # of each field in an expert's bytes: more than any type asks for

_LAYER = r"model\.decoder\.layers\.\d+\."
_LINEAR: Final = re.compile(
    _LAYER + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight"
    r"|model\.decoder\.self_conditioning\.(gate|up|down)_proj\.weight"
)
_EXPERTS: Final = re.compile(_LAYER + r"experts\.(gate_up_proj|down_proj)")
_VISION: Final = re.compile(r"model\.encoder\.(vision_tower|embed_vision)\..*")


def precision_name(dtype: str, quantization: str) -> str:
    """Name how a model is computed, from its arithmetic and how its weights are packed."""
    return dtype if quantization == "none" else f"{dtype}+{quantization}"


def is_linear(name: str) -> bool:
    """Say whether this published name is that of a linear's matrix [out, in], which is packed in
    fp8.
    """
    return _LINEAR.fullmatch(name) is not None


def is_experts(name: str) -> bool:
    """Say whether the tensor holds one matrix [E, out, in] for each expert of a layer."""
    return _EXPERTS.fullmatch(name) is not None


def is_vision(name: str) -> bool:
    """Say whether the tensor belongs to the vision tower or its projection.

    They are never packed. Where a checkpoint takes no images they stay in host memory.
    """
    return _VISION.fullmatch(name) is not None


def int4_group(inputs: int, group: int = DEFAULT_INT4_GROUP) -> int:
    """Find the largest group, at most `group`, that divides a matrix's width.

    Returns 0 if there is none. Such a matrix is not quantized.
    """
    return next((size for size in INT4_GROUPS if size <= group and inputs % size == 0), 0)


def is_packed(name: str, shape: tuple[int, ...], quantization: Quantization) -> bool:
    """Say whether the tensor of this published name and shape is stored packed."""
    if quantization == "none" or not (is_linear(name) or is_experts(name)):
        return False
    return quantization == "fp8" or is_linear(name) or int4_group(shape[-1]) > 0


def stored_bytes(
    name: str,
    shape: tuple[int, ...],
    dtype: Dtype,
    quantization: Quantization,
    group: int = DEFAULT_INT4_GROUP,
) -> int:
    """Count the bytes that the tensor of this name and shape takes once it is loaded."""
    if not is_packed(name, shape, quantization):
        return math.prod(shape) * DTYPE_BYTES[dtype]
    if is_linear(name):
        return sum(_field_bytes(shape[0], shape[1], "fp8", group))
    return shape[0] * sum(
        aligned(size) for size in _field_bytes(shape[1], shape[2], quantization, group)
    )


def aligned(size_bytes: int) -> int:
    """Round up to the room that a field takes among an expert's bytes."""
    return -(-size_bytes // FIELD_ALIGNMENT_BYTES) * FIELD_ALIGNMENT_BYTES


def _field_bytes(
    outputs: int, inputs: int, quantization: Quantization, group: int
) -> tuple[int, int]:
    """Count the bytes of data and of scales of one packed matrix."""
    if quantization == "fp8":
        return outputs * inputs, outputs * FP8_SCALE_BYTES
    return outputs * inputs // 2, outputs * (inputs // int4_group(inputs, group)) * INT4_SCALE_BYTES
