"""Paying what is still owed on a channel: canvases of jobs that broke off, vouchers that never
arrived.

A worker refuses new jobs on a channel with unpaid canvases (clause 3.7). The client comes back to
each such job that nobody follows, takes what is there, pays for it and cancels the rest. A job that
a living process of this client follows is left alone.
"""

from __future__ import annotations

import asyncio

from piecework.client.errors import ClientError, JobFollowed
from piecework.client.jobs.driver import LATER, JobContext, JobDriver
from piecework.client.jobs.events import CanvasText, JobEvent
from piecework.client.journal.records import ChannelRow, JobRow, JobStatus
from piecework_protocol.errors import Refusal
from piecework_protocol.types import ChannelId

MAX_JOBS_SETTLED = 16
"""Broken-off jobs that one call comes back to. A channel with more needs the person's attention."""


class _Collector:
    """A caller who takes what is there and wants no more."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.cancelled.set()

    async def emit(self, event: JobEvent) -> None:
        """Nobody reads these events: what they tell is in the journal."""

    def offer(self, event: JobEvent) -> None:
        """Nobody looks at these drafts."""


class _Messenger(_Collector):
    """A caller who brings a voucher to a job that is over. It cancels nothing.

    A new canvas would show that the job still runs. Nobody follows it, so it is then cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cancelled.clear()

    async def emit(self, event: JobEvent) -> None:
        if isinstance(event, CanvasText) and not event.again:
            self.cancelled.set()


async def pay_outstanding(context: JobContext, channel: ChannelId) -> tuple[str, ...]:
    """Come back to every broken-off job of the channel that nobody follows.

    Returns:
        One line for each job that could not be brought to its end.
    """
    row = await context.store.run(context.store.channel, channel)
    live = await context.store.run(context.store.jobs, channel, JobStatus.LIVE)
    left = [job for job in live if not context.store.is_followed(job)][-MAX_JOBS_SETTLED:]
    found = [await _come_back(context, job, _Collector()) for job in left]
    if not left:
        found.append(await _bring_voucher(context, row))
    return tuple(trouble for trouble in found if trouble)


async def _bring_voucher(context: JobContext, row: ChannelRow) -> str:
    """Have the latest voucher confirmed over the stream of a job that is over."""
    for ref in reversed(row.book.unacknowledged):
        job = await context.store.run(context.store.job, ref.job)
        if job.status not in (JobStatus.BROKEN, JobStatus.LIVE):
            trouble = await _come_back(context, job, _Messenger())
            await context.store.run(context.store.finish, job.id, job.status, job.detail)
            return trouble
    return "another process of this client brings the voucher" if row.book.unacknowledged else ""


async def _come_back(context: JobContext, job: JobRow, caller: _Collector) -> str:
    """Follow a job to its end. Return one line if that could not be done."""
    try:
        await context.store.run(context.store.take_over, job.id)
        try:
            await JobDriver(context, job, caller).run()
        finally:
            context.store.leave(job.id)
    except JobFollowed:
        return ""  # another process came back to it first
    except Refusal as refusal:
        if refusal.reason in LATER:
            return str(refusal)  # what it may be owed is not known before it has time for us
        # The worker does not know the job, or will not have it: nothing is owed.
        await context.store.run(
            context.store.finish, job.id, JobStatus.REFUSED, refusal.reason.name
        )
    except ClientError as error:
        return str(error)
    return ""
