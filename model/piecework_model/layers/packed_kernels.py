"""Products with packed weights on a processor's own instructions, and whether they may be used.

Each kernel is a `Codec` that stores what its instruction needs. Its oracle is the codec of
`quantization.py` that unpacks and multiplies. A kernel is tried on the device first
(backend_trial.py). One that fails is not used, and the engine profile says what runs.

  Fp8ScaledMm: torch._scaled_mm, with one scale a token and one an output channel (compute
      capability 8.9 and up). It also rounds activations to e4m3, each token by its own scale. That
      is not the same function as weight-only, so it has its own name.
  Int4Tiles: torch's _weight_int4pack_mm (capability 8.0 and up, bfloat16). It is the same function
      as its oracle.

Both have run on a CPU, where torch has the same two operators, and both are admitted there. On a
GPU neither has run for this project. `_convert_weight_to_int4pack`, which prepares weights for
CUDA, has never been called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

import torch
import torch.nn.functional as F  # noqa: N812  torch's own spelling
from torch import Tensor

from piecework_model import backend_trial, precision
from piecework_model.backend_trial import RESULT
from piecework_model.layers.quantization import FP8_MAX, Codec, Fields, FieldSpec, Fp8, Int4

FP8_CAPABILITY: Final = (8, 9)
INT4_CAPABILITY: Final = (8, 0)
_INNER_TILES: Final = (8, 4, 2)
"""Tiles of 16 inputs that a thread of the CUDA kernel loads at once: as many as divide the
matrix.
"""
_TRIED_ROWS: Final = (1, 2, 7, 16, 33, 256, 512, 1024)
"""Batch sizes that are tried: one token, a few, an expert's share, some canvases."""
_CANVAS_ROWS: Final = 256
MOST_ROWS: Final = 4096
"""The most rows of one product, and of the trial on a GPU. So no product is larger than the
trial.
"""
_PADDED_ROWS: Final = 16
"""The fewest rows of the float8 product. A tile of the tensor cores is as high, so padding costs
nothing. The CPU's version sums fewer than 4 rows in another order (measured).
"""


class Kernel(Codec, Protocol):
    """A codec that stands for another. tolerance: largest error, as a share of the largest
    output.
    """

    @property
    def oracle(self) -> Codec:
        """The codec that unpacks, on any device."""

    @property
    def tolerance(self) -> float:
        """How far it may be from the oracle."""


@dataclass(frozen=True, slots=True)
class Fp8ScaledMm:
    """float8 weights and activations, summed in the tensor cores."""

    name: ClassVar[str] = "fp8-scaled-mm"
    oracle: ClassVar[Codec] = Fp8()
    tolerance: ClassVar[float] = 0.06  # that of activations in e4m3

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        """Return the fields of `Fp8`."""
        return self.oracle.specs(outputs, inputs)

    def pack(self, weight: Tensor) -> Fields:
        """Pack as `Fp8` does."""
        return self.oracle.pack(weight)

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        """Round rows [n, in] to e4m3, each by its own scale, and multiply them by the matrix."""
        if rows.shape[0] > MOST_ROWS:
            return _in_batches(self, fields, rows, MOST_ROWS)
        data, scale = fields
        count = rows.shape[0]
        values = F.pad(rows.to(torch.float32), (0, 0, 0, max(0, _PADDED_ROWS - count)))
        largest = (
            values.abs()
            .amax(dim=1, keepdim=True)
            .clamp_min(torch.finfo(torch.float32).tiny * FP8_MAX)
        )
        own = largest / FP8_MAX
        product: Tensor = torch._scaled_mm(
            (values / own).to(torch.float8_e4m3fn),
            data.t(),
            scale_a=own,
            scale_b=scale[None],
            out_dtype=torch.bfloat16,
        )
        return product[:count].to(rows.dtype)


