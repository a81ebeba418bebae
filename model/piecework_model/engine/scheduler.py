"""Who runs at the next step: sequences, memory and the queue, without a tensor.

A *sequence* is a request that holds a request and the memory of its KV cache; others wait. At every step
each sequence that may go on makes one denoising step, whatever the others do, and sequences come and go
between steps: first done, first out. Prompts are prefilled beside them, chunk by chunk, within a
budget of tokens a step; a sequence whose last chunk is prefilled denoises in the same step.

Fairness, as tests hold it:

1. A sequence whose prompt is prefilled denoises at every step at which it may; what it commits costs it
   none. Nobody is preempted.
2. Of the sequences that still prefill, the oldest prefills at least one chunk a step; what is left of
   the budget goes to those with the fewest chunks left, so that a short prompt does not wait behind
   long ones.
3. Waiting requests become sequences in the order of their arrival. When the first does not fit into free
   memory, later ones that fit may pass it, but no request is passed more than MAX_OVERTAKES times:
   then everybody waits for it.

So a request waits for at most the sequences before it and MAX_OVERTAKES others, a sequence's prompt for at
most the chunks of older sequences, and from then on a sequence finishes in as many steps as it denoises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from piecework_model import limits
from piecework_model.errors import DuplicateRequestError, MemoryOverflowError, QueueFullError
from piecework_model.requests import GenerationRequest

Ids = tuple[int, ...]


def prompt_chunks(prompt_ids: Ids, chunk_tokens: int) -> list[Ids]:
    """Cut a prompt at multiples of `chunk_tokens`. The last chunk may be shorter."""
    return [
        prompt_ids[start : start + chunk_tokens]
        for start in range(0, len(prompt_ids), chunk_tokens)
    ]


def known_chunks(request: GenerationRequest, chunk_tokens: int) -> list[Ids]:
    """List what must be in the cache before the request's next denoising step, chunk by chunk."""
    return [*prompt_chunks(request.prompt_ids, chunk_tokens), *request.committed]


@dataclass(frozen=True, slots=True)
class SequenceWork:
    """What one sequence does in a step: `chunks` of its pending chunks are prefilled, then it denoises
    or not."""

    request_id: str
    chunks: int
    denoise: bool


@dataclass(slots=True)
class _ScheduledRequest:
    """A request, waiting or in a sequence."""

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
    """What an engine has to give. sequences, queued: requests. memory_bytes: for the KV caches of all
    sequences. step_tokens: to prefill in one step, of all sequences. sequence_step_tokens: to prefill in one step, of
    one sequence."""

    sequences: int
    queued: int
    memory_bytes: int
    step_tokens: int
    sequence_step_tokens: int

    def __post_init__(self) -> None:
        if (
            self.sequences < 1
            or self.queued < 0
            or min(self.memory_bytes, self.step_tokens, self.sequence_step_tokens) < 1
        ):
            raise ValueError(f"not a capacity: {self}")


@dataclass(slots=True)
class Scheduler:
    """The places of one engine. Not thread-safe."""

    capacity: Capacity
    _running: dict[str, _ScheduledRequest] = field(default_factory=dict)  # in order of admission
    _waiting: list[_ScheduledRequest] = field(default_factory=list)  # in order of arrival

    @property
    def sequences(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def memory_used(self) -> int:
        """Bytes that the sequences hold."""
        return sum(request.footprint for request in self._running.values())

    @property
    def memory_free(self) -> int:
        """Bytes that no sequence holds."""
        return self.capacity.memory_bytes - self.memory_used

    @property
    def runnable(self) -> bool:
        """Whether a step has anything to do. `admit` comes first."""
        return any(request.runnable for request in self._running.values())

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
        request = _ScheduledRequest(request_id, footprint, deque(chunks), canvas, canvas_limit)
        if len(self._waiting) >= self.capacity.queued and not (
            self._fits(request) and not self._waiting
        ):
            raise QueueFullError(self.capacity.queued)
        self._waiting.append(request)

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Lets a request go on up to, and not including, a canvas. A limit never goes down."""
        request = self._find(request_id)
        if request is not None:
            request.canvas_limit = max(request.canvas_limit, canvas_limit)

    def drop(self, request_id: str) -> bool:
        """Forgets a request; whether it had a sequence."""
        self._waiting = [request for request in self._waiting if request.request_id != request_id]
        return self._running.pop(request_id, None) is not None

    def admit(self) -> list[str]:
        """Gives sequences to waiting requests; those that got one, in order."""
        admitted: list[str] = []
        index = 0
        while index < len(self._waiting) and len(self._running) < self.capacity.sequences:
            if any(waiting.overtaken >= limits.MAX_OVERTAKES for waiting in self._waiting[:index]):
                break
            request = self._waiting[index]
            if not self._fits(request):
                index += 1
                continue
            del self._waiting[index]
            for passed in self._waiting[:index]:
                passed.overtaken += 1
            self._running[request.request_id] = request
            admitted.append(request.request_id)
        return admitted

    def plan(self) -> list[SequenceWork]:
        """The next step of every sequence that may go on, in order of admission."""
        runnable = [request for request in self._running.values() if request.runnable]
        chunks = self._shares([request for request in runnable if not request.started])
        work: list[SequenceWork] = []
        for request in runnable:
            count = len(request.pending) if request.started else chunks[request.request_id]
            ready = count == len(request.pending)
            if count or ready:
                work.append(SequenceWork(request.request_id, count, ready))
        return work

    def _shares(self, prefilling: Sequence[_ScheduledRequest]) -> dict[str, int]:
        """How many chunks each sequence prefills in the next step; `prefilling` in order of
        admission."""
        shares: dict[str, int] = {}
        budget = self.capacity.step_tokens
        oldest = next((request for request in prefilling if request.pending), None)
        for request in sorted(
            prefilling, key=lambda request: (request is not oldest, len(request.pending))
        ):
            room = min(budget, self.capacity.sequence_step_tokens)
            if request is oldest and len(request.pending) > 1:
                room = request.pending[
                    0
                ]  # one, even beyond the budget; long prompts leave room for short ones
            shares[request.request_id], tokens = _fitting(
                request.pending, max(room, 0), request is oldest
            )
            budget -= tokens
        return shares

    def prefilled(self, request_id: str, chunks: int) -> None:
        """The first `chunks` pending chunks of a sequence are in its cache."""
        request = self._running[request_id]
        for _ in range(chunks):
            request.pending.popleft()
        request.started = request.started or not request.pending

    def committed(self, request_id: str, tokens: int) -> None:
        """A sequence has finished a canvas of `tokens` tokens and goes on with the next."""
        request = self._running[request_id]
        request.pending.append(tokens)
        request.canvas += 1

    def _find(self, request_id: str) -> _ScheduledRequest | None:
        waiting = (request for request in self._waiting if request.request_id == request_id)
        return self._running.get(request_id) or next(waiting, None)

    def _fits(self, request: _ScheduledRequest) -> bool:
        return (
            len(self._running) < self.capacity.sequences and request.footprint <= self.memory_free
        )


def _fitting(chunks: Sequence[int], room: int, at_least_one: bool) -> tuple[int, int]:
    """How many leading chunks fit into `room` tokens, and their tokens."""
    count = tokens = 0
    for chunk in chunks:
        if tokens + chunk > room and not (at_least_one and count == 0):
            break
        count, tokens = count + 1, tokens + chunk
    return count, tokens
