"""How a model is packed for a device: the formats whose kernels were admitted there."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Final, Literal

import torch
from transformers.activations import ACT2FN

from piecework_model import precision
from piecework_model.layers import moe_backends
from piecework_model.layers.experts import MATRICES, DeviceBytes, ExpertLayout, QuantizedExperts
from piecework_model.layers.moe import Moe
from piecework_model.layers.packed_kernels import best_codec
from piecework_model.layers.projections import Products
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
) -> Recipe | None:
    """Choose how to pack these weights (names and shapes) for a device that computes in `dtype`.

    Returns None for "none".
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
        _expert_codec(quantization, device, experts, group),
    )


def _expert_codec(
    quantization: Literal["fp8", "int4"],
    device: torch.device,
    experts: list[Shape],
    group: int,
) -> Codec:
    """Choose a format for experts.

    The fused kernels read 4-bit weights as `Int4` stores them, and run all experts in two launches,
    or those that are copied together. torch's own 4-bit product has another format and takes one
    expert at a time.
    """
    sizes = {(shape[2], shape[1] // 2) for name, shape in experts if name.endswith(MATRICES[0])}
    together = quantization == "int4" and device.type == "cuda" and bool(sizes)
    if together and not any(fused_rejected(*size, Int4(group), device) for size in sizes):
        return Int4(group)
    return best_codec(quantization, device, [(shape[1], shape[2]) for _, shape in experts], group)


def fused_rejected(hidden: int, width: int, codec: Codec | None, device: torch.device) -> str:
    """Say why the fused kernels may not run experts, or return an empty string.

    hidden, width: of an expert. codec: how they are packed, None for plain bfloat16. A few experts
    with random weights are tried.
    """
    module = _random_experts(hidden, width, codec, device)
    try:
        fused = moe_backends.fused_moe(module)
    except (ImportError, ValueError) as error:
        return str(error)
    like = torch.empty((0, hidden), dtype=torch.bfloat16, device=device)
    plain = Moe(module, Products(like, pack=False, invariant=False))
    trial = moe_backends.MoeTrial(
        TRIED_EXPERTS,
        fused.hidden_size,
        TRIED_TOP_K,
        device,
        torch.bfloat16,
        moe_backends.tolerance(module),
    )
    return moe_backends.why_rejected(fused, plain, trial)


def _random_experts(hidden: int, width: int, codec: Codec | None, device: torch.device) -> Any:
    """Make experts as transformers' module holds them, or packed."""
    generator = torch.Generator().manual_seed(_SEED)
    sizes = dict(zip(MATRICES, ((2 * width, hidden), (hidden, width)), strict=True))
    weights = {
        matrix: _SPREAD * torch.randn((TRIED_EXPERTS, *size), generator=generator)
        for matrix, size in sizes.items()
    }
    activation = ACT2FN["gelu_pytorch_tanh"]
    if codec is None:
        plain = {name: weight.to(device, torch.bfloat16) for name, weight in weights.items()}
        return SimpleNamespace(num_experts=TRIED_EXPERTS, act_fn=activation, **plain)
    layout = ExpertLayout(hidden, width, codec)
    source = DeviceBytes(TRIED_EXPERTS, layout.expert_bytes, device)
    module = QuantizedExperts(TRIED_EXPERTS, layout, codec, activation, source)
    for matrix, weight in weights.items():
        for expert in range(TRIED_EXPERTS):
            module.fill(matrix, expert, weight[expert], device)
    return module
