"""The Triton kernels of the mixture of experts: two grouped products. `layers/moe_triton.py` calls
them.

N = pairs of token and expert, T * k, grouped by expert. H hidden size, I expert width. A program
takes one tile of rows of one expert and one block of columns. Which tile belongs to which expert is
read from device memory, so the grid needs no number that only the device has.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0917 (Triton binds arguments by place)

from __future__ import annotations

import triton
import triton.language as tl

from piecework_model.triton_math import rounded, tanh

_GELU_SCALE = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
_GELU_CUBE = tl.constexpr(0.044715)


@triton.jit
def _gelu(x):
    """Compute gelu in the tanh form of Hendrycks and Gimpel, arXiv 1606.08415, as torch does in
    float32.
    """
    return 0.5 * x * (1.0 + tanh((x + x * x * x * _GELU_CUBE) * _GELU_SCALE))


@triton.jit
def _rows(states, row, inside, start, inner: tl.constexpr, width: tl.constexpr):
    """Load a block [rows, inner] of states [n, width], with zeros for rows that are not inside."""
    depth = start + tl.arange(0, inner)
    there = inside[:, None] & (depth < width)[None, :]
    places = states + row[:, None].to(tl.int64) * width + depth[None, :]
    return tl.load(places, mask=there, other=0.0)


@triton.jit
def _weights(base, columns, inner, width: tl.constexpr, outputs: tl.constexpr, even: tl.constexpr):
    """Load a block [inner, columns] of a matrix [outputs, width], with zeros outside of it."""
    places = base + columns[None, :] * width + inner[:, None]
    if even:
        block = tl.load(places)
    else:
        block = tl.load(
            places, mask=(columns < outputs)[None, :] & (inner < width)[:, None], other=0.0
        )
    return block


@triton.jit
def _unpacked(
    base,  # bytes [outputs, width / 2], the even input in the high half
    scale,  # [outputs, width / group] bfloat16
    columns,
    start,
    inner: tl.constexpr,
    width: tl.constexpr,
    outputs: tl.constexpr,
    group: tl.constexpr,  # inputs that share a scale
    even: tl.constexpr,
    dtype: tl.constexpr,  # of the states: a weight is rounded to it, as when it is unpacked apart
):
    """Load a block [inner, columns] of a matrix in 4 bits: (q - 8) * scale, float32."""
    half = start // 2 + tl.arange(0, inner // 2)
    places = base + columns[:, None] * (width // 2) + half[None, :]
    if even:
        pairs = tl.load(places)
    else:
        pairs = tl.load(
            places, mask=(columns < outputs)[:, None] & (2 * half < width)[None, :], other=0
        )
    quarters = tl.reshape(tl.join(pairs >> 4, pairs & 15), (columns.shape[0], inner))
    numbers = quarters.to(tl.float32) - 8.0
    groups: tl.constexpr = width // group
    if group % inner == 0:
        scales = tl.load(scale + columns * groups + start // group, mask=columns < outputs, other=0)
        block = numbers * scales.to(tl.float32)[:, None]
    else:
        depth = start + tl.arange(0, inner)
        scales = tl.load(
            scale + columns[:, None] * groups + (depth // group)[None, :],
            mask=(columns < outputs)[:, None] & (depth < width)[None, :],
            other=0,
        )
        block = numbers * scales.to(tl.float32)
    return tl.trans(rounded(block, dtype))


@triton.jit
def _block(
    matrix,  # of one expert
    scales,  # of its weights in 4 bits; unread without `group`
    first: tl.constexpr,  # the output at which the columns are counted from
    columns,
    start,
    inner: tl.constexpr,
    width: tl.constexpr,
    outputs: tl.constexpr,
    group: tl.constexpr,
    even: tl.constexpr,
    dtype: tl.constexpr,
):
    """Load a block [inner, columns] of a matrix, packed in 4 bits or not."""
    if group:
        block = _unpacked(
            matrix + first * (width // 2), scales + first * (width // group), columns, start,
            inner, width, outputs, group, even, dtype,
        )  # fmt: skip
    else:
        depth = start + tl.arange(0, inner)
        block = _weights(matrix + first * width, columns, depth, width, outputs, even)
    return block


@triton.jit
def _slot(slots, expert, experts: tl.constexpr):
    """Look up where an expert's weights lie. -1: not in this call, or there is no such expert."""
    known = tl.minimum(expert, experts - 1)
    slot = known if slots is None else tl.load(slots + known)
    return tl.where(expert < experts, slot, -1)


