"""A deterministic engine: canvases are a function of (seed, canvas), whatever ran before or beside.

It keeps the rules of the real one: canvas limits pause a row, committed canvases are skipped, a
canvas that is not the last is full, cancelled rows say nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import sha256

from piecework_model.jobs import generation_request
from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    EncodedContent,
    Event,
    FailedEvent,
    GenerationRequest,
    PromptImage,
    ReadSlot,
    StoppedEvent,
)
from piecework_node.engine.link import (
    AuditedCanvas,
    EngineEvent,
    EngineFacts,
    EngineLost,
    EnginePaused,
    EngineReady,
    EngineResumed,
    ReplayedTrace,
    ReplayWork,
)
from piecework_node.errors import EngineUnavailable, PromptRejected, ReplayDeclined
from piecework_protocol import merkle
from piecework_protocol.conversation import Conversation, Text
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.read import ONE, ReadContent, per_canvas
from piecework_protocol.kinds.text import Fixed, TextContent, final_segments
from piecework_protocol.objects import Kind, Service
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import EmbeddingType, StepRecord, soft_field, write_bits, write_ids
from piecework_protocol.types import Digest
from tests.support.node.fake_audits import audit_report
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
    kinds=(Kind.TEXT, Kind.READ, Kind.AUDIT, Kind.OPEN),
    end_ids=frozenset({1, 106}),
    answer_tokens=120,
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
        self.replayed: list[GenerationRequest] = []
        self.halts_at: int | None = None
        """After so many steps a replay or an audit waits for `goes_on`. -1: before the prompt."""
        self.goes_on = asyncio.Event()
        self.dropped = 0
        """Replays and audits that were given up half way."""
        self.known = FACTS
        self.numerics = b""
        """What decides last bits. Another value gives other leaves."""
        self.is_ready = True
        self.queue: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self.breaks: set[int] = set()
        """Seeds whose sequences fail at their next step."""
        self.changed = asyncio.Event()
        """Set when a row may have become runnable."""
        self.asked_for: list[int | None] = []
        """The most tokens of each content that it was to encode."""
        self.paused: list[bool] = []
        """What it was last told, if that was to pause: whether to free its memory."""

    @property
    def facts(self) -> EngineFacts | None:
        return self.known if self.is_ready else None

    @property
    def ready(self) -> bool:
        return self.is_ready

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        if not self.is_ready:
            raise EngineUnavailable("the engine is starting")
        self.asked_for.append(most)
        assert isinstance(content, TextContent | ReadContent), "served beside the engine"
        if any("reject" in m.text for m in content.conversation.messages):
            raise PromptRejected("the chat template refuses these messages")
        made = encoded(content)
        return made if most is None else replace(made, prompt_ids=made.prompt_ids[: most + 1])

    async def replay(
        self,
        request: GenerationRequest,
        *,
        steps: int,
        wanted: Sequence[int],
        soft: bool = False,
        work: ReplayWork | None = None,
    ) -> ReplayedTrace:
        if not self.is_ready:
            raise EngineUnavailable("the engine is starting")
        self.replayed.append(request)
        records = step_records(request, len(request.committed), self.numerics)[:steps]
        if wanted[-1] >= len(records):
            raise ReplayDeclined(f"it ends after {len(records)} steps")
        await self._compute(work, request.prompt_ids, request.committed, records)
        rows = soft_rows(request, len(request.committed), self.numerics) if soft else None
        shown = tuple(StepOpening(records[step].fields(), rows) for step in wanted)
        return ReplayedTrace(tuple(record.leaf() for record in records), shown)

    async def audit(self, content: AuditContent, work: ReplayWork | None = None) -> AuditedCanvas:
        if not self.is_ready:
            raise EngineUnavailable("the engine is starting")
        if content.parameters.seed in self.breaks:
            raise ReplayDeclined("injected")
        made = audited_canvas(content, self.numerics)
        prompt = encoded(content.content).prompt_ids
        await self._compute(work, prompt, content.committed, made.records)
        return made

    async def _compute(
        self,
        work: ReplayWork | None,
        prompt: Sequence[int],
        committed: Sequence[Sequence[int]],
        records: Sequence[StepRecord],
    ) -> None:
        """Take the passes of a replay, and say of each what it has come to."""
        if work is None:
            return
        try:
            if self.halts_at is not None and self.halts_at < 0:
                await self.goes_on.wait()
            work.prompt_tokens = len(prompt) + sum(map(len, committed))
            work.changed()
            for record in (*records, None):
                if len(work.records) == self.halts_at:
                    await self.goes_on.wait()
                if record is not None:
                    work.records.append(record)
                    work.changed()
        except asyncio.CancelledError:
            self.dropped += 1
            raise

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

    def pause(self, *, free_memory: bool) -> None:
        self.switch.point()
        self.paused = [free_memory]
        self.queue.put_nowait(EnginePaused(4096 if free_memory else 0))

    def resume(self) -> None:
        self.switch.point()
        self.paused = []
        self.changed.set()
        self.queue.put_nowait(EngineResumed())

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self.queue.get()

    # --- what tests do

    def runnable(self) -> list[str]:
        """Rows that may go on. In a pause those that are to stop at once still do."""
        if self.paused:
            return [row for row in self.rows if self.stops.get(row) is False]
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
            return draft_event(request, canvas)
        event = canvas_event(request, canvas)
        if request.keep_records:
            event = replace(event, records=step_records(request, canvas))
        self.done[row] += 1
        if event.finish is not CanvasFinish.MORE:
            del self.rows[row]
            self.stops.pop(row, None)
        return event

    def _stopped(self, row: str, request: GenerationRequest, canvas: int, steps: int) -> Event:
        del self.rows[row], self.stops[row]
        worked = steps or canvas > len(request.committed)
        records = step_records(request, canvas)[:steps]
        leaves = tuple(record.leaf() for record in records)
        prompt_tokens = len(request.prompt_ids) if worked else 0
        kept = records if request.keep_records else ()
        return StoppedEvent(row, canvas, steps, prompt_tokens, leaves, kept)

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
        return EngineReady(self.known)


def encoded(content: TextContent | ReadContent) -> EncodedContent:
    """What a content is for this engine: a byte of text is a token.

    A canvas has room for what `per_canvas` says. All slots are at the same place.
    """
    ids, images = _prompt(content.conversation)
    if isinstance(content, ReadContent):
        questions = content.questions
        step = per_canvas(CANVAS)
        reads = tuple(
            tuple(ReadSlot(0, tuple(range(len(q.labels)))) for q in questions[first : first + step])
            for first in range(0, len(questions), step)
        )
        return EncodedContent(ids, (HOLE,) * (CANVAS * len(reads)), reads, images=images)
    form = [
        entry
        for part in (content.template if isinstance(content, TextContent) else ())
        for entry in (part.text.encode() if isinstance(part, Fixed) else (HOLE,) * part.tokens)
    ]
    padding = (0,) * (-len(form) % CANVAS)
    return EncodedContent(ids, (*form, *padding), positions=len(form), images=images)


def _prompt(conversation: Conversation) -> tuple[tuple[int, ...], tuple[PromptImage, ...]]:
    """A byte of text is a token. An image is four, and its patches are its file."""
    ids: list[int] = []
    images: list[PromptImage] = []
    for part in (part for message in conversation.messages for part in message.parts):
        if isinstance(part, Text):
            ids += part.text.encode()
        else:
            images.append(PromptImage(len(ids), 4, 6, 6, part.data))
            ids += [0] * 4
    return tuple(ids), tuple(images)


def audited_canvas(content: AuditContent, numerics: bytes = b"") -> AuditedCanvas:
    """Compute a canvas again, and compare it with what is claimed of it."""
    request = generation_request(
        "audit",
        encoded(content.content),
        content.parameters,
        canvas_limit=content.canvas + 1,
        committed=content.committed or ((),) * content.canvas,
        drafts=False,
    )
    records = step_records(request, content.canvas, numerics)[: content.steps]
    event = canvas_event(request, content.canvas)
    return AuditedCanvas(audit_report(FACTS, content, request, records, event), records)


def step_records(
    request: GenerationRequest, canvas: int, numerics: bytes = b""
) -> tuple[StepRecord, ...]:
    """What the steps of a canvas commit to, always."""
    noise, steps = _steps(request, canvas)
    return tuple(_record(noise, canvas, step, numerics) for step in range(steps))


def soft_rows(request: GenerationRequest, canvas: int, numerics: bytes = b"") -> bytes:
    """The soft embedding of any step of a canvas, as bytes."""
    seed = request.seed.to_bytes(8, "big") + canvas.to_bytes(4, "big")
    return sha256(seed).digest() + numerics


def step_leaves(request: GenerationRequest, canvas: int) -> tuple[bytes, ...]:
    """The leaves of `step_records`. Steps differ in the header alone, so only that is hashed anew.

    Its last numbers are the step and the canvas size.
    """
    noise, steps = _steps(request, canvas)
    header, *fields = _record(noise, canvas, 0, b"").fields()
    shared = [sha256(field).digest() for field in fields]
    headers = (header[:-8] + step.to_bytes(4, "little") + header[-4:] for step in range(steps))
    return tuple(merkle.root([sha256(data).digest(), *shared]) for data in headers)


def _steps(request: GenerationRequest, canvas: int) -> tuple[bytes, int]:
    """What a canvas is made of, and how many steps it takes."""
    noise = sha256(request.seed.to_bytes(8, "big") + canvas.to_bytes(4, "big")).digest()
    return noise, 1 if request.template else 1 + noise[29] % request.max_steps


def _record(noise: bytes, canvas: int, step: int, numerics: bytes) -> StepRecord:
    ids, bits = write_ids(tuple(noise[:CANVAS])), write_bits((True,) * CANVAS)
    soft = soft_field(EmbeddingType.FLOAT32, noise + numerics)  # as of `soft_rows`
    return StepRecord(canvas, step, ids, ids, ids, bits, soft, bytes(6 * CANVAS))


def draft_event(request: GenerationRequest, canvas: int) -> DraftEvent:
    """What is shown of a canvas before it is finished, always."""
    left = request.max_tokens - canvas * CANVAS
    shown = final_segments("draft")
    return DraftEvent(request.request_id, canvas, 0, (1, 2, 3)[:left], shown)


def canvas_event(request: GenerationRequest, canvas: int) -> CanvasEvent:
    """What a canvas of a request is, always."""
    noise = sha256(request.seed.to_bytes(8, "big") + canvas.to_bytes(4, "big")).digest()
    if request.reads:
        return _read_event(request, canvas, noise)
    if request.template:
        return _filled_event(request, canvas, noise)
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
    leaves = step_leaves(request, canvas)
    return CanvasEvent(
        request_id=request.request_id,
        canvas=canvas,
        token_ids=ids,
        charged_ids=ids[:length],
        segments=final_segments(noise.hex()[:length]),
        steps=len(leaves),
        step_leaves=leaves,
        finish=finish,
    )


def _read_event(request: GenerationRequest, canvas: int, noise: bytes) -> CanvasEvent:
    """One step, and for each question probabilities that add up to one."""
    canvases = request.max_tokens // CANVAS
    slots = request.reads[canvas // (canvases // len(request.reads))]
    share = noise[0]
    answers = tuple(
        (ONE - share * (len(slot.label_ids) - 1), *[share] * (len(slot.label_ids) - 1))
        for slot in slots
    )
    return CanvasEvent(
        request_id=request.request_id,
        canvas=canvas,
        token_ids=tuple(noise[:CANVAS]),
        charged_ids=(),
        segments=(),
        steps=1,
        step_leaves=step_leaves(request, canvas),
        finish=CanvasFinish.END_OF_TEXT if canvas + 1 == canvases else CanvasFinish.MORE,
        answers=answers,
    )


def _filled_event(request: GenerationRequest, canvas: int, noise: bytes) -> CanvasEvent:
    """The template's part of a canvas. A zero ends it, and holes are filled with one letter."""
    form = request.template[canvas * CANVAS : (canvas + 1) * CANVAS]
    ids = tuple(ord("x") if entry == HOLE else entry for entry in form)
    charged = ids[: ids.index(0)] if 0 in ids else ids
    last = (canvas + 1) * CANVAS == len(request.template)
    return CanvasEvent(
        request_id=request.request_id,
        canvas=canvas,
        token_ids=ids,
        charged_ids=charged,
        segments=final_segments(bytes(charged).decode(errors="replace")),
        steps=1,
        step_leaves=step_leaves(request, canvas),
        finish=CanvasFinish.END_OF_TEXT if last else CanvasFinish.MORE,
    )
