"""Paying what is still owed on a channel: canvases of jobs that broke off, vouchers that never
arrived.

A worker refuses new jobs on a channel with unpaid canvases (clause 3.7), and rightly so. The client
comes back to each such job with a cancel, takes what is there, and pays for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection

from piecework.client.errors import ClientError
from piecework.client.jobs.driver import LATER, JobContext, JobDriver
from piecework.client.jobs.events import JobEvent
from piecework.client.journal.records import JobRow, JobStatus
from piecework_protocol.errors import Refusal
from piecework_protocol.types import ChannelId, JobId

MAX_JOBS_SETTLED = 16
"""Broken-off jobs that one call comes back to; a channel with more needs the person's attention."""


class _Collector:
    """A caller who wants nothing more than to be done."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.cancelled.set()

    async def emit(self, event: JobEvent) -> None:
        """Nobody reads these events: what they tell is in the journal."""

    def offer(self, event: JobEvent) -> None:
        """Nobody looks at these drafts."""


async def pay_outstanding(
    context: JobContext, channel: ChannelId, active: Collection[JobId]
) -> tuple[str, ...]:
    """Come back to every broken-off job of the channel that nobody follows; one line for each that
    failed."""
    row = await asyncio.to_thread(context.store.channel, channel)
    jobs = [j for j in await asyncio.to_thread(context.store.jobs, channel) if _is_left(j, active)]
    chosen = {job.id: job for job in jobs[-MAX_JOBS_SETTLED:]}
    if row.book.unacknowledged and not chosen:
        last = await asyncio.to_thread(context.store.job, row.book.unacknowledged[-1].job)
        if last.id not in active and last.status is not JobStatus.BROKEN:
            chosen[last.id] = last
    troubles = []
    for job in chosen.values():
        try:
            await JobDriver(context, job, _Collector()).run()
        except Refusal as refusal:
            if refusal.reason in LATER:
                troubles.append(
                    str(refusal)
                )  # what it may be owed is not known before it has time for us
                continue
            # The worker does not know the job, or will not have it: nothing is owed.
            await asyncio.to_thread(
                context.store.finish, job.id, JobStatus.REFUSED, refusal.reason.name
            )
        except ClientError as error:
            troubles.append(str(error))
    return tuple(troubles)


def _is_left(job: JobRow, active: Collection[JobId]) -> bool:
    """A job that was neither finished nor is followed by this or another living process."""
    if job.status is not JobStatus.LIVE or job.id in active:
        return False
    return job.owner == os.getpid() or not _alive(job.owner)


def _alive(process: int) -> bool:
    """Whether a process with this id lives. A reused id only means that the job waits for its
    deadline."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
