"""How a model is packed for a device: the formats whose kernels were admitted there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from piecework_model import precision
from piecework_model.layers import moe_backends
from piecework_model.layers.experts import MATRICES, DeviceBytes, ExpertLayout, QuantizedExperts
from piecework_model.layers.moe import Moe
from piecework_model.layers.packed_kernels import best_codec
from piecework_model.layers.quantization import Codec, Int4, Recipe

TRIED_EXPERTS: Final = 4
TRIED_TOP_K: Final = 2
_SEED: Final = 20261129
_SPREAD: Final = 0.03

Shape = tuple[str, tuple[int, ...]]
"""A tensor's published name and shape."""


def best_recipe(
    quantization: precision.Quantization,
    device: torch.device,
    tensors: Iterable[Shape],
    *,
    group: int = precision.DEFAULT_INT4_GROUP,
    dtype: torch.dtype = torch.bfloat16,
    offloaded: bool = False,
) -> Recipe | None:
    """Choose how to pack these weights (names and shapes) for a device that computes in `dtype`.

    offloaded: experts are in host memory, so that each runs on its own. Returns None for "none".
    """
    if quantization == "none":
        return None
    if dtype is not torch.bfloat16:  # what the kernels take
        device = torch.device("cpu")
    packed = [
        (name, shape) for name, shape in tensors if precision.is_packed(name, shape, quantization)
    ]
    linears = [(shape[0], shape[1]) for name, shape in packed if precision.is_linear(name)]
    experts = [item for item in packed if precision.is_experts(item[0])]
    return Recipe(
        best_codec("fp8", device, linears),
        _expert_codec(quantization, device, experts, group, offloaded),
    )


def _expert_codec(
    quantization: Literal["fp8", "int4"],
    device: torch.device,
    experts: list[Shape],
    group: int,
    offloaded: bool,
) -> Codec:
    """Choose a format for experts.

    The fused kernels read 4-bit weights as `Int4` stores them, and run all experts in two launches.
    torch's own 4-bit product has another format and takes one expert at a time.
    """
    sizes = {(shape[2], shape[1] // 2) for name, shape in experts if name.endswith(MATRICES[0])}
    together = quantization == "int4" and device.type == "cuda" and not offloaded and bool(sizes)
    if together and not any(fused_int4_rejected(*size, group, device) for size in sizes):
        return Int4(group)
    return best_codec(quantization, device, [(shape[1], shape[2]) for _, shape in experts], group)


def fused_int4_rejected(hidden: int, width: int, group: int, device: torch.device) -> str:
    """Say why the fused kernels may not run 4-bit experts, or return an empty string.

    hidden, width: of an expert. A few experts with random weights are tried.
    """
    codec = Int4(group)
    layout = ExpertLayout(hidden, width, codec)
    source = DeviceBytes(TRIED_EXPERTS, layout.expert_bytes, device)
    activation = ACT2FN["gelu_pytorch_tanh"]
    module = QuantizedExperts(TRIED_EXPERTS, layout, codec, activation, source)
    generator = torch.Generator().manual_seed(_SEED)
    sizes = ((2 * width, hidden), (hidden, width))
    for matrix, size in zip(MATRICES, sizes, strict=True):
        for expert in range(TRIED_EXPERTS):
            weight: Tensor = _SPREAD * torch.randn(size, generator=generator)
            module.fill(matrix, expert, weight, device)
    try:
        fused = moe_backends.fused_moe(module)
    except (ImportError, ValueError) as error:
        return str(error)
    plain = Moe(module, minimum_rows=1, pack=False)
    trial = moe_backends.MoeTrial(
        TRIED_EXPERTS, fused.hidden_size, TRIED_TOP_K, device, torch.bfloat16
    )
    return moe_backends.why_rejected(fused, plain, trial)
