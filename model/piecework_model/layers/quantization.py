"""Weights in 8 and 4 bits: how a matrix is packed, and the product with one.

Quantization is weight-only and activations stay as they are. So a token's result is a function of
its activations and the weights, and never of who shares the batch. `layers/packed_kernels.py` has
the same products on a GPU's own instructions.

  fp8: float8 e4m3 (Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433), with
  one scale an output channel. Scales are powers of two. The relative step of a float does not
  depend on the scale, so the scale loses nothing, and every stored weight is exact in bfloat16.
  int4: (q - 8) * scale, with one bfloat16 scale for a group of inputs. The scale carries a sign:
  the weight of largest magnitude gets q = 0. So all 16 values are used, where a symmetric grid
  wastes one. Of a few scales around it, the one with the least squared error is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor, nn

from piecework_model import precision
from piecework_model.layers.projections import Products

Fields = tuple[Tensor, ...]
"""A packed matrix: its data first, then its scales."""
FieldSpec = tuple[tuple[int, ...], torch.dtype]

FP8_MAX: Final = 448.0  # the largest e4m3 value
_INT4_TRIED: Final = (1.0, 0.93, 1.07)
"""Scales tried, relative to the one that just reaches the largest weight. They make 4 % less error
than the first alone. Eight of them would make another 1 % (docs/precision.md).
"""


def linear(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows [n, in] by weight [out, in]^T. Each row has the same bits whatever n is.

    On CUDA, products are in tiles of one size (layers/matmul.py) if they were admitted there.
    """
    return Products(weight, pack=False).of_weight(weight)(rows)


class Codec(Protocol):
    """One way to store a matrix [out, in] and to multiply by it.

    It holds no weights: the caller keeps the fields.
    """

    @property
    def name(self) -> str:
        """Its name in the engine profile."""

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        """Return shape and type of each field of a matrix [outputs, inputs]."""

    def pack(self, weight: Tensor) -> Fields:
        """Pack a matrix [out, in] of any float type. Raises ValueError if it is not finite."""

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        """Multiply rows [n, in] by the packed matrix. Returns [n, out] in the rows' type."""


