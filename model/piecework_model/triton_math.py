"""Functions that several Triton kernels use: the hyperbolic tangent, and rounding to a type.

Triton's interpreter has no hyperbolic tangent and truncates on conversion to bfloat16. These
functions give it the results of a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
# ruff: noqa: PLR0124 (x == x asks for NaN)

from __future__ import annotations

import triton
import triton.language as tl

# tanh(x) = x + x^3 p(x^2) for |x| below the bound: fitted for least relative error, 0.8 ulp in
# float32.
_TANH_BOUND = tl.constexpr(0.625)
_TANH_0 = tl.constexpr(-0.3333328068256378)
_TANH_1 = tl.constexpr(0.13331441581249237)
_TANH_2 = tl.constexpr(-0.05373970791697502)
_TANH_3 = tl.constexpr(0.02063906379044056)
_TANH_4 = tl.constexpr(-0.005704963114112616)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, float32, within 2 ulp: Triton has none that its interpreter can run."""
    size = tl.abs(x)
    square = x * x
    near = x + x * (
        square
        * (
            _TANH_0
            + square * (_TANH_1 + square * (_TANH_2 + square * (_TANH_3 + square * _TANH_4)))
        )
    )
    # From 10 on the result is 1, and exp would overflow from 44 on. NaN stays NaN.
    bounded = tl.where(size > 20.0, 20.0, size)
    far = 1.0 - 2.0 / (tl.exp(2.0 * bounded) + 1.0)
    return tl.where(size < _TANH_BOUND, near, tl.where(x < 0, -far, far))


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 `x` rounded to `dtype`, to nearest and to even, as float32. NaN stays NaN.

    By integers: the interpreter's own conversion to bfloat16 cuts the bits off.
    """
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        # A NaN with all bits set, as GPUs make them, would overflow into minus zero.
        result = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        result = x
    return result
