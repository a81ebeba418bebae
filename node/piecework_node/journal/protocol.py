"""The journal as the rest of the node sees it. `journal.sqlite` is the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from piecework_node.journal.records import (
    ContradictionSeen,
    Earnings,
    EndedJob,
    JournalRecord,
    ReplayableJobs,
    StoredChannel,
    StoredJob,
    StoredSealingKey,
    StoredTx,
)
from piecework_protocol.types import ChannelId, Digest, JobId, Timestamp
from piecework_protocol.wire import SignedOffer


class Journal(Protocol):
    """Durable facts. A method raises `JournalError` if the store fails. Then the daemon stops."""

    async def append(self, records: Sequence[JournalRecord]) -> None:
        """Make all `records` durable, or none of them. Return when they are on disk.

        Raises:
            JournalConflict: they contradict what is there. Nothing was written.
            SaltUsed: one admits a job whose channel has had its salt.
        """
        ...

    async def job(self, job: JobId) -> StoredJob | None:
        """Return a job by its id."""
        ...

    async def sealed_content(self, job: JobId) -> bytes | None:
        """Return the sealed content of a replayable job, until its audit window is over."""
        ...

    async def canvas_of(self, channel: ChannelId, receipt: Digest) -> tuple[JobId, int] | None:
        """Return the job and the canvas of a receipt's digest. None: it is none of ours."""
        ...

    async def replayable(self, deadline: Timestamp) -> tuple[ReplayableJobs, ...]:
        """Return the jobs that may still have to be computed again, by their offer.

        deadline: those with an earlier one do not count.
        """
        ...

    async def jobs_named(self, digits: str) -> tuple[JobId, ...]:
        """Return at most two of the jobs whose id begins with these lower-case hex digits."""
        ...

    async def paid(self, channel: ChannelId) -> tuple[Digest, ...]:
        """Return the digests of a channel's paid receipts, in the accumulator's order."""
        ...

    async def contradictions(self, channel: ChannelId) -> tuple[ContradictionSeen, ...]:
        """Return the pairs of a channel that contradict each other, one of a kind."""
        ...

    async def traced(
        self, offer: Digest, entry: int, deadline: Timestamp
    ) -> tuple[tuple[JobId, int], ...]:
        """Return the canvases with leaves of the replayable jobs of an offer's entry.

        Each is the job and the index of the canvas.

        deadline: jobs with an earlier one do not count.
        """
        ...

    async def open_jobs(self) -> tuple[StoredJob, ...]:
        """Return jobs that have not ended or have unpaid canvases, oldest first."""
        ...

    async def channels(self) -> tuple[StoredChannel, ...]:
        """Return every channel that is not closed, or not fully settled."""
        ...

    async def channel(self, channel: ChannelId) -> StoredChannel | None:
        """Return one channel."""
        ...

    async def offer(self, digest: Digest) -> SignedOffer | None:
        """Return an offer that this worker signed."""
        ...

    async def last_sequence(self) -> int:
        """Return the highest sequence number of an offer. 0: there is no offer."""
        ...

    async def sealing_keys(self) -> tuple[StoredSealingKey, ...]:
        """Return the sealing keys that are kept, newest first."""
        ...

    async def transactions(self) -> tuple[StoredTx, ...]:
        """Return transactions whose outcome is not final, by nonce."""
        ...

    async def given_up(self) -> tuple[StoredTx, ...]:
        """Return those in state REPLACED with a nonce above each final one, by nonce.

        Their bytes may still lie in a pool.
        """
        ...

    async def meta(self, key: str) -> str | None:
        """Return a small named value."""
        ...

    async def metas(self, prefix: str) -> dict[str, str]:
        """Return the small values whose names begin with `prefix`."""
        ...

    async def recent_jobs(self, most: int) -> tuple[EndedJob, ...]:
        """Return the newest jobs with their latest receipts, oldest first, at most so many."""
        ...

    async def earnings(self) -> Earnings:
        """Return sums for the operator."""
        ...
