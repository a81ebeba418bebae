"""The Triton kernels of the fused sampler. `sampling/sampler_triton.py` calls and explains them.

P = positions, V = vocabulary, T = vocabulary tiles. The language is Triton's: functions without
types, module constants as `tl.constexpr`. A program of each kernel belongs to one position and
reads no other.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0917 (Triton binds arguments by place)

from __future__ import annotations

import triton
import triton.language as tl

from piecework_model.triton_math import rounded, tanh

# Planes of the float32 summary [P, 5, T].
_MAXIMUM = tl.constexpr(0)  # of the scaled logits
_SECOND = tl.constexpr(1)  # the second largest, equal to the largest when that occurs twice
_SUM = tl.constexpr(2)  # sum of e = exp(scaled - maximum)
_WEIGHTED = tl.constexpr(3)  # sum of e * (scaled - maximum)
_SOFT_SUM = tl.constexpr(4)  # sum of exp(rounded - rounded maximum), rounded to the weights' type
PLANES = tl.constexpr(5)


@triton.jit
def _load_scaled(
    raw, temperatures, row, first, cap: tl.constexpr, vocab_size: tl.constexpr, tile: tl.constexpr
):
    """Load scaled logits [tile] of a position from token `first` on.

    They are -inf past the vocabulary and NaN where the logit is not finite. The cap would hide an
    infinity.
    """
    tokens = first + tl.arange(0, tile)
    start = raw + row.to(tl.int64) * vocab_size  # P V may pass 2^31
    logits = tl.load(start + tokens, mask=tokens < vocab_size, other=0.0).to(tl.float32)
    scaled = tanh(logits / cap) * cap / tl.load(temperatures + row)
    scaled = tl.where(tl.abs(logits) < float("inf"), scaled, float("nan"))
    return tl.where(tokens < vocab_size, scaled, float("-inf"))


@triton.jit(do_not_specialize_on_alignment=["temperatures"])
def summarise(
    raw,  # [P, V]
    temperatures,  # [P]
    summary,  # [P, 5, T], written
    tile_argmax,  # [P, T], written
    cap: tl.constexpr,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Summarise one vocabulary tile of one position."""
    row, index, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first = index * tile
    scaled = _load_scaled(raw, temperatures, row, first, cap, vocab_size, tile)
    lane = tl.arange(0, tile)
    inside = first + lane < vocab_size
    maximum, where = tl.max(scaled, axis=0, return_indices=True, return_indices_tie_break_left=True)
    second = tl.max(tl.where(lane == where, float("-inf"), scaled), axis=0)
    distance = tl.where(inside, scaled - maximum, 0.0)
    mass = tl.where(inside, tl.exp(distance), 0.0)
    coarse = rounded(scaled, raw.dtype.element_ty)
    soft = tl.where(inside, tl.exp(coarse - rounded(maximum, raw.dtype.element_ty)), 0.0)
    plane = summary + row.to(tl.int64) * PLANES * tiles + index
    tl.store(plane + _MAXIMUM * tiles, maximum)
    tl.store(plane + _SECOND * tiles, second)
    tl.store(plane + _SUM * tiles, tl.sum(mass, axis=0))
    tl.store(plane + _WEIGHTED * tiles, tl.sum(mass * distance, axis=0))
    tl.store(plane + _SOFT_SUM * tiles, tl.sum(soft, axis=0))
    # Without an order among NaNs the id may be one past the vocabulary.
    tl.store(tile_argmax + row * tiles + index, tl.minimum(first + where, vocab_size - 1))


@triton.jit
def _first_beyond(mass, threshold, size: tl.constexpr):
    """Find where the running sum of `mass` [size] float64 first exceeds `threshold`.

    Returns that index and the sum before it. The index always has mass. Where rounding leaves none,
    it is the last that has any. Among NaNs it is 0.
    """
    lane = tl.arange(0, size)
    running = tl.cumsum(mass, axis=0)
    beyond = tl.min(tl.where((running > threshold) & (mass > 0), lane, size), axis=0)
    last = tl.max(tl.where(mass > 0, lane, 0), axis=0)
    chosen = tl.where(beyond < size, beyond, last)
    return chosen, tl.max(tl.where(lane < chosen, running, 0.0), axis=0)


