"""Tensors of all kinds through one copy: the same values, types and shapes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.layers.transfer import host_copies, join, split

TYPES = [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.uint8]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
        min_size=1,
        max_size=8,
    )
)
def test_what_was_joined_comes_apart_as_it_was(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = [
        torch.randint(0, 2, shape, generator=generator).to(dtype).mT
        if len(shape) > 1
        else torch.randint(0, 2, shape, generator=generator).to(dtype)
        for dtype, shape in kinds
    ]
    for before, after in zip(tensors, split(join(tensors), tensors), strict=True):
        assert after.dtype is before.dtype and torch.equal(after, before)


def test_tensors_of_the_host_are_not_copied() -> None:
    tensor = torch.arange(6)
    assert host_copies([tensor])[0].data_ptr() == tensor.data_ptr()
    assert host_copies([tensor.view(2, 3).t()])[0].is_contiguous()
    assert host_copies([]) == []