@triton.jit
def expert_up(
    hidden,  # [T, H]
    weight,  # [E or slots, 2 I, H], `weight_stride` elements apart; with `group` in 4 bits
    scale,  # [E, 2 I] float32, experts `scale_stride` elements apart; unread without `scaled`
    order,  # [N] int32: which pair stands at a place
    starts,  # [E + 1] int32: the first place of each expert
    tile_expert,  # [tiles] int32, `experts` for a tile that is not needed
    tile_first,  # [tiles] int32: its first place
    slots,  # [E] int32: where an expert's weights lie, -1 for not in this call; None for in order
    out,  # [N, I], written in the order of places
    experts: tl.constexpr,
    top_k: tl.constexpr,
    width: tl.constexpr,  # H
    outputs: tl.constexpr,  # I
    weight_stride: tl.constexpr,
    scale_stride: tl.constexpr,
    scaled: tl.constexpr,
    group: tl.constexpr,  # of 4-bit weights, whose scales are [E, outputs, inputs / group]; or 0
    compute: tl.constexpr,  # the type of the factors of a product
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
):
    """Compute act(gate) * up for one tile. All is rounded where the modules round it."""
    expert = tl.load(tile_expert + tl.program_id(0))
    slot = _slot(slots, expert, experts)
    if slot < 0:
        return
    place = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, rows)
    inside = place < tl.load(starts + expert + 1)
    token = tl.load(order + place, mask=inside, other=0) // top_k
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    matrix = weight + slot.to(tl.int64) * weight_stride
    scales = scale
    if scaled or group:
        scales += slot.to(tl.int64) * scale_stride
    even: tl.constexpr = (width % inner == 0) and (outputs % columns == 0)
    dtype: tl.constexpr = hidden.dtype.element_ty
    gate = tl.zeros((rows, columns), dtype=tl.float32)
    up = tl.zeros((rows, columns), dtype=tl.float32)
    for start in range(0, width, inner):
        state = _rows(hidden, token, inside, start, inner, width).to(compute)
        gate_block = _block(
            matrix, scales, 0, column, start, inner, width, outputs, group, even, dtype
        )
        up_block = _block(
            matrix, scales, outputs, column, start, inner, width, outputs, group, even, dtype
        )
        gate = tl.dot(state, gate_block.to(compute), gate, input_precision="ieee")
        up = tl.dot(state, up_block.to(compute), up, input_precision="ieee")
    gate, up = rounded(gate, out.dtype.element_ty), rounded(up, out.dtype.element_ty)
    if scaled:
        gate *= tl.load(scales + column, mask=column < outputs, other=0.0)[None, :]
        up *= tl.load(scales + outputs + column, mask=column < outputs, other=0.0)[None, :]
    result = rounded(rounded(_gelu(gate), out.dtype.element_ty) * up, out.dtype.element_ty)
    target = out + place[:, None].to(tl.int64) * outputs + column[None, :]
    tl.store(
        target, result.to(out.dtype.element_ty), mask=inside[:, None] & (column < outputs)[None, :]
    )


@triton.jit
def expert_down(
    states,  # [N, I], what `expert_up` wrote
    weight,  # [E, H, I], experts `weight_stride` elements apart
    scale,  # [E, H] float32, experts `scale_stride` elements apart; unread without `scaled`
    order,  # [N] int32
    starts,  # [E + 1] int32
    tile_expert,  # [tiles] int32
    tile_first,  # [tiles] int32
    slots,  # [E] int32, or None
    shares,  # [N] float32: the weight of a pair, by pair
    out,  # [N, H], written by pair
    experts: tl.constexpr,
    width: tl.constexpr,  # I
    outputs: tl.constexpr,  # H
    weight_stride: tl.constexpr,
    scale_stride: tl.constexpr,
    scaled: tl.constexpr,
    group: tl.constexpr,  # of 4-bit weights, whose scales are [E, outputs, inputs / group]; or 0
    compute: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    inner: tl.constexpr,
):
    """Compute the expert's output for one tile times each pair's share, and put it where the pair
    belongs.
    """
    expert = tl.load(tile_expert + tl.program_id(0))
    slot = _slot(slots, expert, experts)
    if slot < 0:
        return
    place = tl.load(tile_first + tl.program_id(0)) + tl.arange(0, rows)
    inside = place < tl.load(starts + expert + 1)
    pair = tl.load(order + place, mask=inside, other=0)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    matrix = weight + slot.to(tl.int64) * weight_stride
    scales = scale
    if scaled or group:
        scales += slot.to(tl.int64) * scale_stride
    even: tl.constexpr = (width % inner == 0) and (outputs % columns == 0)
    dtype: tl.constexpr = states.dtype.element_ty
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for start in range(0, width, inner):
        state = _rows(states, place, inside, start, inner, width)
        block = _block(matrix, scales, 0, column, start, inner, width, outputs, group, even, dtype)
        total = tl.dot(state.to(compute), block.to(compute), total, input_precision="ieee")
    total = rounded(total, out.dtype.element_ty)
    if scaled:
        total *= tl.load(scales + column, mask=column < outputs, other=0.0)[None, :]
    share = tl.load(shares + pair, mask=inside, other=0.0)
    result = rounded(total * share[:, None], out.dtype.element_ty)
    target = out + pair[:, None].to(tl.int64) * outputs + column[None, :]
    tl.store(
        target, result.to(out.dtype.element_ty), mask=inside[:, None] & (column < outputs)[None, :]
    )
