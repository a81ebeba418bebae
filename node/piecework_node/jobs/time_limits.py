"""What time does to jobs: deadlines, clients that stay away or do not pay, and pauses that last."""

from __future__ import annotations

from piecework_node.jobs.terms import JobTimeouts
from piecework_node.runtime.jobs import NO_CARD, JobRuntime
from piecework_node.runtime.live import LiveJob
from piecework_node.times import now
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.limits import RESUME_S


class TimeLimits:
    """Holds one job to the clock, whenever it is asked."""

    def __init__(self, runtime: JobRuntime, timeouts: JobTimeouts) -> None:
        self._runtime, self._timeouts = runtime, timeouts

    async def hold(self, job: LiveJob, moment: float) -> None:
        """End what has lasted too long. `moment` is monotonic."""
        async with job.channel.lock:
            self._runtime.press(job)
            if not job.leaving and self.is_late(job):
                await self.expire(job)
            elif not job.leaving and self._is_abandoned(job, moment):
                await self._runtime.cancel(job, Reason.JOB_ENDED)
            elif not job.leaving and self._outlasts_the_pause(job):
                await self._hand_back(job)
            elif not job.leaving and self._has_no_card(job):
                failed = job.session.failed(Reason.ENGINE_FAILED, NO_CARD)
                await self._runtime.give_up(job, failed)
            since, sink = job.waiting_since, job.sink
            if sink is None or since is None or moment - since < self._timeouts.payment_s:
                return
            unpaid = Refusal(Reason.UNPAID_RECEIPTS, "no voucher came in time")
            refusal = unpaid if job.unpaid else None
            await self._runtime.detach(job)
            sink.close(refusal)

    def is_late(self, job: LiveJob) -> bool:
        """Whether the job's deadline has passed."""
        return job.is_late(now(self._runtime.clock))

    async def expire(self, job: LiveJob) -> None:
        """End a job whose deadline has passed. The caller holds the channel's lock."""
        await self._runtime.cancel(job, Reason.EXPIRED)

    @staticmethod
    def _is_abandoned(job: LiveJob, moment: float) -> bool:
        """Whether the client has not come back in time (clause 3.8)."""
        return job.detached_at is not None and moment - job.detached_at >= RESUME_S

    def _outlasts_the_pause(self, job: LiveJob) -> bool:
        """Whether a client has waited in a pause for as long as it was told (clause 3.12)."""
        pause = self._runtime.pause_of(job)
        return pause is not None and job.sink is not None and pause.gives_up_at <= self._now()

    def _has_no_card(self, job: LiveJob) -> bool:
        """Whether a job was to start when no card of its entry was left, and none is coming."""
        on_none = job.sequence is not None and job.card is None
        return on_none and self._runtime.cards.known

    def _now(self) -> int:
        return now(self._runtime.clock)

    async def _hand_back(self, job: LiveJob) -> None:
        """End a paused job. What it delivered stays owed, and nothing else."""
        message = "the owner of the machine still needs it"
        await self._runtime.give_up(job, job.session.failed(Reason.PAUSED, message))
        self._runtime.metrics.handed_back()
