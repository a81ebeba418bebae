"""Requests that wait for their turn instead of failing when all is busy.

The gateway belongs to the buyer, so it can hold what workers decline for now. Two things may be
short: places in the gateway, and slots at the workers of a model. A request whose workers are busy
steps back, and the next one for the same model goes when a job there ends, or when the workers said
to ask again. One at a time: a crowd that asks at once would only be declined at once.

Of those that wait, the caller with the fewest running requests goes first, and among its requests
the one that came first. A caller with an API key gets half of the waiting places at most.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from piecework.base.errors import PieceworkError

LONGEST_ASK_AGAIN_S: Final = 5.0
"""A line moves at least this often: workers may say any time."""

Key: TypeAlias = str | None


class LineFull(PieceworkError):
    """There is no place to wait."""


class WaitOver(PieceworkError):
    """A request waited for as long as it may."""


@dataclass(slots=True, eq=False)
class _Waiter:
    ticket: int
    key: Key
    caller: str
    place: asyncio.Future[None]


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
        self._running_of: Counter[str] = Counter()
        self._waiting_of: Counter[str] = Counter()
        self._ready: list[_Waiter] = []
        self._blocked: dict[Key, list[_Waiter]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    @asynccontextmanager
    async def turn(self, key: Key, caller: str = "") -> AsyncIterator[Turn]:
        """Wait for a place, and keep it for the block.

        Args:
            key: The model.
            caller: The name of an API key, or "" for whoever runs the gateway.

        Raises:
            LineFull: too many wait already, all together or of this caller.
            WaitOver: the wait was too long.
        """
        self._tickets += 1
        deadline = asyncio.get_running_loop().time() + self._wait_s
        turn = Turn(self, key, caller, self._tickets, deadline)
        if key in self._blocked or self.running >= self._places:
            await self._wait(turn, blocked=key in self._blocked)
        else:
            self._enter(caller)
        try:
            yield turn
        finally:
            if turn.in_place:
                self._leave(turn)

    async def step_back(self, turn: Turn, retry_after_s: float) -> None:
        """Give the place back until a slot may be free."""
        loop = asyncio.get_running_loop()
        pause = min(retry_after_s, LONGEST_ASK_AGAIN_S)
        if loop.time() + pause >= turn.deadline:
            raise WaitOver("every worker that fits stayed busy")
        self._blocked.setdefault(turn.key, [])
        turn.in_place = False
        self._exit(turn.caller)
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
            self._ready.append(self._take(blocked))
        elif blocked is not None:
            del self._blocked[key]  # nobody waits: who comes next need not either

    async def _wait(self, turn: Turn, *, blocked: bool) -> None:
        if self.waiting >= self._most_waiting:
            raise LineFull("too many requests wait already")
        if turn.caller and self._waiting_of[turn.caller] >= max(1, self._most_waiting // 2):
            raise LineFull("too many requests of this API key wait already")
        place = asyncio.get_running_loop().create_future()
        waiter = _Waiter(turn.ticket, turn.key, turn.caller, place)
        # The model's line may have moved on and ended while this request stepped back.
        waiters = self._blocked.setdefault(turn.key, []) if blocked else self._ready
        waiters.append(waiter)
        self._count_waiting(turn.caller, 1)
        try:
            async with asyncio.timeout_at(turn.deadline):
                await waiter.place
        except BaseException as error:
            if waiter.place.done() and not waiter.place.cancelled():
                self._leave(turn)  # it was granted just as the waiting ended
            else:
                self._forget(waiter)
            if isinstance(error, TimeoutError):
                raise WaitOver("the request waited too long for its turn") from None
            raise
        finally:
            self._count_waiting(turn.caller, -1)

    def _forget(self, waiter: _Waiter) -> None:
        """Take out who has given up. Else all who did would lie here until a place is free.

        If its model's line had let it go, its chance goes to the next.
        """
        if waiter in self._ready:
            self._ready.remove(waiter)
            self._unblock(waiter.key)
            self._fill()
        elif waiter in self._blocked.get(waiter.key, ()):
            self._blocked[waiter.key].remove(waiter)

    def _leave(self, turn: Turn) -> None:
        self._exit(turn.caller)
        self.release(turn.key)

    def _fill(self) -> None:
        while self._ready and self.running < self._places:
            waiter = self._take(self._ready)
            if waiter.place.done():  # it is about to give up: its chance goes to the next
                self._unblock(waiter.key)
            else:
                self._enter(waiter.caller)
                waiter.place.set_result(None)

    def _take(self, waiters: list[_Waiter]) -> _Waiter:
        """Take out who goes next: of the caller with the fewest running, the first that came."""
        following = min(waiters, key=lambda w: (self._running_of[w.caller], w.ticket))
        waiters.remove(following)
        return following

    def _enter(self, caller: str) -> None:
        self.running += 1
        self._running_of[caller] += 1

    def _exit(self, caller: str) -> None:
        self.running -= 1
        self._running_of[caller] -= 1
        if not self._running_of[caller]:
            del self._running_of[caller]

    def _count_waiting(self, caller: str, change: int) -> None:
        self.waiting += change
        self._waiting_of[caller] += change
        if not self._waiting_of[caller]:
            del self._waiting_of[caller]


@dataclass(slots=True)
class Turn:
    """One request's place."""

    line: WaitingLine
    key: Key
    caller: str
    ticket: int
    deadline: float
    in_place: bool = True

    async def again(self, retry_after_s: float) -> None:
        """Everybody is busy: step back, and return when it is worth asking again.

        Raises:
            LineFull: too many wait already.
            WaitOver: the request would wait too long.
        """
        await self.line.step_back(self, retry_after_s)

    def accepted(self) -> None:
        """A worker took the request, so there may be room for one more."""
        self.line.release(self.key)
