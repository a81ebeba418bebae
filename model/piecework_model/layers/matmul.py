"""Batch-invariant matrix products on CUDA: a row's bits do not depend on the number of rows.

cuBLAS chooses a kernel by the shape of the whole product. 256 rows may be summed in another order
than 4,096. So a row alone and the same row among sixteen may differ in their last bits, and later
in their text. Trying some row counts at the start (layers/invariance.py) shows invariance for those
counts only.

Here every product is made of tiles of one size. Each is summed along the inner dimension in one
order, so invariance holds by construction. It is tried on the device all the same.

**Cost.** A tile is 64 rows high. At thousands of rows such tiles reach perhaps half of the
arithmetic of cuBLAS's best. With one sequence of the released model (256 tokens), the time is that
of reading the weights either way. So serving many sequences costs more than with cuBLAS, but less
for each than running them one after another.

It has never run on a GPU. It is held against torch in Triton's interpreter, where factors are
float32, and compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
from torch import Tensor

from piecework_model import backend_trial
from piecework_model.backend_trial import RESULT

TILE_ROWS: Final = 64
TILE_COLUMNS: Final = 128
TILE_INNER: Final = 64
WARPS: Final = 4
STAGES: Final = 3  # of copies in flight: 74 KB of shared memory, which consumer cards have

Multiply = Callable[[Tensor, Tensor], Tensor]
"""states [n, in] and weight [out, in], of any strides -> [n, out]."""

_TRIED_SHAPE: Final = (520, 320, 192)  # rows, inner, columns: several tiles each, none of them even
_TRIED_ROWS: Final = (1, 2, 17, 64, 100, 256)
_TRIED_STARTS: Final = (8, 128)
_TOLERANCE: Final = 0.01  # of the largest output; bfloat16's step is 0.4 %
_SEED: Final = 20261125


def multiply(states: Tensor, weight: Tensor) -> Tensor:
    """Multiply states [n, in] by weight [out, in]^T in the states' type, with every tile of one
    size.
    """
    # Here, because a CPU runs this module without Triton.
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    from piecework_model.layers import matmul_kernels as product_kernels

    count, width = states.shape
    if weight.shape[1] != width or weight.dtype is not states.dtype:
        raise ValueError(
            f"{tuple(states.shape)} {states.dtype} x {tuple(weight.shape)} {weight.dtype}"
        )
    outputs = weight.shape[0]
    out = states.new_empty((count, outputs))
    # The interpreter multiplies bfloat16 as if its bits were integers. float32 holds every such
    # product.
    interpreted = isinstance(product_kernels.fixed_product, InterpretedFunction)
    wide = interpreted or states.dtype is torch.float32
    grid = (triton.cdiv(count, TILE_ROWS), triton.cdiv(outputs, TILE_COLUMNS))
    product_kernels.fixed_product[grid](
        states.contiguous(),
        weight,
        out,
        count,
        width=width,
        outputs=outputs,
        output_stride=weight.stride(0),
        width_stride=weight.stride(1),
        compute=tl.float32 if wide else tl.bfloat16,
        rows=TILE_ROWS,
        columns=TILE_COLUMNS,
        inner=TILE_INNER,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out


@cache
def why_rejected(device: torch.device, dtype: torch.dtype) -> str:
    """Say why products on a device are left to torch, or return an empty string.

    Each device and type is tried once a process.
    """
    if device.type != "cuda":
        return f"no kernels for {device.type}"
    try:
        import triton  # noqa: F401  only whether it is there
    except ImportError as error:
        return f"no Triton: {error}"
    return try_product(multiply, device, dtype)


def try_product(tried: Multiply, device: torch.device, dtype: torch.dtype) -> str:
    """Say what is wrong with a product, or return an empty string.

    Fixed random matrices are multiplied. Weights are tried in both of the layouts that they have
    in memory.
    """
    rows, width, outputs = _TRIED_SHAPE
    generator = torch.Generator().manual_seed(_SEED)
    states = torch.randn((rows, width), generator=generator).to(device, dtype)
    straight = torch.randn((outputs, width), generator=generator).to(device, dtype)
    reasons = (
        _try_weight(tried, states, weight) for weight in (straight, straight.t().contiguous().t())
    )
    return next(filter(None, reasons), "") or _try_places(tried, states, straight)


def _try_places(tried: Multiply, states: Tensor, weight: Tensor) -> str:
    """Say whether an output depends on where it is among the others, or return an empty string."""
    whole = tried(states, weight)
    for start in _TRIED_STARTS:
        if not torch.equal(tried(states, weight[start:]), whole[:, start:]):
            return f"its outputs have other bits without the {start} before them"
    return ""


def _try_weight(tried: Multiply, states: Tensor, weight: Tensor) -> str:
    return backend_trial.why_rejected(
        lambda rows: {RESULT: tried(states[rows], weight)},
        lambda: {RESULT: states.float() @ weight.float().t()},
        rows=len(states),
        batches={count: count for count in _TRIED_ROWS},
        compare=backend_trial.within(_TOLERANCE),
    )
