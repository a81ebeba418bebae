"""Small tensors of many kinds to the host in one copy.

Each copy to the host waits for all work before it. So what a step decides is joined on the device
first, and the host waits once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from piecework_model.precision import FIELD_ALIGNMENT_BYTES

_BYTES: Final = torch.uint8


def host_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return contiguous tensors on the host with the same values, in the same order.

    All are on one device. Tensors of the host are returned as they are if they are contiguous.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.contiguous() for tensor in tensors]
    joined = join(tensors)
    # Pinned memory is copied to several times as fast. torch keeps such blocks for the next step.
    host = torch.empty(joined.shape, dtype=_BYTES, pin_memory=joined.device.type == "cuda")
    return split(host.copy_(joined), tensors)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """Join the bytes of tensors of one device. Each starts at a multiple of 16 bytes."""
    parts = [tensor.contiguous().flatten().view(_BYTES) for tensor in tensors]
    gap = parts[0].new_zeros(FIELD_ALIGNMENT_BYTES)
    padded = [part for bytes_ in parts for part in (bytes_, gap[: _padding(bytes_.numel())])]
    return torch.cat(padded)


def split(joined: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of joined bytes, with the types and shapes of the tensors that were joined."""
    views, start = [], 0
    for tensor in like:
        size = tensor.nbytes
        views.append(joined[start : start + size].view(tensor.dtype).view(tensor.shape))
        start += size + _padding(size)
    return views


def _padding(size: int) -> int:
    return -size % FIELD_ALIGNMENT_BYTES