@dataclass(frozen=True, slots=True)
class Fp8:
    """Weight-only float8 e4m3. The scale is applied to the product, whose columns are the output
    channels.
    """

    name: ClassVar[str] = "fp8"

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        """Return data [out, in] in e4m3 and scales [out] in float32."""
        return (((outputs, inputs), torch.float8_e4m3fn), ((outputs,), torch.float32))

    def pack(self, weight: Tensor) -> Fields:
        """Scale each channel by the smallest power of two at which its largest weight fits."""
        values = _finite(weight)
        # Each value is mantissa * 2^exponent, with a mantissa from 0.5 up to but not 1.
        mantissa, exponent = torch.frexp(values.abs().amax(dim=1) / FP8_MAX)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-126, 127)
        scale = torch.ldexp(torch.ones_like(mantissa), exponent)
        return (values / scale[:, None]).to(torch.float8_e4m3fn), scale

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        """Multiply by the unscaled values, then by the scales. Neither rounds a weight."""
        data, scale = fields
        return linear(rows, data.to(rows.dtype)) * scale.to(rows.dtype)

    def unpack(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        """Return the matrix [out, in] that the fields stand for, exactly."""
        data, scale = fields
        return data.to(dtype) * scale.to(dtype)[:, None]


@dataclass(frozen=True, slots=True)
class Int4:
    """Weight-only 4 bits.

    group: the most inputs that share a scale. The width of the matrix decides how many do.
    """

    group: int = precision.DEFAULT_INT4_GROUP

    @property
    def name(self) -> str:
        """The name with the group, which decides the bits of the result."""
        return f"int4-g{self.group}"

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        """Return data [out, in / 2] in bytes, with the even input in the high half, and scales
        [out, in / group].
        """
        size = _group(inputs, self.group)
        return (((outputs, inputs // 2), torch.uint8), ((outputs, inputs // size), torch.bfloat16))

    def pack(self, weight: Tensor) -> Fields:
        """Round to the nearest of the 16 values of each group's best scale."""
        values = _finite(weight)
        outputs, inputs = values.shape
        grouped = values.view(outputs, -1, _group(inputs, self.group))
        index, scale = _best_scale(grouped)
        index = index.view(outputs, inputs)
        return index[:, ::2] << 4 | index[:, 1::2], scale

    def unpack(self, fields: Fields, dtype: torch.dtype) -> Tensor:
        """Return the matrix [out, in] that the fields stand for, in `dtype`.

        There is one rounding, that of the product.
        """
        data, scale = fields
        # The shape of both is [out, groups, group].
        halves = torch.stack((data >> 4, data & 15), dim=-1).view(*scale.shape, -1)
        weight = (halves.to(dtype) - 8) * scale.to(dtype)[..., None]
        return weight.view(data.shape[0], -1)

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        """Unpack this one matrix, multiply, and free it."""
        return linear(rows, self.unpack(fields, rows.dtype))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is packed: its linears, and its experts."""

    linears: Codec
    experts: Codec

    @property
    def name(self) -> str:
        """Its name in the engine profile."""
        experts, linears = self.experts.name, self.linears.name
        return experts if experts == linears else f"{experts}+{linears}"


class QuantizedLinear(nn.Module):
    """A replacement for an nn.Linear without bias: forward(x [..., in]) -> [..., out].

    It is empty until `fill`. Its fields are the buffers `field_0` and `field_1`, so that they move
    with the model.
    """

    def __init__(self, inputs: int, outputs: int, codec: Codec) -> None:
        super().__init__()
        self.in_features, self.out_features, self._codec = inputs, outputs, codec
        for number, (shape, dtype) in enumerate(codec.specs(outputs, inputs)):
            self.register_buffer(f"field_{number}", torch.empty(shape, dtype=dtype, device="meta"))

    def fill(self, weight: Tensor, device: torch.device) -> None:
        """Pack the matrix [out, in] on `device`, where it stays."""
        for number, field in enumerate(self._codec.pack(weight.to(device))):
            self.register_buffer(f"field_{number}", field)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply token by token."""
        rows = self._codec.matmul(
            x.reshape(-1, self.in_features), tuple(self.buffers(recurse=False))
        )
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Describe it for a printed model."""
        return f"in={self.in_features}, out={self.out_features}, {self._codec.name}"


def _best_scale(grouped: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best scale of each group of values [out, groups, size].

    Returns indices 0 to 15 as uint8, of the same shape, and scales [out, groups] in bfloat16.
    """
    largest = grouped.gather(-1, grouped.abs().argmax(dim=-1, keepdim=True))
    index, scale, error = _rounded(grouped, largest, _INT4_TRIED[0])
    for factor in _INT4_TRIED[1:]:
        other_index, other_scale, other_error = _rounded(grouped, largest, factor)
        better = other_error < error
        index = torch.where(better, other_index, index)
        scale = torch.where(better, other_scale, scale)
        error = torch.minimum(error, other_error)
    return index.to(torch.uint8), scale[..., 0]


def _rounded(grouped: Tensor, largest: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Round at `factor` times the scale that just reaches `largest`.

    Returns index, scale, and squared error of each group.
    """
    scale = (largest * (factor / -8)).to(torch.bfloat16)
    scale = torch.where(scale == 0, 1, scale)  # a group of zeros, or of what bfloat16 calls zero
    step = scale.to(torch.float32)
    index = (grouped / step).round_().add_(8).clamp_(0, 15)
    error = ((index - 8) * step).sub_(grouped).square_().sum(dim=-1, keepdim=True)
    return index, scale, error


def _group(inputs: int, group: int) -> int:
    size = precision.int4_group(inputs, group)
    if not size:
        raise ValueError(f"no group of {precision.INT4_GROUPS} divides {inputs} inputs")
    return size


def _finite(weight: Tensor) -> Tensor:
    values = weight.to(torch.float32)
    low, high = torch.aminmax(values)  # both propagate NaN
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise ValueError("a weight is NaN or infinite")
    return values
