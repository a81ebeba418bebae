"""Packed experts: the sum that transformers makes, and the same bits wherever the bytes are
kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaTextExperts

from piecework_model import precision
from piecework_model.layers.experts import (
    MATRICES,
    DeviceBytes,
    ExpertLayout,
    QuantizedExperts,
)
from piecework_model.layers.offload import ExpertCache, HostBytes
from piecework_model.layers.quantization import Codec, Fp8, Int4

CPU = torch.device("cpu")
EXPERTS, HIDDEN, NARROW, CHOSEN = 6, 128, 96, 2
CODECS: dict[str, Codec] = {"fp8": Fp8(), "int4": Int4()}


def plain_experts(seed: int) -> DiffusionGemmaTextExperts:
    """transformers' own module with random weights; one expert after the other, as the engine asks
    for it."""
    config = DiffusionGemmaTextConfig(
        hidden_size=HIDDEN, moe_intermediate_size=NARROW, num_experts=EXPERTS, top_k_experts=CHOSEN
    )
    config._experts_implementation = "eager"
    module = DiffusionGemmaTextExperts(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def packed(
    plain: DiffusionGemmaTextExperts, codec: Codec, layer: int = 0, cache: ExpertCache | None = None
) -> QuantizedExperts:
    layout = ExpertLayout(HIDDEN, NARROW, codec)
    source = (
        HostBytes(layer, EXPERTS, cache)
        if cache
        else DeviceBytes(EXPERTS, layout.expert_bytes, CPU)
    )
    module = QuantizedExperts(EXPERTS, layout, codec, plain.act_fn, source)
    for matrix in MATRICES:
        for expert in range(EXPERTS):
            module.fill(matrix, expert, getattr(plain, matrix)[expert], CPU)
    return module


def unpacked(plain: DiffusionGemmaTextExperts, codec: Codec) -> DiffusionGemmaTextExperts:
    """transformers' module with the weights that the packed ones stand for."""
    for matrix in MATRICES:
        weight = getattr(plain, matrix)
        for expert in range(EXPERTS):
            weight[expert] = codec.matmul(
                torch.eye(weight.shape[2]), codec.pack(weight[expert])
            ).t()
    return plain


def tokens(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [n, H], and for each token its experts and their weights [n, K]."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn((count, HIDDEN), generator=generator)
    chosen = torch.rand((count, EXPERTS), generator=generator).topk(CHOSEN, dim=-1)
    return hidden, chosen.indices, chosen.values


def layout(codec: Codec) -> ExpertLayout:
    return ExpertLayout(HIDDEN, NARROW, codec)


@pytest.mark.parametrize("name", CODECS)
def test_the_sum_is_that_of_transformers_over_the_unpacked_weights(name: str) -> None:
    plain = plain_experts(1)
    module = packed(plain, CODECS[name])
    theirs = unpacked(plain, CODECS[name])(*tokens(50))
    assert torch.allclose(module(*tokens(50)), theirs, atol=1e-5)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("name", CODECS)
def test_one_expert_is_what_the_sum_is_made_of(name: str) -> None:
    module, (hidden, chosen, weights) = packed(plain_experts(2), CODECS[name]), tokens(1)
    by_hand = torch.zeros_like(hidden)
    for place in chosen[0].argsort().tolist():
        by_hand += module.run(int(chosen[0, place]), hidden) * weights[0, place]
    assert torch.equal(module(hidden, chosen, weights), by_hand)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25)
@given(st.integers(0, 39), st.integers(1, 40))
def test_a_token_has_the_same_bits_whoever_shares_the_pass(
    name: str, dtype: torch.dtype, start: int, count: int
) -> None:
    module = packed(plain_experts(3), CODECS[name])
    hidden, chosen, weights = tokens(40)
    hidden, part = hidden.to(dtype), slice(start, start + count)
    alone = module(hidden[part], chosen[part], weights[part])
    assert torch.equal(alone, module(hidden, chosen, weights)[part])


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2 * EXPERTS),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), max_size=8),
)
def test_experts_in_host_memory_give_the_same_bits_at_any_budget(
    name: str, slots: int, passes: list[tuple[int, int]]
) -> None:
    codec = CODECS[name]
    plain = [plain_experts(seed) for seed in (4, 5)]
    cache = ExpertCache(
        slots * layout(codec).expert_bytes, layout(codec).expert_bytes, 2 * EXPERTS, CPU
    )
    resident = [packed(experts, codec) for experts in plain]
    away = [packed(experts, codec, number, cache) for number, experts in enumerate(plain)]
    for number, (layer, count) in enumerate(passes):
        batch = tokens(count, seed=number)
        assert torch.equal(away[layer](*batch), resident[layer](*batch))
    assert cache.slots.nbytes <= slots * layout(codec).expert_bytes
    assert len(cache.residency) <= slots


def test_what_is_in_host_memory_does_not_move_with_the_model() -> None:
    codec = Fp8()
    size = layout(codec).expert_bytes
    module = packed(plain_experts(6), codec, 0, ExpertCache(size, size, EXPERTS, CPU))
    assert list(module.buffers()) == []
    assert [b.nbytes for b in packed(plain_experts(6), codec).buffers()] == [EXPERTS * size]


def test_a_cache_is_never_larger_than_all_experts() -> None:
    assert len(ExpertCache(10**6, 100, 7, CPU).slots) == 7


def test_a_budget_below_one_expert_is_refused() -> None:
    with pytest.raises(ValueError, match="99 bytes holds no expert of 100"):
        ExpertCache(99, 100, 7, CPU)


def test_a_copy_that_fails_leaves_no_wrong_expert_behind() -> None:
    cache = ExpertCache(200, 100, 4, CPU)
    good = torch.arange(100, dtype=torch.uint8)[None]
    cache.add(0, good[:, :50])
    with pytest.raises(RuntimeError):
        cache.fetch(0, [0])
    cache.add(0, good)
    assert torch.equal(cache.slots[cache.fetch(0, [0])[0]], good[0])


@pytest.mark.parametrize("name", CODECS)
def test_an_expert_takes_the_bytes_that_the_plan_counts(name: str) -> None:
    kind: precision.Quantization = "fp8" if name == "fp8" else "int4"
    counted = sum(
        precision.stored_bytes(f"model.decoder.layers.0.experts.{matrix}", shape, "bfloat16", kind)
        for matrix, shape in (
            ("gate_up_proj", (EXPERTS, 2 * NARROW, HIDDEN)),
            ("down_proj", (EXPERTS, HIDDEN, NARROW)),
        )
    )
    assert counted == EXPERTS * layout(CODECS[name]).expert_bytes


def test_fields_share_an_experts_bytes_without_overlap() -> None:
    place = ExpertLayout(HIDDEN, 33 * 32, Int4())
    expert = torch.zeros(place.expert_bytes, dtype=torch.uint8)
    writes: list[Callable[[], Tensor]] = []
    for number, matrix in enumerate(MATRICES):
        for field in place.fields(matrix, expert):
            field.fill_(number + 1)
            writes.append(lambda field=field, number=number: field == number + 1)  # type: ignore[misc]
    assert all(bool(still().all()) for still in writes)
