"""Device memory that is lent to somebody else: its bytes wait on the host and come back in place.

Tensors keep their identity, their shape and their views. Only the storage under them is emptied and
filled again, with the same bytes. So a sequence goes on as if nothing had happened.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, UntypedStorage


def tensors_on(device: torch.device) -> list[Tensor]:
    """List every tensor of this process on devices of this type: weights, caches, canvases."""
    # Not isinstance: that would ask lazy modules for their class, and so import them.
    known = (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor))
    return [tensor for tensor in known if tensor.device.type == device.type]


class ParkedMemory:
    """The bytes of storages that hold no memory of their device for now."""

    def __init__(self, copies: list[tuple[UntypedStorage, UntypedStorage]]) -> None:
        self._copies = copies

    @classmethod
    def park(cls, tensors: Iterable[Tensor]) -> Self:
        """Copy the storages of these tensors to the host and empty them.

        Nothing may read the tensors before `restore`. A storage that cannot be resized, such as a
        mapped file, stays where it is.
        """
        storages = {
            storage.data_ptr(): storage
            for storage in (tensor.untyped_storage() for tensor in tensors)
            if storage.nbytes() and storage.resizable()
        }
        parked = cls([])
        for storage in storages.values():
            copy = torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            copy.copy_(storage)
            parked._copies.append((storage, copy))
            storage.resize_(0)
        return parked

    @property
    def nbytes(self) -> int:
        """How many bytes wait on the host."""
        return sum(copy.nbytes() for _, copy in self._copies)

    def restore(self) -> None:
        """Bring all bytes back.

        Raises:
            RuntimeError: The device has no room. Everything is parked as before.
        """
        filled: list[UntypedStorage] = []
        try:
            for storage, copy in self._copies:
                storage.resize_(copy.nbytes())
                filled.append(storage)
                storage.copy_(copy)
        except RuntimeError:
            for storage in filled:
                storage.resize_(0)
            raise
        self._copies = []
