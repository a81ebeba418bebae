"""The fused mixture of experts against the plain one, in Triton's interpreter; its kernels,
compiled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.activations import ACT2FN
from triton.runtime.interpreter import InterpretedFunction

from piecework_model.layers import moe_backends, moe_kernels
from piecework_model.layers.experts import (
    MATRICES,
    DeviceBytes,
    ExpertLayout,
    QuantizedExperts,
)
from piecework_model.layers.moe import Moe
from piecework_model.layers.moe_triton import TILE_ROWS, FusedMoe, Matrices, tiles
from piecework_model.layers.offload import GROUP, ExpertCache, HostBytes
from piecework_model.layers.packed_kernels import Fp8ScaledMm, Int4Tiles
from piecework_model.layers.projections import Products
from piecework_model.layers.quantization import Codec, Fp8, Int4
from piecework_model.layers.recipes import fused_rejected

DEVICE = torch.device("cpu" if isinstance(moe_kernels.expert_up, InterpretedFunction) else "cuda")
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
HIDDEN, WIDTH = 96, 160  # no multiples of a block of 64
GELU = ACT2FN["gelu_pytorch_tanh"]


def weights_of(experts: int, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate_up_proj": (experts, 2 * WIDTH, HIDDEN), "down_proj": (experts, HIDDEN, WIDTH)}
    return {
        name: (0.1 * torch.randn(shape, generator=generator)).to(DEVICE, dtype)
        for name, shape in shapes.items()
    }


def published(experts: int, dtype: torch.dtype, seed: int = 0) -> Any:
    """As transformers' module holds them."""
    return SimpleNamespace(num_experts=experts, act_fn=GELU, **weights_of(experts, dtype, seed))


def packed(experts: int, codec: Codec, slots: int | None = None) -> QuantizedExperts:
    """Packed experts, in host memory with so many slots on the device if `slots` is given."""
    layout = ExpertLayout(HIDDEN, WIDTH, codec)
    source: Any = DeviceBytes(experts, layout.expert_bytes, DEVICE)
    if slots is not None:
        size = layout.expert_bytes
        source = HostBytes(0, experts, ExpertCache(slots * size, size, experts, DEVICE))
    module = QuantizedExperts(experts, layout, codec, GELU, source)
    for matrix in MATRICES:
        for expert, weight in enumerate(weights_of(experts, torch.bfloat16)[matrix]):
            module.fill(matrix, expert, weight, DEVICE)
    return module


