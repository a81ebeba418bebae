"""Packed weights: how far they may be from the real ones, and that a row's product is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from piecework_model import precision
from piecework_model.layers.quantization import Codec, Fp8, Int4, QuantizedLinear, linear

CODECS: dict[str, Codec] = {
    "fp8": Fp8(),
    "int4-g32": Int4(32),
    "int4-g64": Int4(64),
    "int4-g128": Int4(128),
}
WORST_ERROR = {"fp8": 0.028, "int4-g32": 0.085, "int4-g64": 0.094, "int4-g128": 0.102}
"""Root mean square error of normally distributed weights, as a share of theirs (docs/precision.md).
"""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unpacked(codec: Codec, weight: Tensor) -> Tensor:
    """The matrix [out, in] that the packed one stands for: what it makes of the unit vectors."""
    return codec.matmul(torch.eye(weight.shape[1]), codec.pack(weight)).t()


@pytest.mark.parametrize("name", CODECS)
def test_the_error_of_random_weights_is_what_the_documents_say(name: str) -> None:
    weight = random(256, 384)
    error = (
        unpacked(CODECS[name], weight) - weight
    ).square().mean().sqrt() / weight.square().mean().sqrt()
    assert 0.8 * WORST_ERROR[name] < error < WORST_ERROR[name]


def test_packing_what_fp8_can_say_changes_nothing() -> None:
    once = unpacked(Fp8(), random(32, 256))
    assert torch.equal(unpacked(Fp8(), once), once)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_rounds_to_the_nearest_value_that_its_scale_has(group: int) -> None:
    weight = random(32, 256)
    data, scale = Int4(group).pack(weight)
    index = torch.stack((data >> 4, data & 15), dim=-1).view(32, 256)
    step = scale.to(torch.float32).abs().repeat_interleave(group, dim=1)
    error = (unpacked(Int4(group), weight) - weight).abs()
    at_an_end = (index == 0) | (index == 15)
    assert bool(((error <= step / 2 + 1e-6) | at_an_end).all())
    assert at_an_end.float().mean() < 0.1


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30)
@given(rows=st.integers(1, 40), start=st.integers(0, 39), inputs=st.sampled_from([128, 384, 640]))
def test_a_row_has_the_same_bits_alone_and_among_others(
    name: str, dtype: torch.dtype, rows: int, start: int, inputs: int
) -> None:
    codec = CODECS[name]
    packed = codec.pack(random(96, inputs))
    x = random(80, inputs, seed=1).to(dtype)
    assert torch.equal(
        codec.matmul(x[start : start + rows], packed), codec.matmul(x, packed)[start : start + rows]
    )


@pytest.mark.parametrize("name", CODECS)
def test_the_product_is_that_of_the_unpacked_matrix(name: str) -> None:
    codec, weight, x = CODECS[name], random(48, 256), random(16, 256, seed=1)
    expected = x.double() @ unpacked(codec, weight).double().t()
    assert torch.allclose(codec.matmul(x, codec.pack(weight)).double(), expected, atol=1e-4)
    narrow = codec.matmul(x.bfloat16(), codec.pack(weight)).double()
    assert (narrow - expected).abs().max() < 0.02 * expected.abs().max()


def test_fp8_scales_are_powers_of_two_and_use_the_whole_range() -> None:
    weight = random(64, 128) * torch.logspace(-30, 30, 64, base=2)[:, None]
    data, scale = Fp8().pack(weight)
    assert torch.equal(torch.frexp(scale).mantissa, torch.full((64,), 0.5))
    largest = data.to(torch.float32).abs().amax(dim=1)
    assert bool(((largest > 223) & (largest <= 448)).all())


def test_a_weight_of_exactly_the_largest_value_is_kept() -> None:
    data, scale = Fp8().pack(torch.full((1, 32), 448.0))
    assert scale.item() == 1.0
    assert torch.equal(data.to(torch.float32), torch.full((1, 32), 448.0))


def test_int4_uses_all_sixteen_values() -> None:
    data, _ = Int4(32).pack(random(64, 128))
    halves = torch.cat([data >> 4, data & 15]).flatten()
    assert set(halves.tolist()) == set(range(16))


def test_int4_keeps_the_even_input_in_the_high_half() -> None:
    """CUDA's packing reads it so."""
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 1] = 8.0, -4.0  # the largest gets index 0, so the scale is -1
    data, scale = Int4(32).pack(weight)
    assert scale.item() == -1.0
    assert data[0, 0].item() == (0 << 4) | 12
    assert data[0, 1].item() == (8 << 4) | 8


@pytest.mark.parametrize("name", CODECS)
def test_a_matrix_of_zeros_stays_one(name: str) -> None:
    assert torch.equal(unpacked(CODECS[name], torch.zeros(8, 128)), torch.zeros(8, 128))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused(name: str, bad: float) -> None:
    weight = torch.zeros(8, 128)
    weight[3, 5] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        CODECS[name].pack(weight)


@pytest.mark.parametrize(
    ("inputs", "group", "used"), [(704, 128, 64), (96, 128, 32), (2816, 128, 128), (48, 128, 0)]
)
def test_the_group_is_the_largest_that_divides_the_width(
    inputs: int, group: int, used: int
) -> None:
    assert precision.int4_group(inputs, group) == used
    if used:
        assert Int4(group).pack(random(8, inputs))[1].shape == (8, inputs // used)
    else:
        with pytest.raises(ValueError, match="divides 48 inputs"):
            Int4(group).pack(random(8, inputs))


@pytest.mark.parametrize("name", CODECS)
def test_fields_are_what_their_specification_says(name: str) -> None:
    codec = CODECS[name]
    fields = codec.pack(random(24, 384))
    assert [(tuple(field.shape), field.dtype) for field in fields] == list(codec.specs(24, 384))


@pytest.mark.parametrize("name", CODECS)
def test_a_packed_linear_takes_the_place_of_a_plain_one(name: str) -> None:
    plain = nn.Linear(128, 40, bias=False)
    packed = QuantizedLinear(128, 40, CODECS[name])
    packed.fill(plain.weight.detach(), torch.device("cpu"))
    x = random(2, 5, 128)
    product = packed(x)
    assert product.shape == (2, 5, 40)
    assert (product - plain(x)).abs().max() < 0.2
    assert torch.equal(product[1, 2], packed(x[1, 2]))
    specified = sum(
        torch.Size(shape).numel() * dtype.itemsize for shape, dtype in CODECS[name].specs(40, 128)
    )
    assert sum(buffer.nbytes for buffer in packed.buffers()) == specified


@given(st.integers(1, 24), st.sampled_from([32, 96, 128, 320, 704]))
def test_few_rows_are_padded_and_the_padding_is_cut_off(rows: int, inputs: int) -> None:
    weight, x = random(33, inputs), random(64, inputs, seed=2)
    product = linear(x[:rows], weight)
    assert product.shape == (rows, 33)
    assert torch.equal(product, linear(x, weight)[:rows])
