"""The journal as the rest of the node sees it. `journal_sqlite` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from piecework_node.journal.records import (
    Earnings,
    JournalRecord,
    StoredChannel,
    StoredJob,
    StoredSealingKey,
    StoredTx,
)
from piecework_protocol.types import Bytes32, ChannelId, Digest, JobId, Timestamp
from piecework_protocol.wire import SignedOffer


class Journal(Protocol):
    """Durable facts. Every method raises `JournalError` when the store fails; the daemon then
    stops."""

    async def append(self, records: Sequence[JournalRecord]) -> None:
        """Make all `records` durable, or none of them. Returns when they are on disk."""
        ...

    async def job(self, job: JobId) -> StoredJob | None:
        """A job by its id."""
        ...

    async def job_with_salt(self, channel: ChannelId, salt: Bytes32) -> JobId | None:
        """The job that used a salt of a channel."""
        ...

    async def open_jobs(self) -> tuple[StoredJob, ...]:
        """Jobs that are not ended, or that have canvases which are not paid for; oldest first."""
        ...

    async def channels(self) -> tuple[StoredChannel, ...]:
        """Every channel that is not closed and settled up."""
        ...

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        """One channel."""
        ...

    async def offer(self, digest: Digest) -> SignedOffer | None:
        """An offer that this worker signed."""
        ...

    async def offers_since(self, expires_after: Timestamp) -> tuple[SignedOffer, ...]:
        """Offers that expire after a time."""
        ...

    async def last_sequence(self) -> int:
        """The highest sequence number that an offer had; 0 for none."""
        ...

    async def sealing_keys(self) -> tuple[StoredSealingKey, ...]:
        """The sealing keys that are kept, newest first."""
        ...

    async def transactions(self) -> tuple[StoredTx, ...]:
        """Transactions whose outcome is not final, by nonce."""
        ...

    async def meta(self, key: str) -> str | None:
        """A small named value."""
        ...

    async def earnings(self) -> Earnings:
        """Sums for the operator."""
        ...
