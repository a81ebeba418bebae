"""Jobs of the gateway, each run when it is its turn in the line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from piecework.client.errors import JobFailed, JobInterrupted, NoWorkerFits, WorkerUnreachable
from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.idempotency import Purchase
from piecework.client.gateway.line import LineFull, WaitingLine, WaitOver
from piecework.client.jobs.events import JobEvent, JobStarted
from piecework.client.jobs.requests import JobRequest, TextRequest
from piecework.client.jobs.run import JobRun
from piecework.client.journal.records import Part
from piecework_protocol.errors import Refusal

WAIT_WHEN_FULL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker took."""

    started: JobStarted
    events: AsyncIterator[JobEvent]
    run: JobRun


class JobSource(Protocol):
    """Where the jobs of one request come from: workers, or the evidence of an earlier answer."""

    def part(self, number: int = 0) -> Part:
        """Return the part of this number, without a hold."""
        ...

    def parts(
        self, requests: Sequence[TextRequest]
    ) -> AbstractAsyncContextManager[tuple[Part, ...]]:
        """Reserve what several requests may cost, all or nothing."""
        ...

    def job(self, request: JobRequest, part: Part) -> AbstractAsyncContextManager[RunningJob]:
        """Run a job, from its acceptance on. Leaving the block early cancels it."""
        ...


class Turns:
    """Runs the jobs of one request. A job whose workers are all busy waits in line.

    Implements `JobSource`.
    """

    def __init__(self, line: WaitingLine, purchase: Purchase, budget: str) -> None:
        """`budget` is the name of the API key that pays, or "" for the client itself."""
        self._line, self._budget = line, budget
        self.purchase = purchase

    def part(self, number: int = 0) -> Part:
        """Return the part of this number, without a hold."""
        return self.purchase.part(number)

    def parts(
        self, requests: Sequence[TextRequest]
    ) -> AbstractAsyncContextManager[tuple[Part, ...]]:
        """Reserve what several requests may cost, all or nothing."""
        return self.purchase.parts(requests)

    @asynccontextmanager
    async def job(self, request: JobRequest, part: Part) -> AsyncIterator[RunningJob]:
        """Run a job, from its acceptance on. Leaving the block early cancels it.

        part: its place in the request, and what was reserved for it.

        Raises:
            ApiError: There is no place to wait, or the wait was too long.
            NoWorkerFits: Nobody can take the request.
            ClientError: As `PieceworkClient.run`.
        """
        busy: NoWorkerFits | None = None
        try:
            async with self._line.turn(request.model, self._budget) as turn:
                while True:
                    async with self.purchase.job(request, part) as run:
                        events = aiter(run)
                        try:
                            started = await _first(events)
                        except NoWorkerFits as error:
                            if error.retry_after_s is None:
                                raise
                            busy = error
                        except (WorkerUnreachable, JobInterrupted, JobFailed, Refusal):
                            if not await self.purchase.starts_again(part):
                                raise
                            continue
                        else:
                            turn.accepted()
                            yield RunningJob(started, events, run)
                            return
                    await turn.again(busy.retry_after_s or WAIT_WHEN_FULL_S)
        except LineFull as full:
            kind, code = "rate_limit_error", "too_many_requests"
            raise ApiError(
                429, kind, str(full), code=code, retry_after_s=WAIT_WHEN_FULL_S
            ) from None
        except WaitOver as over:
            if busy is not None:
                raise busy from None
            kind, code = "service_unavailable", "wait_over"
            raise ApiError(
                503, kind, str(over), code=code, retry_after_s=WAIT_WHEN_FULL_S
            ) from None


async def _first(events: AsyncIterator[JobEvent]) -> JobStarted:
    """The acceptance, before which nothing is answered: until then a failure is an HTTP status."""
    async for event in events:
        if isinstance(event, JobStarted):
            return event
    raise WorkerUnreachable("no worker accepted the job")
