"""The prefix cache: keys and values of prompt prefixes, kept for the same tenant's next job.

A chunk of a prompt depends only on what stands before it. If the same tenant has prefilled the same
chunks before, they are copied instead of computed. The bits are the same.

Tenants share nothing. The time to the first canvas shows whether a prefix is cached, so sharing
would tell a stranger what others asked.

The least recently used chunk goes first. A chunk never goes before the chunks that follow it.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from piecework_model.engine.scheduler import PrefillChunk
from piecework_model.layers.cache import ChunkKV

Key = bytes


def prefix_keys(tenant: str, chunks: Sequence[PrefillChunk]) -> list[Key]:
    """Compute one key a chunk, over the tenant and everything up to the chunk's end, the pixels of
    its images included.

    Keys are digests, not text.
    """
    keys: list[Key] = []
    before = hashlib.sha256(tenant.encode()).digest()
    for chunk in chunks:
        digest = hashlib.sha256(before + struct.pack(f"<{len(chunk)}I", *chunk.ids))
        for image in chunk.images:
            digest.update(struct.pack("<3I", image.start, image.columns, image.rows))
            digest.update(hashlib.sha256(image.patches).digest())
        before = digest.digest()
        keys.append(before)
    return keys


class PrefixCache:
    """At most `budget_bytes` of chunks. The budget may change at any time."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._chunks: OrderedDict[Key, ChunkKV] = OrderedDict()  # least recently used first
        self.used_bytes = 0
        self.hits = 0
        """Chunks that were found since the start."""

    def resize(self, budget_bytes: int) -> None:
        """Keep at most this many bytes from now on."""
        self._budget = budget_bytes
        self._evict()

    def find(self, keys: Sequence[Key], known: int = 0) -> list[ChunkKV]:
        """Find the longest cached prefix of these chunks, without the first `known`."""
        found: list[ChunkKV] = []
        for key in keys[known:]:
            chunk = self._chunks.get(key)
            if chunk is None:
                break
            found.append(chunk)
        self._touch(keys[: known + len(found)])
        self.hits += len(found)
        return found

    def wants(self, keys: Sequence[Key], size: int) -> bool:
        """Say whether the last of these chunks, of `size` bytes, would be kept.

        It must be new, the chunks before it must be cached, and it must fit.
        """
        reachable = len(keys) == 1 or keys[-2] in self._chunks
        return reachable and keys[-1] not in self._chunks and size <= self._budget

    def keep(self, keys: Sequence[Key], chunk: ChunkKV) -> None:
        """Keep the last of these chunks, if it is wanted."""
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
        """Mark as used, from the last to the first, so that a prefix outlives what follows it."""
        for key in reversed(list(keys)):
            if key in self._chunks:
                self._chunks.move_to_end(key)
