"""Which requests run at the next step: sequences, memory and the waiting queue. No tensors.

A *sequence* is a request that runs: it holds the memory of its KV cache. Other requests wait. At
every step each runnable sequence makes one denoising step, whatever the others do. Sequences come
and go between steps.

Prompts are prefilled beside the denoising, chunk by chunk, within a budget of tokens a step. A
sequence whose last chunk is prefilled denoises in the same step.

The cuts of a chunk decide the last bits of its keys and values. So they belong to the engine
profile and never to the schedule: a prompt is cut at multiples of `chunk_tokens` (around an image
in it, see `prompt_chunks`), and each committed canvas is a chunk of its own.

Fairness, as tests hold it:

1. A sequence whose prompt is prefilled denoises at every step at which it may. A commit does not
   cost it a step. No sequence is preempted.
2. Of the sequences that still prefill, the oldest prefills at least one chunk a step. The rest of
   the budget goes to those with the fewest chunks left, so that a short prompt does not wait behind
   long ones. Among equals a short request comes first.
3. Waiting requests start in the order of their arrival. If the first does not fit into free memory,
   later ones that fit may pass it. No request is passed more than MAX_OVERTAKES times. After that
   all others wait for it.
4. A *short* request takes few steps, has a short prompt and takes little memory, as most reads do.
   Short ones have sequences and a part of the memory that no long one takes. So they start at once,
   however many long ones run or wait. A long one may take that memory too if it fits nowhere else
   and no other long one runs. A short request passes a long one that waits for a sequence, or for
   memory that long ones hold. It does not pass one that waits for short ones.

So a long request waits for the sequences before it and at most MAX_OVERTAKES others. Its prompt
waits for the chunks of older sequences. From then on it takes as many steps as it denoises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from piecework_model import limits
from piecework_model.errors import DuplicateRequestError, MemoryOverflowError, QueueFullError
from piecework_model.requests import GenerationRequest, PromptImage

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Consecutive tokens that are prefilled in one pass.

    images: those among them, each of them whole. `start` counts from the chunk's first token.
    """

    ids: Ids
    images: tuple[PromptImage, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def prompt_chunks(
    prompt_ids: Ids, chunk_tokens: int, images: tuple[PromptImage, ...] = ()
) -> list[PrefillChunk]:
    """Cut a prompt into chunks of `chunk_tokens`. The last one may be shorter.

    No cut goes through an image, whose tokens see each other. A chunk ends before an image that it
    cannot hold. An image longer than a chunk makes a longer one.
    """
    chunks: list[PrefillChunk] = []
    start = 0
    while start < len(prompt_ids):
        end = start + chunk_tokens
        for image in images:
            if image.start < end < image.start + image.tokens:
                end = image.start if image.start > start else image.start + image.tokens
        inside = tuple(
            replace(image, start=image.start - start)
            for image in images
            if start <= image.start < end
        )
        chunks.append(PrefillChunk(prompt_ids[start:end], inside))
        start = end
    return chunks


def known_chunks(request: GenerationRequest, chunk_tokens: int) -> list[PrefillChunk]:
    """List what must be in the cache before the request's next denoising step, chunk by chunk.

    The canvases of a read are not among it: each stands directly behind the prompt.
    """
    prompt = prompt_chunks(request.prompt_ids, chunk_tokens, request.images)
    committed = () if request.reads else request.committed
    return [*prompt, *map(PrefillChunk, committed)]


def joined_chunks(chunks: Sequence[PrefillChunk], most: int) -> list[PrefillChunk]:
    """Join neighbours to chunks of at most `most` tokens. One that is longer, or has images, stays
    as it is.
    """
    joined: list[PrefillChunk] = []
    for chunk in chunks:
        last = joined[-1] if joined else chunk
        if joined and not (last.images or chunk.images) and len(last) + len(chunk) <= most:
            joined[-1] = PrefillChunk(last.ids + chunk.ids)
        else:
            joined.append(chunk)
    return joined


@dataclass(frozen=True, slots=True)
class SequenceWork:
    """The work of one sequence in a step: prefill the first `chunks` pending chunks, then denoise
    or not.
    """

    request_id: str
    chunks: int
    denoise: bool


@dataclass(slots=True)
class _ScheduledRequest:
    """A request that waits or runs."""

    request_id: str
    footprint: int  # bytes of its KV cache
    pending: deque[int]  # tokens of the chunks that are not in its cache yet
    short: bool
    canvas: int  # index of the canvas to denoise next or now
    canvas_limit: int
    started: bool = False  # whether its prompt is prefilled
    overtaken: int = 0

    @property
    def runnable(self) -> bool:
        return self.canvas < self.canvas_limit


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has to give.

    sequences, queued: requests that run and that wait. memory_bytes: for the KV caches of all
    sequences. step_tokens: to prefill in one step, of all sequences. sequence_step_tokens: of one
    sequence. short_sequences, short_bytes: sequences beside `sequences`, and a part of
    `memory_bytes`, for short requests alone.
    """

    sequences: int
    queued: int
    memory_bytes: int
    step_tokens: int
    sequence_step_tokens: int
    short_sequences: int = 1
    short_bytes: int = 0

    def __post_init__(self) -> None:
        if (
            self.sequences < 1
            or self.queued < 0
            or min(self.memory_bytes, self.step_tokens, self.sequence_step_tokens) < 1
            or self.short_sequences < 1
            or not 0 <= self.short_bytes < self.memory_bytes
        ):
            raise ValueError(f"not a capacity: {self}")


@dataclass(slots=True)
class Scheduler:
    """The requests of one engine. Not thread-safe."""

    capacity: Capacity
    reserved: int = 0
    """Bytes that no request may take for now."""
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
        """Bytes that the sequences hold, and those that are reserved."""
        return self._held(short=True) + self._held(short=False) + self.reserved

    @property
    def memory_free(self) -> int:
        """Bytes that no sequence holds and nobody reserved."""
        return self.capacity.memory_bytes - self.memory_used

    @property
    def prefilling(self) -> list[str]:
        """The runnable sequences whose prompt is not prefilled yet."""
        return [
            request.request_id
            for request in self._running.values()
            if request.runnable and not request.started and request.pending
        ]

    @property
    def runnable(self) -> bool:
        """Whether a step has anything to do. Call `admit` first."""
        return any(request.runnable for request in self._running.values())

    def submit(
        self,
        request_id: str,
        *,
        footprint: int,
        chunks: Sequence[int],
        canvas: int,
        canvas_limit: int,
        short: bool = False,
    ) -> None:
        """Take a request into the queue.

        short: whether it takes few steps, few chunks and little memory.

        Raises:
            DuplicateRequestError: A request of this id is here already.
            MemoryOverflowError: It can never fit.
            QueueFullError: It may fit later.
        """
        if self._find(request_id) is not None:
            raise DuplicateRequestError(request_id)
        if footprint > self.capacity.memory_bytes:
            raise MemoryOverflowError(footprint, self.capacity.memory_bytes)
        request = _ScheduledRequest(
            request_id, footprint, deque(chunks), short, canvas, canvas_limit
        )
        starts = self._may_start(request, self._waiting) and (short or not self._waiting)
        if len(self._waiting) >= self.capacity.queued and not starts:
            raise QueueFullError(self.capacity.queued)
        self._waiting.append(request)

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Let a request go on up to, not including, a canvas. A limit never goes down."""
        request = self._find(request_id)
        if request is not None:
            request.canvas_limit = max(request.canvas_limit, canvas_limit)

    def drop(self, request_id: str) -> bool:
        """Forget a request. Returns whether it was running."""
        self._waiting = [request for request in self._waiting if request.request_id != request_id]
        return self._running.pop(request_id, None) is not None

    def admit(self) -> list[str]:
        """Start waiting requests. Returns those that were started, in order."""
        admitted: list[str] = []
        index = 0
        while index < len(self._waiting):
            request, earlier = self._waiting[index], self._waiting[:index]
            if not self._may_start(request, earlier):
                index += 1
                continue
            for passed in earlier:
                passed.overtaken += self._delays(request, passed)
            del self._waiting[index]
            self._running[request.request_id] = request
            admitted.append(request.request_id)
        return admitted

    def plan(self) -> list[SequenceWork]:
        """Plan the next step of every runnable sequence, in order of admission."""
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
        """Share out the chunks to prefill in the next step. `prefilling` is in order of
        admission.
        """
        shares: dict[str, int] = {}
        budget = self.capacity.step_tokens
        oldest = next((request for request in prefilling if request.pending), None)
        for request in sorted(
            prefilling,
            key=lambda request: (request is not oldest, len(request.pending), not request.short),
        ):
            room = min(budget, self.capacity.sequence_step_tokens)
            if request is oldest and len(request.pending) > 1:
                # One chunk, even beyond the budget. Long prompts leave room for short ones.
                room = request.pending[0]
            shares[request.request_id], tokens = _fitting(
                request.pending, max(room, 0), request is oldest
            )
            budget -= tokens
        return shares

    def prefilled(self, request_id: str, chunks: int) -> None:
        """Record that the first `chunks` pending chunks of a sequence are in its cache."""
        request = self._running[request_id]
        for _ in range(chunks):
            request.pending.popleft()
        request.started = request.started or not request.pending

    def committed(self, request_id: str, tokens: int) -> None:
        """Record that a sequence has finished a canvas and goes on with the next.

        tokens: of it that must be prefilled, 0 for none.
        """
        request = self._running[request_id]
        if tokens:
            request.pending.append(tokens)
        request.canvas += 1

    def _find(self, request_id: str) -> _ScheduledRequest | None:
        waiting = (request for request in self._waiting if request.request_id == request_id)
        return self._running.get(request_id) or next(waiting, None)

    def _may_start(self, request: _ScheduledRequest, earlier: Sequence[_ScheduledRequest]) -> bool:
        """Say whether a request fits, and may pass those that came earlier and still wait."""
        if not (self._has_sequence(request) and request.footprint <= self._room(request)):
            return False
        return not any(
            self._delays(request, passed)
            and (passed.overtaken >= limits.MAX_OVERTAKES or (request.short and not passed.short))
            for passed in earlier
        )

    def _delays(self, request: _ScheduledRequest, passed: _ScheduledRequest) -> bool:
        """Say whether a request takes memory that one which it passes waits for."""
        if not self._has_sequence(passed):
            return False
        if request.short and not passed.short:
            # If long ones alone leave it no room, the short one is gone before they are.
            return passed.footprint <= self._room_beside_long()
        return True

    def _has_sequence(self, request: _ScheduledRequest) -> bool:
        taken = sum(running.short == request.short for running in self._running.values())
        most = self.capacity.short_sequences if request.short else self.capacity.sequences
        return taken < most

    def _room(self, request: _ScheduledRequest) -> int:
        """Count the bytes that a request may take now."""
        if request.short:
            return self.memory_free
        return min(self.memory_free, self._room_beside_long())

    def _room_beside_long(self) -> int:
        """Count the bytes that a long request could take if there were no short ones."""
        held = self._held(short=False)
        return self.capacity.memory_bytes - held - (self.capacity.short_bytes if held else 0)

    def _held(self, *, short: bool) -> int:
        return sum(
            request.footprint for request in self._running.values() if request.short is short
        )


def _fitting(chunks: Sequence[int], room: int, at_least_one: bool) -> tuple[int, int]:
    """Count the leading chunks that fit into `room` tokens, and their tokens."""
    count = tokens = 0
    for chunk in chunks:
        if tokens + chunk > room and not (at_least_one and count == 0):
            break
        count, tokens = count + 1, tokens + chunk
    return count, tokens
