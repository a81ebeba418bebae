"""The Triton kernel of a matrix product in tiles of one size. `layers/matmul.py` explains it."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0917 (Triton binds arguments by place)

from __future__ import annotations

import triton
import triton.language as tl

from piecework_model.triton_math import rounded


@triton.jit(do_not_specialize=["count"])
def fixed_product(
    states,  # [count, width]
    weight,  # [outputs, width], by strides
    out,  # [count, outputs], written
    count,
    width: tl.constexpr,
    outputs: tl.constexpr,
    output_stride: tl.constexpr,  # of the weight, from one output to the next
    width_stride: tl.constexpr,  # and along an output's own weights
    compute: tl.constexpr,  # the type of the factors
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
):
    """Compute one tile of states x weight^T.

    Tiles of the same columns are neighbours, because they read the same weights.
    """
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    inside = row < count
    even: tl.constexpr = (width % inner == 0) and (outputs % columns == 0)
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for start in range(0, width, inner):
        depth = start + tl.arange(0, inner)
        there = inside[:, None] & (depth < width)[None, :]
        state = tl.load(
            states + row[:, None].to(tl.int64) * width + depth[None, :], mask=there, other=0.0
        )
        places = (
            weight
            + column[None, :].to(tl.int64) * output_stride
            + depth[:, None].to(tl.int64) * width_stride
        )
        if even:
            block = tl.load(places)
        else:
            block = tl.load(
                places, mask=(column < outputs)[None, :] & (depth < width)[:, None], other=0.0
            )
        total = tl.dot(state.to(compute), block.to(compute), total, input_precision="ieee")
    result = rounded(total, out.dtype.element_ty).to(out.dtype.element_ty)
    target = out + row[:, None].to(tl.int64) * outputs + column[None, :]
    tl.store(target, result, mask=inside[:, None] & (column < outputs)[None, :])