def routing(tokens: int, experts: int, k: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """States, chosen experts and their shares. Low experts are popular, others are not chosen at
    all."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand((tokens, experts), generator=generator) - 0.3 * torch.arange(experts)
    shares, chosen = scores.softmax(-1).topk(k, dim=-1)
    hidden = torch.randn((tokens, HIDDEN), generator=generator)
    return hidden.to(DEVICE, dtype), chosen.to(DEVICE), shares.to(DEVICE)


def plain(experts: Any) -> Moe:
    return Moe(experts, Products(torch.empty((0, HIDDEN)), pack=False, invariant=False))


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 150),
    st.sampled_from([(1, 1), (3, 2), (9, 4)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**16),
)
def test_the_sum_is_that_of_the_plain_moe(
    tokens: int, experts_k: tuple[int, int], dtype: torch.dtype, seed: int
) -> None:
    experts, k = experts_k
    module = published(experts, dtype, seed)
    given = routing(tokens, experts, k, dtype, seed)
    expected = plain(module)(*given)
    made = moe_backends.fused_moe(module)(*given)
    assert made.dtype == dtype and made.shape == expected.shape
    error = (made.float() - expected.float()).abs().max()
    # In bfloat16 a sum on the edge of rounding may fall to the other side, once a product.
    tolerance = 1e-5 if dtype is torch.float32 else 4 * torch.finfo(dtype).eps
    assert float(error) <= tolerance * float(expected.float().abs().max())


def test_in_bfloat16_nearly_every_value_is_that_of_the_plain_moe() -> None:
    """Each intermediate is rounded where the modules round it, and experts are summed in the same
    order."""
    module = published(6, torch.bfloat16)
    given = routing(80, 6, 4, torch.bfloat16, seed=5)
    equal = moe_backends.fused_moe(module)(*given) == plain(module)(*given)
    assert float(equal.float().mean()) > 0.98


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_experts_are_read_where_they_lie(dtype: torch.dtype) -> None:
    module = packed(5, Fp8())
    given = routing(40, 5, 2, dtype, seed=3)
    expected = plain(module)(*given)
    made = moe_backends.fused_moe(module)(*given)
    assert float((made - expected).abs().max()) <= 0.01 * float(expected.abs().max())
    unpacked = plain(published(5, dtype))(*given)
    assert float((unpacked - expected).abs().max()) > 0.01 * float(
        expected.abs().max()
    )  # so scales count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("hidden", "width", "group"), [(96, 160, 32), (128, 192, 64), (256, 128, 128), (320, 64, 64)]
)
def test_4_bit_experts_are_unpacked_in_the_product(
    dtype: torch.dtype, hidden: int, width: int, group: int
) -> None:
    """With groups smaller than a block of the loop, as large, and larger."""
    experts, codec = 4, Int4(group)
    layout = ExpertLayout(hidden, width, codec)
    source = DeviceBytes(experts, layout.expert_bytes, DEVICE)
    module = QuantizedExperts(experts, layout, codec, GELU, source)
    generator = torch.Generator().manual_seed(group)
    shapes = ((2 * width, hidden), (hidden, width))
    for matrix, shape in zip(MATRICES, shapes, strict=True):
        for expert in range(experts):
            module.fill(matrix, expert, 0.1 * torch.randn(shape, generator=generator), DEVICE)
    states = torch.randn((70, hidden), generator=generator).to(DEVICE, dtype)
    shares, chosen = torch.rand((70, experts), generator=generator).to(DEVICE).topk(2, dim=-1)
    expected = plain(module)(states, chosen, shares)
    made = moe_backends.fused_moe(module)(states, chosen, shares)
    tolerance = 1e-5 if dtype is torch.float32 else 4 * torch.finfo(dtype).eps
    assert float((made - expected).abs().max()) <= tolerance * float(expected.abs().max())
    if dtype is torch.bfloat16:
        assert float((made == expected).float().mean()) > 0.97
    some = moe_backends.fused_moe(module)(states[5:9], chosen[5:9], shares[5:9])
    assert torch.equal(some, made[5:9])


@pytest.mark.parametrize(("codec", "slots"), [(Int4(32), 1), (Fp8(), 3), (Int4(32), 9)])
def test_experts_in_host_memory_run_together_and_have_the_bits_of_those_on_the_device(
    codec: Codec, slots: int
) -> None:
    """With one slot, with fewer than are chosen, and with more than there are."""
    experts = 5
    resident, away = packed(experts, codec), packed(experts, codec, slots)
    here, there = moe_backends.fused_moe(resident), moe_backends.fused_moe(away)
    assert [moe_backends.name_of(moe) for moe in (here, there)] == ["fused", "grouped"]
    for seed, tokens in enumerate((33, 1)):
        given = routing(tokens, experts, 3, torch.bfloat16, seed)
        assert torch.equal(there(*given), here(*given))
    assert torch.equal(plain(away)(*given), plain(resident)(*given))


def test_a_layer_in_host_memory_has_two_launches_for_each_group_of_its_chosen_experts() -> None:
    experts = 40
    module = packed(experts, Int4(32), slots=40)
    source = module.source
    assert isinstance(source, HostBytes)
    tables = list(source.groups(torch.tensor([7, 39, 7, 0])))
    assert len(tables) == 1
    assert (tables[0] >= 0).nonzero().flatten().tolist() == [0, 7, 39]
    of_all = list(source.groups(torch.arange(experts)))
    assert len(of_all) == -(-experts // GROUP)
    assert (torch.stack(of_all) >= 0).sum(0).tolist() == [1] * experts


@pytest.mark.parametrize("codec", [None, Fp8(), Int4(64)])
def test_experts_are_tried_before_a_model_is_packed_for_them(codec: Codec | None) -> None:
    assert fused_rejected(128, 64, codec, DEVICE) == ""


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=40, unique=True), st.integers(0, 2**16))
def test_a_token_has_the_same_bits_in_any_company(members: list[int], seed: int) -> None:
    fused = moe_backends.fused_moe(published(4, torch.bfloat16))
    hidden, chosen, shares = routing(100, 4, 2, torch.bfloat16, seed)
    whole = fused(hidden, chosen, shares)
    some = fused(hidden[members], chosen[members], shares[members])
    assert torch.equal(some, whole[members])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=400))
def test_tiles_hold_every_pair_once_and_no_expert_but_their_own(chosen: list[int]) -> None:
    experts = 7
    made = tiles(torch.tensor(chosen), experts)
    found: list[int] = []
    for expert, first in zip(made.expert.tolist(), made.first.tolist(), strict=True):
        if expert < experts:
            stop = min(first + TILE_ROWS, int(made.starts[expert + 1]))
            pairs = made.order[first:stop].tolist()
            assert pairs and {chosen[pair] for pair in pairs} == {expert}
            found += pairs
    assert sorted(found) == list(range(len(chosen)))
    assert len(made.expert) == len(chosen) // TILE_ROWS + experts


def test_the_number_of_tiles_depends_on_the_number_of_pairs_alone() -> None:
    """Or no grid could be recorded."""
    crowded, spread = torch.zeros(256, dtype=torch.int64), torch.arange(256) % 16
    assert len(tiles(crowded, 16).expert) == len(tiles(spread, 16).expert) == 256 // TILE_ROWS + 16


def test_on_a_cpu_the_plain_moe_runs() -> None:
    module = published(3, torch.float32)
    kept = plain(module)
    chosen = moe_backends.moe_for(module, kept, 2, CPU, torch.float32)
    assert (chosen.name, chosen.run, chosen.reason) == ("plain", kept, "no kernels for cpu")


def test_the_fused_moe_is_admitted_where_it_agrees() -> None:
    """Also beside experts that round their activations, which it does not."""
    module = packed(6, Fp8ScaledMm())
    trial = moe_backends.MoeTrial(
        6, HIDDEN, 2, DEVICE, torch.bfloat16, tolerance=moe_backends.tolerance(module)
    )
    assert moe_backends.why_rejected(moe_backends.fused_moe(module), plain(module), trial) == ""


def test_a_moe_that_is_wrong_is_refused_with_the_reason() -> None:
    module = published(3, torch.float32)
    kept = plain(module)
    trial = moe_backends.MoeTrial(3, HIDDEN, 2, DEVICE, torch.float32)

    def unshared(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return kept(hidden, chosen, torch.ones_like(weights))

    def of_the_batch(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return kept(hidden, chosen, weights) + 1e-6 * len(hidden)

    def broken(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        raise RuntimeError("out of resource: shared memory\nmore")

    assert "of the largest" in moe_backends.why_rejected(unshared, kept, trial)
    assert (
        moe_backends.why_rejected(of_the_batch, kept, trial)
        == "its result has other bits in a batch of 1 than in one of 320"
    )
    assert (
        moe_backends.why_rejected(broken, kept, trial)
        == "it does not run: out of resource: shared memory"
    )


def test_experts_that_the_kernels_cannot_read_are_named() -> None:
    with pytest.raises(ValueError, match="no kernels for experts packed as int4-tiles-g32"):
        moe_backends.fused_moe(packed(2, Int4Tiles(32, "cpu")))


def test_matrices_that_do_not_belong_together_are_refused() -> None:
    gate_up, down = torch.zeros(2, 8, 4), torch.zeros(2, 4, 4)
    with pytest.raises(ValueError, match="contiguous"):
        Matrices(gate_up.transpose(1, 2), None)
    with pytest.raises(ValueError, match="scales"):
        Matrices(gate_up, torch.zeros(2, 7))
    quarters = torch.zeros(2, 8, 16, dtype=torch.uint8)
    for scales in (None, torch.zeros(2, 8, 1), torch.zeros(2, 8, 3, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="scales"):
            Matrices(quarters, scales)
    with pytest.raises(ValueError, match="are no experts"):
        FusedMoe(Matrices(gate_up, None), Matrices(down[:1], None))


@pytest.mark.process
def test_the_kernels_compile_to_tensor_cores_and_copies_in_the_background(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "tests.support.model.kernel_targets", "80", "90"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    compiled = json.loads(result.stdout)
    assert len(compiled) == 8 + 10  # Ampere has no float8
    for kernel in compiled:
        assert kernel["tensor_core_products"] > 0, kernel
        assert kernel["asynchronous_copies"] > 0, kernel
        assert kernel["shared_bytes"] <= 100_000, (
            kernel
        )  # two blocks a processor on Hopper, one on others
        assert not kernel["local_memory"], kernel
