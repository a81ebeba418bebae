"""Experts in host memory, and copies of some of them on the device.

The experts of a layer are one allocation of the size that the plan counts. A GPU reads it directly
(cudaHostRegister). torch's own pinned memory is rounded up to a power of two, which would be a
third more for the released model.

Copies run beside the computation, on a stream of their own. When a layer has chosen its experts,
the order of the next ones is known: those of the layer, then those of the layer behind it, of which
a canvas uses nearly all. Experts compute in groups, and a few copies are always under way
meanwhile. Two rules keep this right on a device that works through its streams at its own speed:

- A copy into a slot waits until the computation that last read the slot is done.
- A computation that reads a slot waits until the copy into it is done.

Which experts are where, and when they came, changes no bit of a result.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from piecework_model.errors import DeviceError
from piecework_model.layers.residency import Residency

LOOK_AHEAD: Final = 16
"""Copies under way at most. An expert of the released model takes 3 MB in 4 bits, some 0.1 ms of a
bus. Sixteen of them take as long as what is between the experts of two layers.
"""
GROUP: Final = 16
"""Experts that compute together, at most: as many as are copied meanwhile."""

Key = tuple[int, int]
"""Layer and expert."""
Mark = Any
"""A place in the order of work that was given to a stream."""


class CopyQueue(Protocol):
    """Copies from host memory, beside the computation that the device was given."""

    def register(self, memory: Tensor) -> None:
        """Let the device read host memory directly, for as long as the tensor lives."""

    def mark(self) -> Mark:
        """Mark the end of the computation that was given to the device so far."""

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Copy once the computation up to `after` is done. Returns a mark of the copy's end."""

    def wait(self, copied: Mark) -> None:
        """Let the computation from here on wait for a copy."""


