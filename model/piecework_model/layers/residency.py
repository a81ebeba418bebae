"""Which experts are on the device: the bookkeeping of a cache of slots. Pure, no torch.

A forward pass walks through the layers in order, and a canvas of 256 tokens with 8 experts each
touches nearly every expert of every layer. To a cache that holds a part of them this is one long
loop, on which dropping the least recently used entry never hits: it drops exactly what comes next.
So the least recently used entry goes only when it has missed a whole round; otherwise the most
recently used one goes, whose turn is farthest away (Belady's rule for a loop; Denning calls the
failure of LRU sequential flooding).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class Residency:
    """Maps keys to slots 0..slots-1, at most one key a slot. `population`: how many keys there
    are."""

    def __init__(self, slots: int, population: int) -> None:
        if slots < 1:
            raise ValueError("a cache needs at least one slot")
        self._free = list(range(slots))
        self._population = population
        self._slots: OrderedDict[Hashable, tuple[int, int]] = (
            OrderedDict()
        )  # key: (slot, look of its last use)
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def place(self, key: Hashable) -> tuple[int, bool]:
        """(slot, whether the key was there already). A key that was not has the slot from now
        on."""
        now = self.hits + self.misses
        found = self._slots.pop(key, None)
        if found is not None:
            self.hits += 1
            slot = found[0]
        else:
            self.misses += 1
            slot = self._free.pop() if self._free else self._evict(now)
        self._slots[key] = slot, now
        return slot, found is not None

    def forget(self, key: Hashable) -> None:
        """Frees the slot of a key whose content did not arrive."""
        slot, _ = self._slots.pop(key)
        self._free.append(slot)

    def _evict(self, now: int) -> int:
        oldest = next(iter(self._slots.values()))
        stale = now - oldest[1] > self._population
        _, (slot, _) = self._slots.popitem(last=not stale)
        return slot
