"""The journal on disk, with the one in memory beside it: for a whole worker over a real file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from piecework_node.journal.records import (
    EndedJob,
    JournalRecord,
    StoredChannel,
    StoredJob,
    StoredSealingKey,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import ChannelId, Digest, JobId
from piecework_protocol.wire import SignedOffer
from tests.support.node.memory_journal import MemoryJournal


class TwinJournal(MemoryJournal):
    """Every batch goes to the disk first. What the disk refuses never happened."""

    def __init__(
        self, domain: Domain, disk: SqliteJournal, memory: dict[str, Any] | None = None
    ) -> None:
        """`memory`: of another one at the moment at which its file was copied."""
        super().__init__(domain)
        self.__dict__.update(memory or {})
        self.disk = disk

    def memory(self) -> dict[str, Any]:
        """A copy of what it holds beside the disk."""
        return {k: copy.deepcopy(v) for k, v in vars(self).items() if k not in ("disk", "switch")}

    async def append(self, records: Sequence[JournalRecord]) -> None:
        await self.disk.append(records)
        await super().append(records)

    async def job(self, job: JobId) -> StoredJob | None:
        return await self.disk.job(job)

    async def last_sequence(self) -> int:
        return await self.disk.last_sequence()

    async def recent_jobs(self, most: int) -> tuple[EndedJob, ...]:
        return await self.disk.recent_jobs(most)

    async def meta(self, key: str) -> str | None:
        return await self.disk.meta(key)

    async def offer(self, digest: Digest) -> SignedOffer | None:
        return await self.disk.offer(digest)

    async def sealing_keys(self) -> tuple[StoredSealingKey, ...]:
        return await self.disk.sealing_keys()

    async def open_jobs(self) -> tuple[StoredJob, ...]:
        return await self.disk.open_jobs()

    async def channels(self) -> tuple[StoredChannel, ...]:
        return await self.disk.channels()

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        return await self.disk.channel(channel)
