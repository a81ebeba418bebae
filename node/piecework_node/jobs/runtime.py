"""Carries out what the sessions decide, in the order records → frames → commands (clause 9.1).

One lock per channel is held from a decision until its records are durable and its frames are
queued. A unit of work that has begun is never cancelled half way (`whole`): a stream that breaks
off waits for it. When the journal fails nothing is promised any more: `failed` is set and the
daemon stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from piecework_node.clock import Clock
from piecework_node.engine.link import EngineLink
from piecework_node.errors import EngineUnavailable
from piecework_node.jobs.live import LiveChannel, LiveJob, generation_request
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import JournalRecord
from piecework_node.keys.operator import SealingKeys
from piecework_node.metrics import Metrics
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Refusal
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.signing import Signer, sign
from piecework_protocol.types import ChannelId, Signature
from piecework_protocol.worker_session import AllowCanvases, Outcome, StartEngine, StateRecord

T = TypeVar("T")


class Execution:
    """What all parts of the worker share: channels, rows, and the one way to make something
    happen."""

    def __init__(
        self,
        *,
        domain: Domain,
        signer: Signer,
        journal: Journal,
        engine: EngineLink,
        keys: SealingKeys,
        clock: Clock,
        metrics: Metrics,
        log: Any,
    ) -> None:
        self.domain, self.signer, self.keys = domain, signer, keys
        self.journal, self.engine = journal, engine
        self.clock, self.metrics, self.log = clock, metrics, log
        self.books: dict[ChannelId, LiveChannel] = {}
        self.rows: dict[str, LiveJob] = {}
        """Jobs by the name of their engine row."""
        self.failed: asyncio.Future[None] | None = None
        """Set by the daemon; gets the error after which nothing may go on."""
        self._row_number = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def perform(
        self,
        job: LiveJob,
        outcome: Outcome,
        *,
        before: Iterable[JournalRecord] = (),
        ledger: WorkerLedger | None = None,
    ) -> None:
        """Records, then frames, then commands. The channel's lock is held."""
        await self.journal.append([*before, *outcome.records])
        if ledger is not None:
            job.book.ledger = ledger
        for record in outcome.records:
            if isinstance(record, StateRecord):
                self.metrics.moved(record.state)
        if job.sink is not None:
            for frame in outcome.frames(self.sign):
                job.sink.send(frame)
        self.command(job, outcome)
        self.rest(job)

    def command(self, job: LiveJob, outcome: Outcome) -> None:
        """Pass an outcome's commands to the engine. Its records are durable."""
        for command in outcome.commands:
            if isinstance(command, StartEngine):
                self._start_row(job, command)
            elif isinstance(command, AllowCanvases):
                if job.run is not None:
                    self.engine.allow(job.run, self.limit(job, command.canvas_limit))
            else:
                self.drop_row(job)

    def _start_row(self, job: LiveJob, command: StartEngine) -> None:
        self._row_number += 1
        job.run = f"{job.id.hex()}-{self._row_number}"
        self.rows[job.run] = job
        request = generation_request(
            job.run,
            job.prompt_ids,
            job.session.accepted.job.parameters,
            canvas_limit=self.limit(job, command.canvas_limit),
            committed=tuple(job.committed[: command.committed]),
            drafts=job.drafts,
            tenant=job.book.id.hex(),
        )
        self.engine.start(request)

    def drop_row(self, job: LiveJob) -> None:
        """Free a job's row, if it has one."""
        row, job.run = job.run, None
        if row is not None:
            del self.rows[row]
            self.engine.cancel(row)

    def limit(self, job: LiveJob, limit: int) -> int:
        """Vouchers on a deposit that is not on chain yet do not widen the credit window."""
        if job.pending and job.book.committed > job.book.deposit:
            return min(limit, job.session.accepted.credit_window)
        return limit

    def rest(self, job: LiveJob) -> None:
        """After something happened to a job: is it the client's turn, is it over, may we forget
        it?"""
        waits = job.ended or job.session.canvases >= self.limit(
            job, job.session.canvas_limit(job.book.ledger)
        )
        job.waiting_since = self.clock.monotonic() if waits else None
        if not job.ended or job.unpaid:
            return
        sink, job.sink, job.prompt_ids = job.sink, None, ()
        if sink is not None:
            sink.close(None)
        job.book.jobs.pop(job.id, None)

    def sign(self, message: TypedData) -> Signature:
        """The operator's signature."""
        return sign(self.domain, message, self.signer)

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end even if the caller is cancelled: a decision and its effects belong
        together."""
        return await asyncio.shield(self.spawn(work))

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a unit of work that nobody can cancel; an error of ours in it stops the daemon."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def settle_down(self) -> None:
        """Wait for every unit of work that has begun."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or isinstance(error, Refusal | EngineUnavailable):
            return
        if self.failed is not None and not self.failed.done():
            self.failed.set_exception(error)