class DirectCopies:
    """Copies at once: on a CPU, where there is nothing beside the computation."""

    def register(self, memory: Tensor) -> None:
        """Do nothing, because all memory is the device's."""

    def mark(self) -> Mark:
        """Return nothing, because all computation is done."""

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Copy."""
        target.copy_(source)

    def wait(self, copied: Mark) -> None:
        """Do nothing, because all copies are done."""


class CudaCopies:
    """Copies on a stream of their own. It has never run on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def register(self, memory: Tensor) -> None:
        """Register exactly these bytes. Raises DeviceError if the system refuses."""
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = memory.data_ptr()
        try:
            torch.cuda.check_error(runtime.cudaHostRegister(address, memory.nbytes, 0))
        except RuntimeError as error:
            raise DeviceError(f"{memory.nbytes} bytes of host memory: {error}") from error
        weakref.finalize(memory, runtime.cudaHostUnregister, address)

    def mark(self) -> Mark:
        """Record an event on the stream that computes."""
        return torch.cuda.current_stream().record_event()

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Copy on the own stream."""
        if after is not None:
            self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, copied: Mark) -> None:
        """Let the stream that computes wait."""
        torch.cuda.current_stream().wait_event(copied)


class ExpertCache:
    """Slots for experts on the device, within a budget of bytes. All layers share them."""

    def __init__(
        self,
        budget_bytes: int,
        expert_bytes: int,
        population: int,
        device: torch.device,
        copies: CopyQueue | None = None,
    ) -> None:
        """Allocate the slots.

        population: experts of all layers. copies: those of the device if not given. Raises
        ValueError if the budget holds no expert.
        """
        slots = min(budget_bytes // expert_bytes, population)
        if slots < 1:
            raise ValueError(f"a budget of {budget_bytes} bytes holds no expert of {expert_bytes}")
        self.residency = Residency(slots, population)
        self.slots = torch.empty((slots, expert_bytes), dtype=torch.uint8, device=device)
        self.copies: CopyQueue = copies or (
            CudaCopies(device) if device.type == "cuda" else DirectCopies()
        )
        # The slot that computes needs none of its neighbours, so half of them may be on their way.
        self._ahead = min(LOOK_AHEAD, (slots - 1) // 2)
        self._layers: dict[int, Tensor] = {}
        self._expected: deque[Key] = deque()
        self._under_way: set[Key] = set()  # copied ahead, and not asked for yet
        self._arriving: dict[int, Mark] = {}  # by slot: its copy, until a computation waited for it
        self._read: dict[int, Mark] = {}  # by slot: the last computation that read it
        self._current: dict[Key, int] = {}  # handed out last, with their slots
        self.group = max(1, min(GROUP, slots - self._ahead))
        """Experts that may be handed out together."""

    def add(self, layer: int, experts: Tensor) -> None:
        """Take in the experts [E, expert_bytes] of a layer, which are in host memory."""
        self._layers[layer] = experts
        self.copies.register(experts)

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Tell which experts of a layer are fetched next. All of the next layer are to follow."""
        behind = (layer + 1) % len(self._layers)
        following = range(len(self._layers.get(behind, ())))
        self._expected = deque((layer, expert) for expert in experts)
        self._expected.extend((behind, expert) for expert in following)
        self._under_way &= set(self._expected)

    def fetch(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Return the slots of at most `group` experts. They are valid until the next call.

        Raises:
            ValueError: There are more of them.
        """
        keys = [(layer, expert) for expert in experts]
        if len(keys) > self.group:
            raise ValueError(f"{len(keys)} experts are more than {self.group}")
        self._mark_read()
        wanted, placed = set(keys), dict[Key, int]()
        for key in keys:
            self._under_way.discard(key)
            slot, present = self.residency.place(key, self._under_way | wanted)
            if not present:
                self._fill(key, slot)
            placed[key] = slot
        for slot in placed.values():
            if slot in self._arriving:
                self.copies.wait(self._arriving.pop(slot))
        self._current = placed
        self._look_ahead()
        return list(placed.values())

    def _look_ahead(self) -> None:
        """Begin the copies of experts that are expected, as many as may be under way."""
        while self._expected and len(self._under_way) < self._ahead:
            key = self._expected[0]
            if key not in self.residency:
                slot = self.residency.reserve(key, {*self._under_way, *self._current})
                if slot is None:
                    return
                self._fill(key, slot)
                self._under_way.add(key)
            self._expected.popleft()

    def _mark_read(self) -> None:
        """Mark the end of what was computed with the experts that were handed out last."""
        if self._current:
            self._read |= dict.fromkeys(self._current.values(), self.copies.mark())
            self._current = {}

    def _fill(self, key: Key, slot: int) -> None:
        layer, expert = key
        try:
            self._arriving[slot] = self.copies.copy(
                self.slots[slot], self._layers[layer][expert], self._read.pop(slot, None)
            )
        except RuntimeError:  # a slot of unknown content must not count as this expert
            self.residency.forget(key)
            raise


class HostBytes:
    """All experts of a layer in host memory.

    It is not a module buffer, so that moving the model leaves it in place.
    """

    def __init__(self, layer: int, experts: int, cache: ExpertCache) -> None:
        self._layer, self._cache, self.experts = layer, cache, experts
        self.packed = torch.empty((experts, cache.slots.shape[1]), dtype=torch.uint8)
        cache.add(layer, self.packed)

    def writable(self, expert: int) -> Tensor:
        """Return a row in host memory."""
        return self.packed[expert]

    def on_device(self, expert: int) -> Tensor:
        """Return a slot of the cache, which another expert may take after the next call."""
        return self.together[self._cache.fetch(self._layer, [expert])[0]]

    @property
    def together(self) -> Tensor:
        """Return the slots of all layers on the device."""
        return self._cache.slots

    def groups(self, chosen: Tensor) -> Iterator[Tensor]:
        """Bring the chosen experts to the device, group by group (`moe_triton.ExpertGroups`).

        The host waits for the choice once, because the copies follow it.
        """
        present = torch.bincount(chosen, minlength=self.experts).nonzero().flatten().tolist()
        self.expect(present)
        for start in range(0, len(present), self._cache.group):
            some = present[start : start + self._cache.group]
            table = torch.full((self.experts,), -1, dtype=torch.int32)
            table[some] = torch.tensor(self._cache.fetch(self._layer, some), dtype=torch.int32)
            yield table.to(self.together.device)

    def expect(self, experts: Sequence[int]) -> None:
        """Let their copies begin."""
        self._cache.expect(self._layer, experts)
