"""Kernels of a processor: admitted when they agree with their oracle and rows do not depend on each
other.

On a CPU torch has the same two operators as on a GPU, so what is written here really runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from piecework_model.layers.packed_kernels import (
    MOST_ROWS,
    Fp8ScaledMm,
    Int4Tiles,
    Kernel,
    why_rejected,
)
from piecework_model.layers.quantization import Codec, Fields, FieldSpec, Fp8, Int4, Recipe
from piecework_model.layers.recipes import best_recipe

CPU = torch.device("cpu")
SHAPES = ((512, 256), (96, 704))
KERNELS: dict[str, Kernel] = {
    "fp8": Fp8ScaledMm(),
    "int4-g32": Int4Tiles(32, "cpu"),
    "int4-g64": Int4Tiles(64, "cpu"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernels_of_this_cpu_are_admitted(name: str) -> None:
    assert why_rejected(KERNELS[name], CPU, SHAPES) == ""


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_stores_as_many_bytes_as_its_oracle(name: str) -> None:
    weight = torch.randn(96, 704)
    kernel = KERNELS[name]
    packed, plain = kernel.pack(weight), kernel.oracle.pack(weight)
    assert [f.nbytes for f in packed] == [f.nbytes for f in plain]
    assert [(tuple(f.shape), f.dtype) for f in packed] == list(kernel.specs(96, 704))


@pytest.mark.parametrize("name", KERNELS)
def test_no_product_is_larger_than_what_is_tried(name: str) -> None:
    kernel = KERNELS[name]
    packed = kernel.pack(torch.randn(32, 128))
    rows = torch.randn(MOST_ROWS + 40, 128).to(torch.bfloat16)
    first, rest = (kernel.matmul(part, packed) for part in torch.split(rows, MOST_ROWS))
    assert torch.equal(kernel.matmul(rows, packed), torch.cat((first, rest)))


@dataclass(frozen=True)
class Other:
    """A kernel made of Fp8 and one defect."""

    name: str = "other"
    oracle: Codec = field(default_factory=Fp8)
    tolerance: float = 0.01

    def specs(self, outputs: int, inputs: int) -> Sequence[FieldSpec]:
        return self.oracle.specs(outputs, inputs)

    def pack(self, weight: Tensor) -> Fields:
        return self.oracle.pack(weight)

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        return self.oracle.matmul(rows, fields)


class ScaledByTheBatch(Other):
    """Rounds activations by one scale for the whole batch: a row depends on its neighbours."""

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        scale = rows.abs().max() / 448
        return self.oracle.matmul(
            (rows / scale).to(torch.float8_e4m3fn).to(rows.dtype) * scale, fields
        )


class Wrong(Other):
    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        return self.oracle.matmul(rows, fields) * 1.1


class NotANumber(Other):
    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        return self.oracle.matmul(rows, fields) * float("nan")


class Broken(Other):
    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (ScaledByTheBatch(tolerance=0.2), "other bits in a batch of 1 than"),
        (Wrong(), "its results differ by"),
        (NotANumber(), "its results differ by"),
        (Broken(), "does not run: no kernel image"),
        (Int4Tiles(64, "cuda"), "cannot pack a matrix"),
    ],
)
def test_a_kernel_with_a_defect_is_refused_with_the_reason(kernel: Kernel, reason: str) -> None:
    assert reason in why_rejected(kernel, CPU, SHAPES)


class RowByRow(Other):
    """What the CPU sums in another order for one row than for many, it cannot do here."""

    def matmul(self, rows: Tensor, fields: Fields) -> Tensor:
        return torch.cat([self.oracle.matmul(row[None], fields) for row in rows])


def test_the_oracle_itself_row_by_row_would_be_admitted() -> None:
    assert why_rejected(RowByRow(), CPU, SHAPES) == ""


def test_a_cpu_unpacks() -> None:
    assert best_recipe("none", CPU, ()) is None
    assert best_recipe("fp8", CPU, ()) == Recipe(Fp8(), Fp8())
    assert best_recipe("int4", CPU, (), group=32) == Recipe(Fp8(), Int4(32))


def test_kernels_are_for_bfloat16_only() -> None:
    """Without a GPU: a device that is not there is not asked."""
    there = torch.device("cuda", 7)
    assert best_recipe("int4", there, (), dtype=torch.float32) == Recipe(Fp8(), Int4())


def test_a_recipe_is_named_by_what_decides_its_bits() -> None:
    assert Recipe(Fp8(), Fp8()).name == "fp8"
    assert Recipe(Fp8(), Int4()).name == "int4-g64+fp8"
    assert Recipe(Fp8ScaledMm(), Int4Tiles(64, "cuda")).name == "int4-tiles-g64+fp8-scaled-mm"


@pytest.mark.parametrize(("inputs", "inner"), [(2816, 8), (704, 4), (96, 2)])
def test_the_cuda_layout_uses_the_largest_tiles_that_fit(inputs: int, inner: int) -> None:
    (shape, dtype), _ = Int4Tiles(32, "cuda").specs(64, inputs)
    assert (shape, dtype) == ((8, inputs // (inner * 16), 32, inner // 2), torch.int32)
    assert torch.Size(shape).numel() * 4 == 64 * inputs // 2
