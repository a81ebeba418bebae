"""A row of a product has the same bits among any number of rows, whatever a library does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.layers.invariance import STEP, InvariantProduct, RowSpan, measure
from piecework_model.layers.projections import MOST_OUTPUTS, Products

WIDTH = 24
LIKE = torch.empty((0, WIDTH))


class Library:
    """A product whose order of summation depends on the number of rows, as `order` says."""

    def __init__(self, order: Callable[[int], int]) -> None:
        self.weight = torch.randn((WIDTH, 40), generator=torch.Generator().manual_seed(2))
        self.order = order
        self.counts: list[int] = []

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        self.counts.append(rows.shape[0])
        return (rows[:, :, None] * self.weight).sum(dim=1) + self.order(rows.shape[0]) * 1e-3


def product(library: Library, kind: object) -> InvariantProduct:
    return InvariantProduct(library, ("library", kind), LIKE)


LIBRARIES: dict[str, tuple[Callable[[int], int], RowSpan]] = {
    "one order": (lambda count: 0, RowSpan()),
    "another for few rows": (lambda count: int(count < 13), RowSpan(13)),
    "another up to 40": (lambda count: int(count < 41), RowSpan(48)),
    "two beyond few": (lambda count: int(count > 40) + int(count > 500), RowSpan(48, 496)),
    "another beyond 80": (lambda count: int(count > 80) + int(count > 250), RowSpan(16, 80)),
    "one for each number": (lambda count: count, RowSpan(64, 64)),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_span_is_found_and_makes_a_row_independent_of_the_others(name: str) -> None:
    order, expected = LIBRARIES[name]
    library = Library(order)
    made = product(library, name)
    assert made.span() == expected
    rows = torch.randn((700, WIDTH), generator=torch.Generator().manual_seed(3))
    whole = made(rows)
    library.counts.clear()
    for count in (0, 1, 12, 13, 47, 64, 100, 497, 700):
        assert torch.equal(made(rows[:count]), whole[:count])
        assert torch.equal(made(rows[700 - count :]), whole[700 - count :])
    assert all(expected.holds(count) for count in library.counts if count)


def test_without_a_span_all_rows_are_one_product() -> None:
    """A row depends on its place: no number of rows helps."""

    def by_place(rows: torch.Tensor) -> torch.Tensor:
        return rows + torch.arange(rows.shape[0])[:, None]

    assert measure(by_place, LIKE) is None
    made = InvariantProduct(by_place, "by place", LIKE)
    rows = torch.zeros((900, WIDTH))
    assert torch.equal(made(rows), by_place(rows))
    products = Products(rows, pack=False)
    products.of_foreign(by_place, "by place", WIDTH)
    assert products.isolated


@given(st.integers(1, 4), st.integers(0, 40), st.integers(1, 3000))
def test_pieces_are_of_the_span_and_as_few_as_can_be(low: int, more: int, count: int) -> None:
    span = RowSpan(STEP * low, STEP * (2 * low + more))
    size = span.piece_rows(count)
    assert span.holds(size)
    pieces = -(-count // size)
    assert pieces == -(-count // span.most)
    assert (pieces - 1) * size < count <= pieces * size


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(300, 192), (64, 8), (512, 256), (512, 960), (960, 512), (1100, 40)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(1, 700),
    st.integers(0, 2**16),
)
def test_on_this_machine_too(
    shape: tuple[int, int], dtype: torch.dtype, pack: bool, count: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape[::-1], generator=generator).to(dtype)
    rows = torch.randn((720, shape[0]), generator=generator).to(dtype)
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
    generator = torch.Generator().manual_seed(7)
    embeddings = torch.randn((5000, 48), generator=generator).bfloat16()
    probabilities = torch.rand((5 * 32, 5000), generator=generator).softmax(-1).bfloat16()
    for pack in (False, True):
        run = Products(embeddings, pack).of_embeddings(embeddings, 32)
        whole = run(probabilities)
        for index in range(5):
            part = slice(32 * index, 32 * (index + 1))
            assert torch.equal(run(probabilities[part]), whole[part])
