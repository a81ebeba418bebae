"""A deterministic engine: canvases are a function of (seed, canvas), whatever ran before or beside.

It keeps the rules of the real one: canvas limits pause a row, committed canvases are skipped, a
canvas that is not the last is full, cancelled rows say nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256

from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    FailedEvent,
    GenerationRequest,
    StoppedEvent,
)
from piecework_node.engine.link import EngineEvent, EngineFacts, EngineLost, EngineReady
from piecework_node.errors import EngineUnavailable, PromptRejected
from piecework_protocol.conversation import Message
from piecework_protocol.objects import Service
from piecework_protocol.types import Digest
from tests.support.node.faults import KillSwitch

CANVAS = 8
MAX_STEPS = 48

FACTS = EngineFacts(
    name="fake",
    digest=Digest(sha256(b"fake model").digest()),
    profile="fake-cpu",
    device="cpu",
    max_context=4096,
    canvas_size=CANVAS,
    max_steps=MAX_STEPS,
    vocab_size=1000,
    tokens_per_second=100,
    first_canvas_ms=50,
    steps_per_second=200,
    service=Service.REPLAYABLE,
    details={"hardware": "none"},
)


class FakeEngine:
    """Implements `node.engine_link.EngineLink`. Tests call `step` and hand the events on."""

    def __init__(self, switch: KillSwitch | None = None) -> None:
        self.switch = switch or KillSwitch()
        self.rows: dict[str, GenerationRequest] = {}
        self.limits: dict[str, int] = {}
        self.done: dict[str, int] = {}
        self.drafted: set[tuple[str, int]] = set()
        self.stops: dict[str, bool] = {}
        """Rows that are to stop, and whether their canvas may be finished."""
        self.started: list[GenerationRequest] = []
        self.is_ready = True
        self.queue: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self.breaks: set[int] = set()
        """Seeds whose sequences fail at their next step."""
        self.changed = asyncio.Event()
        """Set when a row may have become runnable."""

    @property
    def facts(self) -> EngineFacts | None:
        return FACTS if self.is_ready else None

    @property
    def ready(self) -> bool:
        return self.is_ready

    async def encode_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        if not self.is_ready:
            raise EngineUnavailable("the engine is starting")
        if any("reject" in m.text for m in messages):
            raise PromptRejected("the chat template refuses these messages")
        return tuple(byte for m in messages for byte in m.text.encode())

    def start(self, request: GenerationRequest) -> None:
        self.switch.point()
        self.started.append(request)
        if not self.is_ready:
            return
        self.rows[request.request_id] = request
        self.limits[request.request_id] = request.canvas_limit
        self.done[request.request_id] = len(request.committed)
        self.changed.set()

    def allow(self, request_id: str, canvas_limit: int) -> None:
        self.switch.point()
        if request_id in self.rows:
            self.limits[request_id] = max(self.limits[request_id], canvas_limit)
            if self.stops.get(request_id):
                del self.stops[request_id]
            self.changed.set()

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        self.switch.point()
        if request_id not in self.rows:
            return
        self.stops[request_id] = finish_canvas and self.stops.get(request_id, True)
        self.changed.set()

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self.queue.get()

    # --- what tests do

    def runnable(self) -> list[str]:
        """Rows that may go on."""
        return [row for row in self.rows if row in self.stops or self.done[row] < self.limits[row]]

    def step(self, row: str) -> EngineEvent:
        """Finish a row's next canvas; a row that wants drafts gives one before each."""
        request, canvas = self.rows[row], self.done[row]
        begun = (row, canvas) in self.drafted
        if row in self.stops and not (self.stops[row] and begun):
            return self._stopped(row, request, canvas, int(begun))
        if request.seed in self.breaks:
            return self.fail(row)
        if request.draft_every and (row, canvas) not in self.drafted:
            self.drafted.add((row, canvas))
            left = request.max_tokens - canvas * CANVAS
            return DraftEvent(row, canvas, 0, (1, 2, 3)[:left], "draft")
        event = canvas_event(request, canvas)
        self.done[row] += 1
        if event.finish is not CanvasFinish.MORE:
            del self.rows[row]
            self.stops.pop(row, None)
        return event

    def _stopped(self, row: str, request: GenerationRequest, canvas: int, steps: int) -> Event:
        del self.rows[row], self.stops[row]
        worked = steps or canvas > len(request.committed)
        leaves = (sha256(b"the first step").digest(),)[:steps]
        prompt_tokens = len(request.prompt_ids) if worked else 0
        return StoppedEvent(row, canvas, steps, prompt_tokens, leaves)

    def fail(self, row: str, kind: str = "non_finite") -> FailedEvent:
        """Let a row fail."""
        del self.rows[row]
        self.stops.pop(row, None)
        return FailedEvent(row, kind, "injected")  # type: ignore[arg-type]

    def lose(self) -> EngineLost:
        """The process dies with all its rows."""
        self.rows.clear()
        self.stops.clear()
        self.is_ready = False
        return EngineLost("the engine process was killed")

    def come_back(self) -> EngineReady:
        """The process is there again."""
        self.is_ready = True
        return EngineReady(FACTS)


def canvas_event(request: GenerationRequest, canvas: int) -> CanvasEvent:
    """What a canvas of a request is, always."""
    noise = sha256(request.seed.to_bytes(8, "big") + canvas.to_bytes(4, "big")).digest()
    ids = tuple(noise[:CANVAS])
    left = request.max_tokens - canvas * CANVAS
    ends = noise[30] % 6 == 0
    length = min(left, noise[31] % CANVAS if ends else CANVAS)
    finish = (
        CanvasFinish.END_OF_TEXT
        if ends and length < min(left, CANVAS)
        else CanvasFinish.TOKEN_LIMIT
        if length == left
        else CanvasFinish.MORE
    )
    steps = 1 + noise[29] % request.max_steps
    return CanvasEvent(
        request_id=request.request_id,
        canvas=canvas,
        token_ids=ids,
        charged_ids=ids[:length],
        text=noise.hex()[:length],
        steps=steps,
        step_leaves=tuple(sha256(noise + bytes([i])).digest() for i in range(steps)),
        finish=finish,
    )
