"""Functions of single numbers, among others and alone, with one thread and with two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from piecework_model.elementwise import Function, by_rows


def gelu(rows: torch.Tensor) -> torch.Tensor:
    return functional.gelu(rows, approximate="tanh")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [gelu, torch.tanh, torch.exp])
@pytest.mark.parametrize("width", [32, 96, 100, 160, 960, 1127, 4096, 20_000])
def test_a_row_has_the_same_bits_among_any_number_of_rows(
    threads: int, function: Function, width: int, dtype: torch.dtype
) -> None:
    rows = (3 * torch.randn((260, width), generator=torch.Generator().manual_seed(width))).to(dtype)
    whole = by_rows(function, rows)
    torch.testing.assert_close(whole, function(rows))
    for count in (1, 2, 3, 5, 12, 33, 64, 179, 255):
        assert torch.equal(by_rows(function, rows[:count].clone()), whole[:count]), count
        assert torch.equal(by_rows(function, rows[-count:].clone()), whole[-count:]), count


def test_half_of_a_wider_row_is_taken_as_a_row(threads: int) -> None:
    wide = torch.randn((200, 192), generator=torch.Generator().manual_seed(7))
    gate = wide[:, :96]
    assert torch.equal(by_rows(gelu, gate), by_rows(gelu, gate.contiguous()))
