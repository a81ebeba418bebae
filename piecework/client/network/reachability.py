"""Who answered and who did not, on its way into the client's memory.

A silence counts against a worker only if somebody else was heard after it began: else the client's
own network may be away, and nobody is to blame.
"""

from __future__ import annotations

import asyncio
from functools import partial

from piecework.base.clock import Clock
from piecework.client.errors import StoreError
from piecework.client.journal.learning import learn_answer, learn_silence
from piecework.client.journal.memory import MAX_REMEMBERED_WORKERS, Update, WorkerMemory
from piecework.client.limits import ANSWER_NOTED_S, WITNESS_S
from piecework_protocol.types import Address, Timestamp


class Reachability:
    """Takes reports at any rate and writes them in batches."""

    def __init__(self, memory: WorkerMemory, clock: Clock) -> None:
        self.memory, self._clock = memory, clock
        self._heard: tuple[float, Address | None] | None = None
        self._before: tuple[float, Address | None] | None = None
        self._accused: dict[Address, float] = {}
        self._noted: dict[Address, float] = {}
        self._unwritten: list[tuple[Address, Update]] = []
        self._writing: asyncio.Task[None] | None = None

    def heard(self, worker: Address | None) -> None:
        """A worker answered, or (None) an index did. The network works."""
        now = self._clock.monotonic()
        if self._heard is not None and self._heard[1] != worker:
            self._before = self._heard  # the latest of somebody else than the latest
        self._heard = (now, worker)
        if worker is not None and now >= self._noted.get(worker, -ANSWER_NOTED_S) + ANSWER_NOTED_S:
            if len(self._noted) >= MAX_REMEMBERED_WORKERS:
                self._noted.clear()
            self._noted[worker] = now
            self._write(worker, partial(learn_answer, now=self._now()))
        for accused in [accused for accused in self._accused if accused != worker]:
            if now <= self._accused.pop(accused) + WITNESS_S:
                self._blame(accused)

    def silent(self, worker: Address, since: float) -> None:
        """A worker gave no answer or no progress since that moment of the monotonic clock."""
        self._noted.pop(worker, None)
        for heard in (self._heard, self._before):
            if heard is not None and heard[1] != worker and heard[0] >= since:
                self._blame(worker)
                return
        self._accused[worker] = self._clock.monotonic()

    async def written(self) -> None:
        """Wait until everything that was reported is in the journal."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    def _blame(self, worker: Address) -> None:
        self._write(worker, partial(learn_silence, now=self._now()))

    def _write(self, worker: Address, update: Update) -> None:
        self._unwritten.append((worker, update))
        if self._writing is None:
            self._writing = asyncio.create_task(self._drain(), name="reachability")

    async def _drain(self) -> None:
        try:
            while self._unwritten:
                batch, self._unwritten = self._unwritten, []
                await self.memory.run(self.memory.remember_all, batch)
        except StoreError:
            return  # what is said of workers may be lost; the job's own records will tell the same
        finally:
            self._writing = None

    def _now(self) -> Timestamp:
        return Timestamp(int(self._clock.wall()))
