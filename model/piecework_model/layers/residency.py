"""Which experts of host memory have a copy on the device. Bookkeeping, no tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable


class Residency:
    """Which experts are on the device: keys in slots 0 to slots-1, at most one key a slot. No
    tensors.

    A forward pass walks through the layers in order, and a canvas of 256 tokens with 8 experts each
    uses nearly every expert of every layer. To a cache that holds a part of them, this is one long
    loop. Dropping the least recently used entry would never hit, because it drops exactly what
    comes next. So that entry goes only if it has missed a whole round. Otherwise the most recently
    used one goes, whose next use is farthest away (Belady's rule for a loop; Denning calls the
    failure of LRU sequential flooding).

    population: how many keys there are.
    """

    def __init__(self, slots: int, population: int) -> None:
        if slots < 1:
            raise ValueError("a cache needs at least one slot")
        self._free = list(range(slots))
        self._population = population
        # key: (slot, number of the look-up that used it last)
        self._slots: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slots

    def place(self, key: Hashable, keep: Collection[Hashable] = ()) -> tuple[int, bool]:
        """Give a key a slot. Returns the slot, and whether the key had it already.

        keep: keys that must stay, fewer than there are slots.
        """
        now = self.hits + self.misses
        found = self._slots.pop(key, None)
        if found is not None:
            self.hits += 1
            slot = found[0]
        else:
            self.misses += 1
            free = self._free.pop() if self._free else self._evict(now, keep)
            if free is None:
                raise ValueError("no slot is left: all keys are to be kept")
            slot = free
        self._slots[key] = slot, now
        return slot, found is not None

    def reserve(self, key: Hashable, keep: Collection[Hashable]) -> int | None:
        """Give an absent key a slot before it is looked up. It is not counted as a look-up.

        keep: keys that must stay. Returns None if all slots are theirs.
        """
        now = self.hits + self.misses
        slot = self._free.pop() if self._free else self._evict(now, keep)
        if slot is not None:
            self._slots[key] = slot, now
        return slot

    def forget(self, key: Hashable) -> None:
        """Free the slot of a key whose content did not arrive."""
        slot, _ = self._slots.pop(key)
        self._free.append(slot)

    def _evict(self, now: int, keep: Collection[Hashable] = ()) -> int | None:
        """Free the slot of a key that is not to be kept. Returns None if there is none."""
        oldest = next((key for key in self._slots if key not in keep), None)
        if oldest is None:
            return None
        stale = now - self._slots[oldest][1] > self._population
        newest = next(key for key in reversed(self._slots) if key not in keep)
        slot, _ = self._slots.pop(oldest if stale else newest)
        return slot
