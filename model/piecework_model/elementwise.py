"""Functions of single numbers, with results that do not depend on where in a tensor a number
stands.

On a CPU torch computes tanh, exp and their like with vector instructions, and what is left at the
end of a run of numbers with the C library, which rounds otherwise. Where runs end depends on the
size of the whole tensor and on the number of threads that share it. Here no run leaves anything
over, or every run is a row or a fixed part of one.

On CUDA there is nothing to do: every number is computed alike.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Final

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""Of each number for itself; the shape stays."""

VECTORS_BYTES: Final = 128
"""What is computed together at most: two vectors of 512 bits. A run of a multiple leaves nothing
over."""
LEAST_SHARE: Final = 16_384
MOST_SHARE: Final = 32_768
"""Numbers. A tensor of at most LEAST_SHARE is never shared among threads; a larger one by all of
them (gelu) or by as many as get MOST_SHARE each, rounded up (everything else)."""


def by_rows(function: Function, rows: Tensor) -> Tensor:
    """function(rows) for rows [n, width], a row at a time as far as anybody can tell."""
    count, width = rows.shape
    if rows.device.type != "cpu":
        return function(rows)
    together, threads = VECTORS_BYTES // rows.element_size(), torch.get_num_threads()
    if not _even(
        width, threads, together
    ):  # a row alone leaves something over, so it must among others
        return _apart(function, rows)
    if _even(count * width, threads, together):
        return function(rows)
    even = together * threads // gcd(width, together * threads)
    shared = count - count % even
    if not _even(shared * width, threads, together):
        shared = 0
    parts = [rows[:shared], *torch.split(rows[shared:], LEAST_SHARE // width)]
    return torch.cat([function(part) for part in parts if len(part)])


def _even(numbers: int, threads: int, together: int) -> bool:
    """Whether every thread's share of a tensor leaves nothing over, however many threads share it:
    torch gives each of t threads the t-th part, rounded up."""
    fewest = min(threads, -(-numbers // MOST_SHARE)) or 1
    most = threads if numbers > LEAST_SHARE else 1
    return all(numbers % (together * sharing) == 0 for sharing in range(fewest, most + 1))


def _apart(function: Function, rows: Tensor) -> Tensor:
    """Row by row, in blocks whose rows keep a distance in memory, so that they are not joined into
    one run.

    No threads share a block, unless it is one row, which they share in a way that its length alone
    decides.
    """
    count, width = rows.shape
    out = rows.new_empty((count, width + 1))[:, :width]
    block = max(1, LEAST_SHARE // width)
    for start in range(0, count, block):
        place = out[start : start + block]
        place.copy_(rows[start : start + block])
        place.copy_(function(place))
    return out
