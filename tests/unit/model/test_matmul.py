"""Products of tiles of one size, in Triton's interpreter, and what a product has to show to be
used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from triton.runtime.interpreter import InterpretedFunction

from piecework_model.layers import matmul as products
from piecework_model.layers import matmul_kernels as product_kernels
from piecework_model.layers.projections import Products, joined

DEVICE = torch.device(
    "cpu" if isinstance(product_kernels.fixed_product, InterpretedFunction) else "cuda"
)
CPU = torch.device("cpu")


def matrices(
    rows: int, width: int, outputs: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn((rows, width), generator=generator)
    weight = torch.randn((outputs, width), generator=generator)
    return states.to(DEVICE, dtype), weight.to(DEVICE, dtype)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 150),
    st.sampled_from([1, 63, 64, 200]),
    st.sampled_from([1, 128, 150]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_a_product_of_any_shape_is_right(
    rows: int, width: int, outputs: int, dtype: torch.dtype, turned: bool
) -> None:
    """For weights [out, in], and for the embedding, whose inputs are the vocabulary: [in, out]."""
    states, weight = matrices(rows, width, outputs, dtype)
    if turned:
        weight = weight.t().contiguous().t()
    made = products.multiply(states, weight)
    expected = states.double() @ weight.double().t()
    assert made.dtype == dtype
    sums = 4 * torch.finfo(torch.float32).eps * (states.double().abs() @ weight.double().abs().t())
    assert (
        (made.double() - expected).abs() <= torch.finfo(dtype).eps * expected.abs() + sums
    ).all()


@pytest.mark.parametrize(("width", "outputs"), [(63, 128), (64, 130), (70, 150)])
def test_nothing_beyond_the_matrices_counts(width: int, outputs: int) -> None:
    """What lies behind them in memory is not a number here, and so is every product with it."""
    states, weight = matrices(70, width, outputs, torch.float32)
    room = torch.full((outputs * width + 20_000,), torch.nan, device=DEVICE)
    placed = room[: outputs * width].view(outputs, width).copy_(weight)
    assert torch.equal(products.multiply(states, placed), products.multiply(states, weight))
    assert placed.isfinite().all() and room[outputs * width :].isnan().all()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 199), min_size=1, max_size=90, unique=True))
def test_a_row_has_the_same_bits_in_any_company(members: list[int]) -> None:
    states, weight = matrices(200, 130, 140, torch.bfloat16)
    whole = products.multiply(states, weight)
    assert torch.equal(products.multiply(states[members], weight), whole[members])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fixed_product_is_admitted_where_it_runs(dtype: torch.dtype) -> None:
    assert products.try_product(products.multiply, DEVICE, dtype) == ""


def test_a_product_that_is_wrong_is_refused_with_the_reason() -> None:
    def off(states: Tensor, weight: Tensor) -> Tensor:
        return products.multiply(states, weight) * 1.02

    def of_the_batch(states: Tensor, weight: Tensor) -> Tensor:
        return products.multiply(states, weight) + 1e-4 * len(states)

    def broken(states: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("out of resource: shared memory\nmore")

    assert (
        products.try_product(off, DEVICE, torch.float32)
        == "its results differ by 2.00% of the largest"
    )
    expected = "its result has other bits in a batch of 1 than in one of 520"
    assert products.try_product(of_the_batch, DEVICE, torch.float32) == expected
    assert products.try_product(broken, DEVICE, torch.float32).startswith(
        "it does not run: out of resource"
    )


def test_on_a_cpu_torch_multiplies() -> None:
    assert products.why_rejected(CPU, torch.float32) == "no kernels for cpu"


def test_matrices_that_do_not_fit_are_refused() -> None:
    states, weight = matrices(3, 8, 5, torch.float32)
    with pytest.raises(ValueError, match="x"):
        products.multiply(states, weight[:, :7])
    with pytest.raises(ValueError, match="bfloat16"):
        products.multiply(states, weight.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_modules_have_the_bits_that_each_has_alone(dtype: torch.dtype) -> None:
    modules = [nn.Linear(96, outputs, bias=False).to(DEVICE, dtype) for outputs in (160, 64, 70)]
    states = matrices(50, 96, 1, dtype)[0]
    with torch.inference_mode():
        alone = [products.multiply(states, module.weight) for module in modules]
        kept = [module.weight.clone() for module in modules]
    run = joined(modules, products.multiply)
    with torch.inference_mode():
        assert all(map(torch.equal, run(states), alone))
    assert all(map(torch.equal, (module.weight for module in modules), kept))


def test_joined_weights_are_stored_once() -> None:
    modules = [nn.Linear(8, outputs, bias=False) for outputs in (4, 6)]
    joined(modules, products.multiply)
    (first, second) = (module.weight.untyped_storage() for module in modules)
    assert first.data_ptr() == second.data_ptr()
    assert first.nbytes() == 10 * 8 * 4
    with torch.no_grad():
        modules[1].weight.fill_(1.0)
    states = torch.ones(2, 8)
    assert torch.equal(joined(modules, products.multiply)(states)[1], torch.full((2, 6), 8.0))


def test_modules_that_cannot_be_joined_run_one_by_one() -> None:
    modules = [nn.Linear(8, outputs, bias=False) for outputs in (4, 6)]
    states = torch.ones(2, 8)
    with torch.inference_mode():
        made = Products(states, pack=False).of_modules(modules)(states)
        assert all(map(torch.equal, made, (module(states) for module in modules)))


def test_a_product_whose_outputs_depend_on_their_place_is_refused() -> None:
    def placed(states: Tensor, weight: Tensor) -> Tensor:
        return products.multiply(states, weight) + 1e-6 * len(weight)

    assert "other bits without the 8 before them" in products.try_product(
        placed, DEVICE, torch.float32
    )