@dataclass(frozen=True, slots=True)
class Int4Tiles:
    """4-bit weights in the instruction's layout, which unpacks them.

    device_type: cpu or cuda.
    """

    group: int
    device_type: str
    tolerance: ClassVar[float] = 0.01  # that of a sum in bfloat16

    @property
    def name(self) -> str:
        """The name with the group, as that of the oracle."""
        return f"int4-tiles-g{self.group}"

    @property
    def oracle(self) -> Codec:
        """The same function."""
        return Int4(self.group)

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        """Return tiles, as many bytes as the oracle's data, and the oracle's scales [out, in /
        group].
        """
        data, scales = self.oracle.specs(outputs, inputs)
        if self.device_type == "cpu":
            return data, scales
        inner = _inner_tiles(inputs)
        return ((outputs // 8, inputs // (inner * 16), 32, inner // 2), torch.int32), scales

    def pack(self, weight: Tensor) -> Fields:
        """Pack the oracle's indices in the instruction's order, with its scales."""
        data, scales = self.oracle.pack(weight)
        operators: Any = torch.ops.aten
        if self.device_type == "cpu":
            halves = torch.stack((data >> 4, data & 15), dim=-1).view(data.shape[0], -1)
            tiles = operators._convert_weight_to_int4pack_for_cpu(halves.to(torch.int32), 1)
        else:
            tiles = operators._convert_weight_to_int4pack(data, _inner_tiles(weight.shape[1]))
        return tiles, scales

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        """Multiply rows [n, in] bfloat16 by the matrix.

        The instruction takes scales and zero points, [in / group, out, 2]. The zero points are zero
        and stored nowhere.
        """
        if rows.shape[0] > MOST_ROWS:
            return _in_batches(self, fields, rows, MOST_ROWS)
        tiles, scales = fields
        pairs = scales.new_zeros((*scales.t().shape, 2))
        pairs[..., 0] = scales.t()
        operators: Any = torch.ops.aten
        cpu = self.device_type == "cpu"
        run = operators._weight_int4pack_mm_for_cpu if cpu else operators._weight_int4pack_mm
        product: Tensor = run(rows.contiguous(), tiles, rows.shape[1] // scales.shape[1], pairs)
        return product


def best_codec(
    quantization: Literal["fp8", "int4"],
    device: torch.device,
    shapes: Iterable[tuple[int, int]],
    group: int = precision.DEFAULT_INT4_GROUP,
) -> Codec:
    """Choose the GPU's kernel if it is admitted for matrices of these shapes (outputs, inputs).

    Otherwise choose the codec that unpacks.
    """
    plain: Codec = Fp8() if quantization == "fp8" else Int4(group)
    if device.type != "cuda":
        return plain
    kernel: Kernel = Fp8ScaledMm() if quantization == "fp8" else Int4Tiles(group, "cuda")
    needed = FP8_CAPABILITY if quantization == "fp8" else INT4_CAPABILITY
    usable = torch.cuda.get_device_capability(device) >= needed and not why_rejected(
        kernel, device, shapes
    )
    return kernel if usable else plain


def why_rejected(kernel: Kernel, device: torch.device, shapes: Iterable[tuple[int, int]]) -> str:
    """Say why a kernel may not be used on this device, or return an empty string.

    shapes: (outputs, inputs) of the matrices. A fixed random matrix of each is tried.
    """
    generator = torch.Generator().manual_seed(0)
    every = MOST_ROWS if device.type == "cuda" else _CANVAS_ROWS
    for outputs, inputs in sorted(set(shapes)):
        weight = torch.randn((outputs, inputs), generator=generator).to(device)
        rows = torch.randn((every, inputs), generator=generator).to(device, torch.bfloat16)
        try:
            packed = kernel.pack(weight)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return f"it cannot pack a matrix: {backend_trial.first_line(error)}"
        if reason := _why_rejected(kernel, rows, weight, packed):
            return reason
    return ""


def _why_rejected(kernel: Kernel, rows: Tensor, weight: Tensor, packed: Fields) -> str:
    """Try one matrix."""
    oracle, every = kernel.oracle, len(rows)
    return backend_trial.why_rejected(
        lambda some: {RESULT: kernel.matmul(rows[some], packed)},
        lambda: {RESULT: oracle.matmul(rows, oracle.pack(weight))},
        rows=every,
        batches={n: max(_CANVAS_ROWS, 2 * n) for n in _TRIED_ROWS if n < every},
        compare=backend_trial.within(kernel.tolerance),
    )


def _in_batches(kernel: Kernel, packed: Fields, rows: Tensor, count: int) -> Tensor:
    """Compute the product of all rows, `count` of them at a time."""
    return torch.cat([kernel.matmul(part, packed) for part in torch.split(rows, count)])


def _inner_tiles(inputs: int) -> int:
    found = next((tiles for tiles in _INNER_TILES if inputs % (tiles * 16) == 0), None)
    if found is None:
        raise RuntimeError(f"{inputs} inputs are no multiple of 32")
    return found
