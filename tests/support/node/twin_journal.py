"""The journal on disk, with the one in memory beside it: for a whole worker over a real file."""

from __future__ import annotations

from collections.abc import Sequence

from piecework_node.journal.records import JournalRecord, StoredChannel, StoredJob
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import ChannelId, JobId
from tests.support.node.memory_journal import MemoryJournal


class TwinJournal(MemoryJournal):
    """Every batch goes to the disk first. What the disk refuses never happened."""

    def __init__(self, domain: Domain, disk: SqliteJournal) -> None:
        super().__init__(domain)
        self.disk = disk

    async def append(self, records: Sequence[JournalRecord]) -> None:
        await self.disk.append(records)
        await super().append(records)

    async def job(self, job: JobId) -> StoredJob | None:
        return await self.disk.job(job)

    async def open_jobs(self) -> tuple[StoredJob, ...]:
        return await self.disk.open_jobs()

    async def channels(self) -> tuple[StoredChannel, ...]:
        return await self.disk.channels()

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        return await self.disk.channel(channel)
