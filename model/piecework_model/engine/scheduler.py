"""Who runs at the next step: rows, memory and the queue, without a tensor.

A *row* is a request that holds a place and the memory of its KV cache; others wait. At every step
each row that may go on makes one denoising step, whatever the others do, and rows come and go
between steps: first done, first out. Prompts are prefilled beside them, chunk by chunk, within a
budget of tokens a step; a row whose last chunk is prefilled denoises in the same step.

Fairness, as tests hold it:

1. A row whose prompt is prefilled denoises at every step at which it may; what it commits costs it
   none. Nobody is preempted.
2. Of the rows that still prefill, the oldest prefills at least one chunk a step; what is left of
   the budget goes to those with the fewest chunks left, so that a short prompt does not wait behind
   long ones.
3. Waiting requests become rows in the order of their arrival. When the first does not fit into free
   memory, later ones that fit may pass it, but no request is passed more than MAX_OVERTAKES times:
   then everybody waits for it.

So a request waits for at most the rows before it and MAX_OVERTAKES others, a row's prompt for at
most the chunks of older rows, and from then on a row finishes in as many steps as it denoises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from piecework_model import limits
from piecework_model.errors import DuplicateRequestError, MemoryOverflowError, QueueFullError


@dataclass(frozen=True, slots=True)
class RowWork:
    """What one row does in a step: `chunks` of its pending chunks are prefilled, then it denoises
    or not."""

    request_id: str
    chunks: int
    denoise: bool


@dataclass(slots=True)
class _Place:
    """A request, waiting or in a row."""

    request_id: str
    footprint: int  # bytes of its KV cache
    pending: deque[int]  # tokens of the chunks that are not in its cache yet
    canvas: int  # index of the canvas to denoise next or now
    canvas_limit: int
    started: bool = False  # whether its prompt is prefilled
    overtaken: int = 0

    @property
    def runnable(self) -> bool:
        return self.canvas < self.canvas_limit


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has to give. rows, queued: requests. memory_bytes: for the KV caches of all
    rows. step_tokens: to prefill in one step, of all rows. row_tokens: to prefill in one step, of
    one row."""

    rows: int
    queued: int
    memory_bytes: int
    step_tokens: int
    row_tokens: int

    def __post_init__(self) -> None:
        if (
            self.rows < 1
            or self.queued < 0
            or min(self.memory_bytes, self.step_tokens, self.row_tokens) < 1
        ):
            raise ValueError(f"not a capacity: {self}")


@dataclass(slots=True)
class Scheduler:
    """The places of one engine. Not thread-safe."""

    capacity: Capacity
    _rows: dict[str, _Place] = field(default_factory=dict)  # in order of admission
    _queue: list[_Place] = field(default_factory=list)  # in order of arrival

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def memory_used(self) -> int:
        """Bytes that the rows hold."""
        return sum(place.footprint for place in self._rows.values())

    @property
    def memory_free(self) -> int:
        """Bytes that no row holds."""
        return self.capacity.memory_bytes - self.memory_used

    @property
    def runnable(self) -> bool:
        """Whether a step has anything to do. `admit` comes first."""
        return any(place.runnable for place in self._rows.values())

    def submit(
        self,
        request_id: str,
        *,
        footprint: int,
        chunks: Sequence[int],
        canvas: int,
        canvas_limit: int,
    ) -> None:
        """Takes a request into the queue. DuplicateRequestError, MemoryOverflowError (it can never
        fit), QueueFullError (it may fit later)."""
        if self._find(request_id) is not None:
            raise DuplicateRequestError(request_id)
        if footprint > self.capacity.memory_bytes:
            raise MemoryOverflowError(footprint, self.capacity.memory_bytes)
        place = _Place(request_id, footprint, deque(chunks), canvas, canvas_limit)
        if len(self._queue) >= self.capacity.queued and not (self._fits(place) and not self._queue):
            raise QueueFullError(self.capacity.queued)
        self._queue.append(place)

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Lets a request go on up to, and not including, a canvas. A limit never goes down."""
        place = self._find(request_id)
        if place is not None:
            place.canvas_limit = max(place.canvas_limit, canvas_limit)

    def drop(self, request_id: str) -> bool:
        """Forgets a request; whether it had a row."""
        self._queue = [place for place in self._queue if place.request_id != request_id]
        return self._rows.pop(request_id, None) is not None

    def admit(self) -> list[str]:
        """Gives rows to waiting requests; those that got one, in order."""
        admitted: list[str] = []
        index = 0
        while index < len(self._queue) and len(self._rows) < self.capacity.rows:
            if any(waiting.overtaken >= limits.MAX_OVERTAKES for waiting in self._queue[:index]):
                break
            place = self._queue[index]
            if not self._fits(place):
                index += 1
                continue
            del self._queue[index]
            for passed in self._queue[:index]:
                passed.overtaken += 1
            self._rows[place.request_id] = place
            admitted.append(place.request_id)
        return admitted

    def plan(self) -> list[RowWork]:
        """The next step of every row that may go on, in order of admission."""
        runnable = [place for place in self._rows.values() if place.runnable]
        chunks = self._shares([place for place in runnable if not place.started])
        work: list[RowWork] = []
        for place in runnable:
            count = len(place.pending) if place.started else chunks[place.request_id]
            ready = count == len(place.pending)
            if count or ready:
                work.append(RowWork(place.request_id, count, ready))
        return work

    def _shares(self, prefilling: Sequence[_Place]) -> dict[str, int]:
        """How many chunks each row prefills in the next step; `prefilling` in order of
        admission."""
        shares: dict[str, int] = {}
        budget = self.capacity.step_tokens
        oldest = next((place for place in prefilling if place.pending), None)
        for place in sorted(
            prefilling, key=lambda place: (place is not oldest, len(place.pending))
        ):
            room = min(budget, self.capacity.row_tokens)
            if place is oldest and len(place.pending) > 1:
                room = place.pending[
                    0
                ]  # one, even beyond the budget; long prompts leave room for short ones
            shares[place.request_id], tokens = _fitting(
                place.pending, max(room, 0), place is oldest
            )
            budget -= tokens
        return shares

    def prefilled(self, request_id: str, chunks: int) -> None:
        """The first `chunks` pending chunks of a row are in its cache."""
        place = self._rows[request_id]
        for _ in range(chunks):
            place.pending.popleft()
        place.started = place.started or not place.pending

    def committed(self, request_id: str, tokens: int) -> None:
        """A row has finished a canvas of `tokens` tokens and goes on with the next."""
        place = self._rows[request_id]
        place.pending.append(tokens)
        place.canvas += 1

    def _find(self, request_id: str) -> _Place | None:
        waiting = (place for place in self._queue if place.request_id == request_id)
        return self._rows.get(request_id) or next(waiting, None)

    def _fits(self, place: _Place) -> bool:
        return len(self._rows) < self.capacity.rows and place.footprint <= self.memory_free


def _fitting(chunks: Sequence[int], room: int, at_least_one: bool) -> tuple[int, int]:
    """How many leading chunks fit into `room` tokens, and their tokens."""
    count = tokens = 0
    for chunk in chunks:
        if tokens + chunk > room and not (at_least_one and count == 0):
            break
        count, tokens = count + 1, tokens + chunk
    return count, tokens
