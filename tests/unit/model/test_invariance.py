"""A row of a product has the same bits among any number of rows, whatever a library does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from piecework_model.layers.invariance import (
    ROW_COUNTS,
    InvariantProduct,
    Projection,
    RowSpan,
    WeightKind,
    cancelling,
)
from piecework_model.layers.projections import MOST_OUTPUTS, Products

WIDTH = 24


class Library:
    """A product whose order of summation depends on the number of rows, as `order` says."""

    def __init__(self, order: Callable[[int], int]) -> None:
        self.weight = torch.randn((40, WIDTH), generator=torch.Generator().manual_seed(2))
        self.order = order
        self.counts: list[int] = []

    def make(self, weight: torch.Tensor) -> Projection:
        def run(rows: torch.Tensor) -> torch.Tensor:
            count = rows.shape[0]
            self.counts.append(count)
            return (rows[:, :, None] * weight.t()).sum(dim=1) + self.order(count) * 1e-3

        return run

    def product(self) -> InvariantProduct:
        return InvariantProduct(self.make(self.weight), WeightKind.of(self.make, self.weight))


LIBRARIES: dict[str, tuple[Callable[[int], int], RowSpan]] = {
    "one order": (lambda count: 0, RowSpan(8, 640)),
    "another for few rows": (lambda count: int(count < 13), RowSpan(16, 640)),
    "another up to 40": (lambda count: int(count < 41), RowSpan(48, 640)),
    "two beyond few": (lambda count: int(count > 40) + int(count > 500), RowSpan(48, 480)),
    "another beyond 80": (lambda count: int(count > 80) + int(count > 250), RowSpan(8, 80)),
    "another in the middle": (lambda count: int(161 <= count <= 191), RowSpan(8, 160)),
    "another beyond all that are tried": (lambda count: int(count > 640), RowSpan(8, 640)),
    "another between two that are tried": (lambda count: count % 8, RowSpan(8, 640)),
    "one for each number": (lambda count: count, RowSpan(64, 64)),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_span_is_found_and_makes_a_row_independent_of_the_others(name: str) -> None:
    order, expected = LIBRARIES[name]
    library = Library(order)
    made = library.product()
    assert made.span() == expected
    rows = torch.randn((1500, WIDTH), generator=torch.Generator().manual_seed(3))
    whole = made(rows)
    library.counts.clear()
    for count in (0, 1, 12, 13, 47, 64, 100, 176, 497, 700, 1500):
        assert torch.equal(made(rows[:count]), whole[:count])
        assert torch.equal(made(rows[1500 - count :]), whole[1500 - count :])
    assert all(expected.holds(count) for count in library.counts if count)


def test_without_a_span_all_rows_are_one_product() -> None:
    """A row depends on its place: no number of rows helps."""

    def by_place(rows: torch.Tensor) -> torch.Tensor:
        return rows + torch.arange(rows.shape[0])[:, None]

    rows = torch.zeros((900, WIDTH))
    products = Products(rows, pack=False)
    made = products.of_foreign(by_place, "by place", WIDTH)
    assert products.isolated
    assert torch.equal(made(rows), by_place(rows))


def test_what_multiplies_in_its_own_way_is_called_a_few_times_if_its_rows_are_alike() -> None:
    """Each call of a packed module unpacks its weights."""
    calls = []

    def own(rows: torch.Tensor) -> torch.Tensor:
        calls.append(rows.shape[0])
        return rows * 2

    products = Products(torch.zeros((0, WIDTH)), pack=False)
    made = products.of_foreign(own, "its own", WIDTH)
    assert not products.isolated
    assert len(calls) < 150
    calls.clear()
    made(torch.zeros((777, WIDTH)))
    assert calls == [777]


@given(st.data(), st.integers(1, 3000))
def test_pieces_are_of_the_span_and_as_few_as_can_be(data: st.DataObject, count: int) -> None:
    fewest = data.draw(st.sampled_from([count for count in ROW_COUNTS if count <= 64]))
    span = RowSpan(fewest, data.draw(st.sampled_from([c for c in ROW_COUNTS if c >= fewest])))
    size = span.piece_rows(count)
    assert span.holds(size)
    assert -(-count // size) == -(-count // span.most)


@pytest.mark.parametrize("width", [2, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_tried_shows_the_order_of_a_sum(width: int, dtype: torch.dtype) -> None:
    """All that is left of it is its error. A sum of the halves is another one."""
    rows, weight = (part.to(dtype) for part in cancelling(4, width))
    exact = rows.double() @ weight.double().t()
    assert float(exact.abs().max()) < 1e-9
    one = rows.float() @ weight.float().t()
    half = width // 2
    first, last = (
        rows[:, part].float() @ weight[:, part].float().t()
        for part in (slice(0, half), slice(half, None))
    )
    other = first + last
    if width > 100:
        assert float((one.to(dtype) != other.to(dtype)).float().mean()) > 0.5


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(
        [
            *[(300, 192), (64, 8), (64, 2), (512, 256), (512, 960), (960, 512), (1100, 48)],
            *[(2048, 192), (1408, 704), (704, 1024), (960, 32), (2048, 40), (512, 1024)],
        ]
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(1, 1400),
    st.integers(0, 2**16),
)
def test_on_this_machine_too(
    shape: tuple[int, int], dtype: torch.dtype, pack: bool, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape[::-1], generator=generator).to(dtype)
    rows = torch.randn((1400, shape[0]), generator=generator).to(dtype)
    products = Products(weight, pack)
    run = products.of_weight(weight)
    assert not products.isolated
    whole = run(rows)
    assert torch.equal(run(rows[:count]), whole[:count])
    assert torch.equal(run(rows[-count:]), whole[-count:])
    in_float32 = rows.float() @ weight.float().t()
    assert torch.allclose(whole.float(), in_float32, rtol=0.02, atol=0.05 * shape[0] ** 0.5)


def test_a_wide_product_is_made_of_several() -> None:
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn((2 * MOST_OUTPUTS + 5, WIDTH), generator=generator)
    rows = torch.randn((3, WIDTH), generator=generator)
    products = Products(weight, pack=False)
    made = products.of_weight(weight)(rows)
    assert len(products.made) == 3
    assert torch.allclose(made, rows @ weight.t(), atol=1e-5)


def test_soft_embeddings_are_a_product_for_each_canvas() -> None:
    """Whatever the number of canvases, the inner dimension is added up in one order."""
    counts: list[int] = []

    class Counting(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.matmul:
                counts.append(args[0].shape[0])
            return func(*args, **(kwargs or {}))

    generator = torch.Generator().manual_seed(7)
    embeddings = torch.randn((5000, 48), generator=generator)
    probabilities = torch.rand((5 * 32, 5000), generator=generator).softmax(-1)
    run = Products(embeddings, pack=False).of_embeddings(embeddings, 32)
    with Counting():
        whole = run(probabilities)
    assert counts == [32] * 5
    assert torch.equal(run(probabilities[32:64]), whole[32:64])
