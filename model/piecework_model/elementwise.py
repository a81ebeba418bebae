"""Element-wise functions whose results do not depend on an element's place in the tensor.

On a CPU, torch computes tanh, exp and similar functions in vectors. It computes the remainder of a
chunk with scalar code that rounds differently. Which elements fall into the remainder depends on
the size of the tensor and on the number of threads.

Here either no chunk has a remainder, or each chunk is one row or a fixed part of a row.

On CUDA every element is computed alike, so nothing has to be done there.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Final

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""A function of each element for itself. The shape stays."""

VECTORS_BYTES: Final = 128
"""Computed together at most: two vectors of 512 bits. A chunk of a multiple has no remainder."""
LEAST_SHARE: Final = 16_384
MOST_SHARE: Final = 32_768
"""Elements. A tensor of at most LEAST_SHARE is not shared among threads. A larger one is shared by
all of them (gelu), or by as many as get MOST_SHARE each, rounded up (all other functions).
"""


def by_rows(function: Function, rows: Tensor) -> Tensor:
    """Compute function(rows) for rows [n, width], with the result that each row has alone."""
    count, width = rows.shape
    if rows.device.type != "cpu":
        return function(rows)
    together, threads = VECTORS_BYTES // rows.element_size(), torch.get_num_threads()
    if not _even(width, threads, together):
        # A row alone has a remainder, so it must have the same one among others.
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
    """Say whether no thread's share of a tensor has a remainder, however many threads share it.

    torch gives each of t threads the t-th part, rounded up.
    """
    fewest = min(threads, -(-numbers // MOST_SHARE)) or 1
    most = threads if numbers > LEAST_SHARE else 1
    return all(numbers % (together * sharing) == 0 for sharing in range(fewest, most + 1))


def _apart(function: Function, rows: Tensor) -> Tensor:
    """Compute row by row, in blocks whose rows are not adjacent in memory.

    torch then does not join them into one chunk. No threads share a block of several rows. They
    share a block of one row in a way that its length alone decides.
    """
    count, width = rows.shape
    out = rows.new_empty((count, width + 1))[:, :width]
    block = max(1, LEAST_SHARE // width)
    for start in range(0, count, block):
        place = out[start : start + block]
        place.copy_(rows[start : start + block])
        place.copy_(function(place))
    return out