@triton.jit(do_not_specialize_on_alignment=["temperatures", "uniforms"])
def decide(
    raw,  # [P, V]
    temperatures,  # [P]
    uniforms,  # [P]
    summary,  # [P, 5, T]
    tile_argmax,  # [P, T]
    ids,  # [P, 2], written: argmax, sampled
    figures,  # [P, 3], written: entropy, log-probability, gap
    soft,  # [P, 2], written: rounded maximum, sum of exp(rounded - rounded maximum)
    tiles: tl.constexpr,
    lanes: tl.constexpr,  # T up to a power of two
    cap: tl.constexpr,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Join the tiles of one position, and sample inside the tile that the uniform falls into."""
    row = tl.program_id(0)
    lane = tl.arange(0, lanes)
    there = lane < tiles
    plane = summary + row.to(tl.int64) * PLANES * tiles + lane
    maxima = tl.load(plane + _MAXIMUM * tiles, mask=there, other=float("-inf"))
    seconds = tl.load(plane + _SECOND * tiles, mask=there, other=float("-inf"))
    maximum, best = tl.max(maxima, axis=0, return_indices=True, return_indices_tie_break_left=True)
    second = tl.max(tl.where(lane == best, seconds, maxima), axis=0)
    best = tl.minimum(best, tiles - 1)
    tl.store(ids + row * 2, tl.load(tile_argmax + row * tiles + best).to(tl.int64))
    # Bring each tile's sums to the common maximum.
    distance = tl.where(there, maxima - maximum, 0.0)
    scale = tl.where(there, tl.exp(distance), 0.0)
    sums = tl.load(plane + _SUM * tiles, mask=there, other=0.0)
    weighted = tl.load(plane + _WEIGHTED * tiles, mask=there, other=0.0)
    masses = scale.to(tl.float64) * sums.to(tl.float64)
    total = tl.sum(masses, axis=0)
    mean_distance = tl.sum(scale * (weighted + sums * distance), axis=0).to(tl.float64) / total
    log_total = tl.log(total)
    # Two levels: the tile, then the token inside it.
    threshold = tl.load(uniforms + row) * total
    chosen_tile, before = _first_beyond(masses, threshold, lanes)
    tile_maximum = tl.sum(tl.where(lane == chosen_tile, maxima, 0.0), axis=0)
    scaled = _load_scaled(raw, temperatures, row, chosen_tile * tile, cap, vocab_size, tile)
    mass = tl.exp(scaled - tile_maximum).to(tl.float64) * tl.exp(tile_maximum - maximum).to(
        tl.float64
    )
    chosen, _ = _first_beyond(mass, threshold - before, tile)
    value = tl.sum(tl.where(tl.arange(0, tile) == chosen, scaled, 0.0), axis=0)
    tl.store(
        ids + row * 2 + 1, tl.minimum(chosen_tile * tile + chosen, vocab_size - 1).to(tl.int64)
    )
    tl.store(figures + row * 3, (log_total - mean_distance).to(tl.float32))
    tl.store(figures + row * 3 + 1, ((value - maximum).to(tl.float64) - log_total).to(tl.float32))
    tl.store(figures + row * 3 + 2, maximum - second)
    coarse = rounded(maxima, raw.dtype.element_ty)
    rounded_maximum = rounded(maximum, raw.dtype.element_ty)
    soft_scale = tl.where(there, tl.exp(coarse - rounded_maximum), 0.0)
    soft_sums = tl.load(plane + _SOFT_SUM * tiles, mask=there, other=0.0)
    tl.store(soft + row * 2, rounded_maximum)
    tl.store(soft + row * 2 + 1, tl.sum(soft_scale * soft_sums, axis=0))


@triton.jit(do_not_specialize_on_alignment=["temperatures"])
def soften(
    raw,  # [P, V]
    temperatures,  # [P]
    soft,  # [P, 2]
    probabilities,  # [P, V], written; may be raw
    cap: tl.constexpr,
    vocab_size: tl.constexpr,
    tile: tl.constexpr,
):
    """Compute the softmax of the rounded logits, and round it.

    A program reads its whole tile before it writes it.
    """
    row, first = tl.program_id(0), tl.program_id(1) * tile
    scaled = _load_scaled(raw, temperatures, row, first, cap, vocab_size, tile)
    coarse = rounded(scaled, raw.dtype.element_ty)
    values = tl.exp(coarse - tl.load(soft + row * 2)) / tl.load(soft + row * 2 + 1)
    tokens = first + tl.arange(0, tile)
    start = probabilities + row.to(tl.int64) * vocab_size
    result = rounded(values, raw.dtype.element_ty).to(raw.dtype.element_ty)
    tl.store(start + tokens, result, mask=tokens < vocab_size)
