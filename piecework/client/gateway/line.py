"""Requests that wait for their turn, first come, first served, instead of failing when all is busy.

The gateway belongs to the buyer, so it can hold what workers decline for now. Two things may be
short: places in the gateway, and slots at the workers of a model. A request whose workers are busy
steps back, and the next one for the same model goes when a job there ends, or when the workers said
to ask again. One at a time: a crowd that asks at once would only be declined at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from piecework.base.errors import PieceworkError

LONGEST_ASK_AGAIN_S: Final = 5.0
"""A line moves at least this often: workers may say any time."""

Key: TypeAlias = str | None


class LineFull(PieceworkError):
    """There is no place to wait, or the wait is over."""


@dataclass(order=True, slots=True)
class _Waiter:
    ticket: int
    key: Key = field(compare=False)
    place: asyncio.Future[None] = field(compare=False)


class WaitingLine:
    """One line for each model, over a number of places that all share.

    Attributes:
        waiting: How many wait now.
        running: How many have a place now.
    """

    def __init__(self, *, places: int, waiting: int, wait_s: float) -> None:
        """Open the line: so many places, so many may wait, each so many seconds in all."""
        self._places, self._most_waiting, self._wait_s = places, waiting, wait_s
        self.waiting = self.running = 0
        self._tickets = 0
        self._ready: deque[_Waiter] = deque()
        self._blocked: dict[Key, list[_Waiter]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[Turn]:
        """Wait for a place, and keep it for the block.

        Raises:
            LineFull: too many wait already, or the wait was too long.
        """
        self._tickets += 1
        deadline = asyncio.get_running_loop().time() + self._wait_s
        turn = Turn(self, key, self._tickets, deadline)
        if key in self._blocked or self.running >= self._places:
            await self._wait(turn, blocked=key in self._blocked)
        else:
            self.running += 1
        try:
            yield turn
        finally:
            if turn.in_place:
                self._leave(key)

    async def step_back(self, turn: Turn, retry_after_s: float) -> None:
        """Give the place back until a slot may be free."""
        loop = asyncio.get_running_loop()
        pause = min(retry_after_s, LONGEST_ASK_AGAIN_S)
        if loop.time() + pause >= turn.deadline:
            raise LineFull("every worker that fits is busy")
        self._blocked.setdefault(turn.key, [])
        turn.in_place = False
        self.running -= 1
        self._fill()
        self._arm(turn.key, pause)
        await self._wait(turn, blocked=True)
        turn.in_place = True

    def release(self, key: Key) -> None:
        """A slot may be free for this model: the first who waits for it may ask."""
        self._unblock(key)
        self._fill()

    def _arm(self, key: Key, pause: float) -> None:
        """Let a model's line move at least this often, one request at a time."""
        if key not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[key] = loop.call_later(pause, self._move_on, key, pause)

    def _move_on(self, key: Key, pause: float) -> None:
        del self._timers[key]
        self.release(key)
        if key in self._blocked:
            self._arm(key, pause)

    def _unblock(self, key: Key) -> None:
        blocked = self._blocked.get(key)
        if blocked:
            self._ready.append(heapq.heappop(blocked))
        elif blocked is not None:
            del self._blocked[key]  # nobody waits: who comes next need not either

    async def _wait(self, turn: Turn, *, blocked: bool) -> None:
        if self.waiting >= self._most_waiting:
            raise LineFull("too many requests wait already")
        waiter = _Waiter(turn.ticket, turn.key, asyncio.get_running_loop().create_future())
        if blocked:
            heapq.heappush(self._blocked[turn.key], waiter)
        else:
            self._ready.append(waiter)
        self.waiting += 1
        try:
            async with asyncio.timeout_at(turn.deadline):
                await waiter.place
        except BaseException as error:
            if waiter.place.done() and not waiter.place.cancelled():
                self._leave(turn.key)  # it was granted just as the waiting ended
            if isinstance(error, TimeoutError):
                raise LineFull("the request waited too long for its turn") from None
            raise
        finally:
            self.waiting -= 1

    def _leave(self, key: Key) -> None:
        self.running -= 1
        self.release(key)

    def _fill(self) -> None:
        while self._ready and self.running < self._places:
            waiter = self._ready.popleft()
            if waiter.place.done():  # it has given up: its chance goes to the next
                self._unblock(waiter.key)
            else:
                self.running += 1
                waiter.place.set_result(None)


@dataclass(slots=True)
class Turn:
    """One request's place."""

    line: WaitingLine
    key: Key
    ticket: int
    deadline: float
    in_place: bool = True

    async def again(self, retry_after_s: float) -> None:
        """Everybody is busy: step back, and return when it is worth asking again.

        Raises:
            LineFull: the request would wait too long.
        """
        await self.line.step_back(self, retry_after_s)

    def accepted(self) -> None:
        """A worker took the request, so there may be room for one more."""
        self.line.release(self.key)
