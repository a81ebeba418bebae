"""One job as its caller sees it: an asynchronous iterator of events that can be cancelled.

    async with client.run(request) as run:
        async for event in run:
            ...

Leaving the block early cancels the job at the worker, pays for what was delivered and then returns.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from piecework.client.jobs.events import JobEvent
from piecework.client.limits import CLOSE_TIMEOUT_S, MAX_WAITING_EVENTS


class Caller(Protocol):
    """How a job reaches the one who asked for it."""

    cancelled: asyncio.Event

    async def emit(self, event: JobEvent) -> None:
        """Deliver, waiting for a slow reader."""
        ...

    def offer(self, event: JobEvent) -> None:
        """Deliver unless the reader is behind."""
        ...


class JobRun:
    """A job in a task of its own, with a bounded line of events to one reader. Implements
    `Caller`."""

    def __init__(
        self, drive: Callable[[Caller], Awaitable[None]], on_end: Callable[[JobRun], None]
    ) -> None:
        self.cancelled = asyncio.Event()
        self._drive = drive
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._events: deque[JobEvent] = deque()
        self._ready = asyncio.Event()
        self._space = asyncio.Event()
        self._abandoned = False

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        self._start()
        return self

    async def __anext__(self) -> JobEvent:
        task = self._start()
        while not self._events:
            if task.done():
                task.result()  # raises what ended the job
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        self._space.set()
        return self._events.popleft()

    def cancel(self) -> None:
        """Ask the worker to stop at its next denoising step; the events end with what was
        delivered."""
        self.cancelled.set()

    async def aclose(self) -> None:
        """Cancel if still running, and wait, boundedly, until what was delivered is paid."""
        self._abandoned = True
        self._events.clear()
        self._space.set()
        self.cancel()
        if self._task is None:
            return
        _, pending = await asyncio.wait({self._task}, timeout=CLOSE_TIMEOUT_S)
        if pending:
            self._task.cancel()
            await asyncio.wait(pending)
        if not self._task.cancelled():
            self._task.exception()  # retrieved: the reader has left and asks no more

    async def emit(self, event: JobEvent) -> None:
        """Deliver an event that must not be lost while somebody reads."""
        while len(self._events) >= MAX_WAITING_EVENTS and not self._abandoned:
            self._space.clear()
            await self._space.wait()
        self._append(event)

    def offer(self, event: JobEvent) -> None:
        """Deliver a draft, unless half of the line is waiting already."""
        if len(self._events) < MAX_WAITING_EVENTS // 2:
            self._append(event)

    def _append(self, event: JobEvent) -> None:
        if not self._abandoned:
            self._events.append(event)
            self._ready.set()

    def _start(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="piecework job")
            self._task.add_done_callback(self._finished)
        return self._task

    async def _run(self) -> None:
        await self._drive(self)

    def _finished(self, _: asyncio.Task[None]) -> None:
        self._ready.set()
        self._on_end(self)
