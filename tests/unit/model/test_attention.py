"""Attention with the group as batch axis: the bits of transformers, and no copy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from piecework_model.layers.attention import (
    attend,
    attend_each,
    why_device_is_unfused,
    why_unfused,
)
from tests.support.model.allocations import allocations


@dataclass(frozen=True)
class Shape:
    """Sizes of one call. before: keys that every query sees."""

    kv_heads: int
    group: int
    dim: int
    tokens: int
    before: int

    @property
    def seen(self) -> int:
        return self.before + self.tokens

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, and keys and values that are views of longer buffers, as a cache gives them."""
        generator = torch.Generator().manual_seed(self.tokens * 1000 + self.seen)
        heads = self.kv_heads * self.group
        queries = torch.randn((self.tokens, heads, self.dim), generator=generator).to(dtype)
        buffers = torch.randn((2, self.kv_heads, self.seen + 5, self.dim), generator=generator)
        keys, values = buffers.to(dtype)[:, :, : self.seen]
        return queries, keys, values

    @property
    def causal(self) -> Tensor:
        return torch.ones((self.tokens, self.seen), dtype=torch.bool).tril(self.before)


class Grouped(nn.Module):
    """What transformers asks an attention module for."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.num_key_value_groups: int = group


SHAPES = st.builds(
    Shape,
    st.integers(1, 3),
    st.integers(1, 8),
    st.sampled_from([16, 32, 512]),
    st.integers(1, 80),
    st.integers(0, 300),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(SHAPES, st.booleans())
def test_the_bits_are_those_of_transformers(dtype: torch.dtype, shape: Shape, masked: bool) -> None:
    """One query with a mask, which has a form of its own there, is among the shapes."""
    queries, keys, values = shape.tensors(dtype)
    mask = shape.causal if masked else None
    theirs, _ = sdpa_attention_forward(
        Grouped(shape.group),
        queries.transpose(0, 1)[None],
        keys[None],
        values[None],
        None if mask is None else mask[None, None],
        scaling=1.0,
        is_causal=False,
    )
    assert torch.equal(attend(queries, keys, values, mask), theirs[0])


def test_no_key_is_copied_for_the_heads_that_share_it() -> None:
    queries, keys, values = Shape(2, 8, 32, 16, 4000).tensors(torch.float32)
    with torch.inference_mode():
        peak_bytes = allocations(lambda: attend(queries, keys, values, None)).peak_bytes
    assert 0 < peak_bytes < keys.nbytes, "less than one copy of the keys, let alone eight"


def test_a_call_that_needs_the_math_path_is_told() -> None:
    queries, keys, values = Shape(2, 2, 16, 8, 20).tensors(torch.float32)
    assert why_unfused(queries, keys, values, None) == ""
    trained = torch.zeros((8, 28), requires_grad=True)  # no fused kernel here has its gradient
    assert (
        why_unfused(queries, keys, values, trained) == "No available kernel.  Aborting execution."
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_of_the_released_model_need_no_math_path(dtype: torch.dtype) -> None:
    for heads, kv_heads, dim in ((16, 8, 256), (16, 2, 512)):
        assert why_device_is_unfused(heads, kv_heads, dim, torch.device("cpu"), dtype) == ""


@settings(deadline=None, max_examples=60)
@given(SHAPES, st.integers(1, 5), st.sampled_from([torch.float32, torch.bfloat16]))
def test_canvases_that_attend_in_one_call_have_what_each_has_alone(
    shape: Shape, canvases: int, dtype: torch.dtype
) -> None:
    queries, keys, values = shape.tensors(dtype)
    apart = [(queries * (i + 1) / shape.dim, keys, values + i) for i in range(canvases)]
    together = attend_each(*(torch.stack(part) for part in zip(*apart, strict=True)))
    alone = torch.stack([attend(*part, None) for part in apart])
    assert together.shape == alone.shape
    torch.testing.assert_close(together, alone)
