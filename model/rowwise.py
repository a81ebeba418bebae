"""Functions of single numbers, with results that do not depend on where in a tensor a number stands.

On a CPU torch computes tanh, exp and their like with vector instructions, and what is left at the end of a
run of numbers with the C library, which rounds otherwise. Where runs end depends on the size of the whole
tensor and on the number of threads that share it. Here every run is a row or a fixed part of one: tensors
are taken in blocks of whole rows that are too small to be shared among threads, and laid out so that rows
are not joined.

On CUDA there is nothing to do: every number is computed alike.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""Of each number for itself; the shape stays."""

SERIAL_NUMBERS: Final = 16_384
"""A tensor of at most so many numbers is never shared among threads (torch's smallest limit, that of gelu).
A row that is longer is shared in a way that its length alone decides."""
VECTOR_NUMBERS: Final = 32
"""Numbers that are computed together at most: two vectors of 512 bits. Rows of a multiple may be joined."""


def by_rows(function: Function, rows: Tensor) -> Tensor:
    """function(rows) for rows [n, width], a row at a time as far as anybody can tell."""
    count, width = rows.shape
    joined = width % VECTOR_NUMBERS == 0
    if rows.device.type != "cpu" or (
        joined and (count * width <= SERIAL_NUMBERS or torch.get_num_threads() == 1)
    ):
        return function(rows)
    out = rows.new_empty((count, width + (0 if joined else 1)))[:, :width]
    block = max(1, SERIAL_NUMBERS // width)
    for start in range(0, count, block):
        # Copied into place, a block keeps the distance of its rows, so they are not joined into one run.
        place = out[start : start + block]
        place.copy_(rows[start : start + block])
        place.copy_(function(place))
    return out
