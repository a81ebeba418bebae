"""Keys and values of prompt beginnings, kept for the next job of the same tenant.

A prompt's chunks depend on nothing but what stands before them, so a chunk that the same tenant has
prefilled behind the same chunks can be copied instead of computed: to the same bits. Only within
one tenant: whether a prompt's beginning is known shows in the time to the first canvas, and would
tell a stranger what others asked.

Least recently used chunks go first, and never a chunk before those that stand behind it.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from piecework_model.layers.cache import ChunkKV

Key = bytes


def prefix_keys(tenant: str, chunks: Sequence[tuple[int, ...]]) -> list[Key]:
    """One key a chunk, each over the tenant and everything up to the chunk's end. Digests, not
    text."""
    keys: list[Key] = []
    before = hashlib.sha256(tenant.encode()).digest()
    for ids in chunks:
        before = hashlib.sha256(before + struct.pack(f"<{len(ids)}I", *ids)).digest()
        keys.append(before)
    return keys


class PrefixCache:
    """At most `budget_bytes` of chunks, which may be changed at any time."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._chunks: OrderedDict[Key, ChunkKV] = OrderedDict()  # least recently used first
        self.used_bytes = 0
        self.hits = 0
        """Chunks that were found since the start."""

    def resize(self, budget_bytes: int) -> None:
        """Keeps at most so many bytes from now on."""
        self._budget = budget_bytes
        self._evict()

    def find(self, keys: Sequence[Key]) -> list[ChunkKV]:
        """The longest known beginning of a chain."""
        found: list[ChunkKV] = []
        for key in keys:
            chunk = self._chunks.get(key)
            if chunk is None:
                break
            found.append(chunk)
        self._touch(keys[: len(found)])
        self.hits += len(found)
        return found

    def wants(self, keys: Sequence[Key], size: int) -> bool:
        """Whether the chunk at the end of a chain, of `size` bytes, would be kept: it is new, what
        stands before it is known, and it fits."""
        reachable = len(keys) == 1 or keys[-2] in self._chunks
        return reachable and keys[-1] not in self._chunks and size <= self._budget

    def keep(self, keys: Sequence[Key], chunk: ChunkKV) -> None:
        """Keeps the chunk at the end of a chain, if it is wanted."""
        if not self.wants(keys, chunk.bytes):
            return
        self._chunks[keys[-1]] = chunk
        self.used_bytes += chunk.bytes
        self._touch(keys)
        self._evict()

    def _evict(self) -> None:
        while self.used_bytes > self._budget:
            _, dropped = self._chunks.popitem(last=False)
            self.used_bytes -= dropped.bytes

    def _touch(self, keys: Iterable[Key]) -> None:
        """Behind each other from the chain's end to its start: a beginning outlives what follows
        it."""
        for key in reversed(list(keys)):
            if key in self._chunks:
                self._chunks.move_to_end(key)
