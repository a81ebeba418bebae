"""Which fast paths a model would have on this machine, tried without its weights."""

from __future__ import annotations

from piecework_model.checkpoint.dimensions import Blueprint
from piecework_model.checkpoint.memory import PrecisionPlan
from piecework_model.fast_paths import FastPath


def survey(blueprint: Blueprint, plan: PrecisionPlan) -> list[FastPath]:
    """Try the kernels of the planned precision. Empty on a CPU.

    It takes up to a minute, in which Triton compiles, and a few hundred MB of the device.
    """
    if plan.kind == "cpu":
        return []
    import torch

    from piecework_model.layers import matmul, recipes
    from piecework_model.layers.attention import why_device_is_unfused
    from piecework_model.layers.packed_kernels import best_codec
    from piecework_model.layers.quantization import Codec, Int4
    from piecework_model.sampling.sampler_backends import sampler_for

    device = torch.device("cuda")
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[plan.need.dtype]
    of, kind = blueprint.of, plan.need.quantization
    codec: Codec | None = None
    if kind != "none":
        codec = Int4() if kind == "int4" else best_codec("fp8", device, ())
    experts = recipes.fused_rejected(of.hidden, of.expert_intermediate, codec, device)
    shapes = {(of.heads, layer.heads, layer.head_dim) for layer in of.layers}
    unfused = (why_device_is_unfused(*shape, device, dtype) for shape in shapes)
    return [
        FastPath("attention", next(filter(None, unfused), "")),
        FastPath("experts", experts),
        FastPath("sampler", sampler_for(device, dtype, of.vocabulary).reason),
        FastPath("products of one tile size", matmul.why_rejected(device, dtype)),
    ]
