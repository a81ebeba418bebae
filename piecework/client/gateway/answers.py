"""From a parsed request to the pieces of its answers: the jobs that run for it, and in what order.

Each answer is a job. A structured one is a chain of jobs: each pins what is valid so far and fills
the rest again (`formats.structured`). All answers of a request run side by side. What they may cost
is reserved together before the first of them is signed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import structlog

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.client.errors import WorkerUnreachable
from piecework.client.gateway.bill import Bill
from piecework.client.gateway.documents import MAX_JOBS, DocumentWriter, Emit, first_step
from piecework.client.gateway.exhibits import Exhibits
from piecework.client.gateway.formats.asks import Ask, Called, Filled, Free, Structured
from piecework.client.gateway.formats.common import StopCutter, bad, derived_id
from piecework.client.gateway.formats.content import arguments_of
from piecework.client.gateway.formats.decisions import ReadAsk, means
from piecework.client.gateway.formats.pieces import (
    CallMade,
    DraftShown,
    Ended,
    Piece,
    Started,
    TextAdded,
    ThoughtAdded,
)
from piecework.client.gateway.formats.schema import JsonSchema
from piecework.client.gateway.formats.structured import Filling
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.pot import Pot
from piecework.client.gateway.turns import JobSource, RunningJob
from piecework.client.jobs.events import (
    CanvasText,
    DraftText,
    FinishReason,
    JobEvent,
    JobFinished,
    JobStarted,
    ReadAnswers,
)
from piecework.client.jobs.requests import ReadRequest, TextRequest
from piecework.client.journal.records import Part
from piecework_protocol.conversation import Conversation, ToolCall
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.read import ONE, Question
from piecework_protocol.kinds.text import OutputSegment, SegmentKind
from piecework_protocol.types import Amount

SEED_STEP: Final = 0x9E3779B97F4A7C15
"""Between the seeds of an answer's jobs. Choices differ by one."""


class Answers:
    """The answers of one request."""

    def __init__(
        self,
        ask: Ask,
        turns: JobSource,
        metrics: GatewayMetrics,
        bill: Bill,
        exhibits: Exhibits | None = None,
    ) -> None:
        """`exhibits` collects the evidence of the jobs, if the request asks for it."""
        self._ask, self._turns, self._metrics = ask, turns, metrics
        self.bill, self._exhibits = bill, exhibits
        price = ask.wanted.max_price
        self._pot = None if price is None else Pot(price, ask.answers)
        self._log = structlog.get_logger("gateway")
        self._begun: dict[int, tuple[JsonSchema, Filling]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AsyncIterator[Piece]]:
        """Run all answers, and give their pieces as they come. Leaving early cancels the jobs.

        Raises:
            PieceworkError: While iterating: one of the answers failed.
        """
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(self._begin_all)
            parts = await self._reserved(stack)
            pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

            def done(_: asyncio.Task[None]) -> None:
                pieces.put_nowait(None)

            tasks = [
                asyncio.create_task(
                    self._answer(index, parts[index], pieces.put_nowait), name="answer"
                )
                for index in range(self._ask.answers)
            ]
            for task in tasks:
                task.add_done_callback(done)
            try:
                yield _until_done(tasks, pieces)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _reserved(self, stack: AsyncExitStack) -> tuple[Part, ...]:
        """Reserve what the first jobs of several answers may cost together.

        A single job reserves what it may cost by itself, and so does a repair.
        """
        count = self._ask.answers
        first = [self._first(index) for index in range(count)] if count > 1 else []
        requests = [request for request in first if request is not None]
        if not requests:
            return tuple(self._turns.part(index) for index in range(count))
        return await stack.enter_async_context(self._turns.parts(requests))

    def _first(self, index: int) -> TextRequest | None:
        """The request of an answer's first job. None if there is nothing to ask."""
        plan, talk = self._ask.plan, self._conversation(index)
        if isinstance(plan, Free | Filled):
            return self._request(index, talk)
        step = first_step(plan, talk)
        if step.schema is None:
            return self._request(index, step.talk)
        filling = self.begun(step.schema)
        return None if filling.done else self.filling_request(index, step.talk, filling, 0)

    def _begin_all(self) -> None:
        """Make the empty documents, so that one that cannot be written is not paid for."""
        plan = self._ask.plan
        schemas = plan.schemas.values() if isinstance(plan, Called) else ()
        for schema in (plan.schema,) if isinstance(plan, Structured) else schemas:
            self._begun[id(schema)] = (schema, self.begun(schema))

    def begun(self, schema: JsonSchema) -> Filling:
        """Return an empty document.

        Raises:
            ApiError: The caller allows too few tokens for it, or no document can hold.
        """
        if id(schema) in self._begun:
            return self._begun[id(schema)][1]
        most = self._ask.wanted.generation.max_tokens
        filling, least = Filling.of(schema, most), Filling.of(schema, None)
        if filling is None:
            needed = 0 if least is None else least.tokens
            bad(f"max_tokens is too small for this schema; {needed} are enough", "max_tokens")
        if filling.done and schema.faults(loads(filling.document)):
            reason = "no document with all of the schema's parts holds the schema"
            bad(reason, None, code="unsupported_schema")
        return filling

    def part(self, index: int, job: int, first: Part) -> Part:
        """The place of an answer's job in the request. `first` is that of its first job."""
        if not job:
            return first
        return self._turns.part(self._ask.answers + index * MAX_JOBS + job)

    def _conversation(self, index: int) -> Conversation:
        return self._ask.conversations[index // self._ask.choices]

    def _request(self, index: int, talk: Conversation, job: int = 0, **changes: Any) -> TextRequest:
        """The request of one job of an answer."""
        wanted = self._ask.wanted
        generation = wanted.generation
        if generation.seed is not None:
            seed = (generation.seed + index + job * SEED_STEP) % (1 << 64)
            generation = replace(generation, seed=seed)
        plan = self._ask.plan
        if isinstance(plan, Filled):
            changes = {"template": plan.template, **changes}
            generation = replace(generation, max_tokens=None)  # the hole has the caller's limit
        if "max_tokens" in changes:
            generation = replace(generation, max_tokens=changes.pop("max_tokens"))
        price = None if self._pot is None else Amount(self._pot.share(index))
        try:
            return TextRequest(
                talk,
                wanted.wanted_model,
                generation,
                price,
                drafts=wanted.drafts,
                best_effort=wanted.best_effort,
                **changes,
            )
        except MalformedInput as error:
            bad(str(error), "messages", code=error.code)

    async def _answer(self, index: int, part: Part, emit: Emit) -> None:
        plan, talk = self._ask.plan, self._conversation(index)
        if isinstance(plan, Structured):
            await DocumentWriter(self, index, part, emit).document(plan, talk)
        elif isinstance(plan, Called):
            await DocumentWriter(self, index, part, emit).call(plan, talk)
        elif isinstance(plan, Free) and plan.strict:
            await DocumentWriter(self, index, part, emit).freely(plan, talk)
        else:
            await self.write(index, self._request(index, talk), part, plan, emit)
        if self._pot is not None:
            self._pot.leave(index)

    async def write(
        self, index: int, request: TextRequest, part: Part, plan: Free | Filled, emit: Emit
    ) -> None:
        """Run one job, and emit what it writes."""
        async with self.job(index, request, part) as job:
            writer = _Writer(self._ask, index, plan, emit, job.started.job)
            emit(Started(index))
            async for event in job.events:
                if isinstance(event, JobStarted):
                    self.bill.started(event)  # the next worker took it: the first went away
                elif isinstance(event, DraftText):
                    emit(DraftShown(index, event.canvas, event.step, event.text))
                elif isinstance(event, CanvasText):
                    self.paid(event)
                    writer.take(event.segments, last=event.last)
                    if writer.enough and not event.last:
                        job.run.cancel()
                elif isinstance(event, JobFinished):
                    self.bill.finished(event)
                    writer.end(event.finish)
        if not writer.ended:
            raise WorkerUnreachable("the job ended without a word")

    @asynccontextmanager
    async def job(
        self, index: int, request: TextRequest | ReadRequest, part: Part
    ) -> AsyncIterator[RunningJob]:
        """Run one job of an answer in its turn, out of what the request may cost."""
        pot = self._pot
        if pot is not None:
            pot.take(index, request.max_price or 0)
        try:
            async with self._turns.job(request, part) as job:
                self.bill.started(job.started)
                events = job.events if pot is None else _drawn(job.events, pot, index)
                if self._exhibits is not None:
                    events = self._exhibits.watched(events, request, part.number)
                yield replace(job, events=events)
        finally:
            if pot is not None:
                pot.put_back(index)

    def paid(self, canvas: CanvasText | ReadAnswers) -> None:
        """A canvas was paid."""
        _paid(canvas, self.bill, self._metrics)

    def filling_request(
        self, index: int, talk: Conversation, filling: Filling, job: int
    ) -> TextRequest:
        """The request of one job of a structured answer."""
        return self._request(index, talk, job, template=filling.template, max_tokens=filling.limit)

    @property
    def most_tokens(self) -> int | None:
        """The caller's limit of tokens."""
        return self._ask.wanted.generation.max_tokens

    def free_request(self, index: int, talk: Conversation) -> TextRequest:
        """The request of a job that writes freely."""
        return self._request(index, talk)

    async def decide(
        self, index: int, talk: Conversation, questions: tuple[Question, ...], part: Part
    ) -> list[list[int]]:
        """Run a read job of a structured answer."""
        like = self._request(index, talk, 1)
        request = ReadRequest(
            talk,
            questions,
            model=like.model,
            seed=like.generation.seed,
            max_price=like.max_price,
            best_effort=like.best_effort,
        )
        async with self.job(index, request, part) as job:
            return await _read(job, questions, self.bill, self._metrics)

    def structured(self) -> None:
        """A structured document begins."""
        self._metrics.structured()

    def decided(self, places: Sequence[str]) -> None:
        """A read job decided the values at these places of a structured answer."""
        self.bill.decided.extend(places)

    def undecided(self, error: PieceworkError) -> None:
        """A read job did not help a structured answer."""
        self._log.warning("the values of a document were not decided", code=error.code)

    def repaired(self) -> None:
        """A structured answer needs one more job."""
        self.bill.repairs += 1
        self._metrics.repaired()


def _paid(canvas: CanvasText | ReadAnswers, bill: Bill, metrics: GatewayMetrics) -> None:
    """Count a canvas. One that was paid for an earlier request is not paid again."""
    bill.canvas(canvas)
    if not canvas.again:
        tokens = canvas.tokens if isinstance(canvas, CanvasText) else 0
        metrics.canvas(tokens, canvas.steps, canvas.amount)


async def _drawn(events: AsyncIterator[JobEvent], pot: Pot, index: int) -> AsyncIterator[JobEvent]:
    """The events of an answer's job. Its canvases are paid out of the pot."""
    async for event in events:
        if isinstance(event, CanvasText | ReadAnswers):
            pot.pay(index, event.amount)
        yield event


async def _until_done(
    tasks: list[asyncio.Task[None]], pieces: asyncio.Queue[Piece | None]
) -> AsyncIterator[Piece]:
    """The pieces of all tasks until each is done. A task that failed raises."""
    left = len(tasks)
    while left:
        piece = await pieces.get()
        if piece is not None:
            yield piece
            continue
        left -= 1
        for task in tasks:
            if task.done():
                task.result()


class _Writer:
    """What one job writes, as pieces."""

    def __init__(self, ask: Ask, index: int, plan: Free | Filled, emit: Emit, job: bytes) -> None:
        self._index, self._plan, self._emit, self._job = index, plan, emit, job
        self._cutter = StopCutter(ask.stop)
        self._calls = 0
        self._before = plan.before if isinstance(plan, Filled) else ""
        self._held = ""
        self.enough = self.ended = False

    def take(self, segments: tuple[OutputSegment, ...], *, last: bool) -> None:
        """Emit what a canvas adds."""
        for segment in segments:
            if self.enough:
                return
            if segment.kind is SegmentKind.THOUGHT:
                self._emit(ThoughtAdded(self._index, segment.text))
            elif segment.kind is SegmentKind.TOOL_CALL:
                self._call(segment.text)
            else:
                self._text(segment.text)
        if last and not self.enough:
            self._show(self._cutter.feed("", last=True))

    def end(self, finish: FinishReason) -> None:
        """Emit why the text ends."""
        if isinstance(self._plan, Filled):
            self._show(self._cutter.feed(self._middle(self._plan), last=True))
        elif not self.enough:
            self._show(self._cutter.feed("", last=True))
        cut = finish is FinishReason.TOKEN_LIMIT and not self.enough
        reason = "tool_calls" if self._calls else "length" if cut else "stop"
        self._emit(Ended(self._index, reason))
        self.ended = True

    def _text(self, text: str) -> None:
        if isinstance(self._plan, Filled):
            self._held += text  # the hole is known once the text is whole
            return
        self._show(self._cutter.feed(text, last=False))
        self.enough = self.enough or self._cutter.stopped

    def _middle(self, plan: Filled) -> str:
        text = self._held.removeprefix(plan.before)
        return text.removesuffix(plan.after)

    def _show(self, text: str) -> None:
        if text:
            self._emit(TextAdded(self._index, text))

    def _call(self, text: str) -> None:
        self._show(self._cutter.feed("", last=True))
        try:
            name, arguments = arguments_of(text)
            call = ToolCall(derived_id("call", self._job, self._calls), name, arguments)
        except (ValueError, MalformedInput):
            self._show(text)  # a worker of another grammar: the caller sees what was written
            return
        self._calls += 1
        self._emit(CallMade(self._index, call))
        if isinstance(self._plan, Free) and not self._plan.parallel_calls:
            self.enough = True


async def read(
    ask: ReadAsk,
    turns: JobSource,
    metrics: GatewayMetrics,
    bill: Bill,
    exhibits: Exhibits | None = None,
) -> list[list[float]]:
    """Run a read, and return the mean probabilities of each question's labels.

    exhibits: collects the evidence of the job, if the request asks for it.

    Raises:
        PieceworkError: As a job.
    """
    wanted = ask.wanted
    request = ReadRequest(
        ask.conversation,
        ask.questions,
        wanted.draws,
        wanted.wanted_model,
        wanted.generation.seed,
        wanted.max_price,
        wanted.best_effort,
    )
    part = turns.part()
    async with turns.job(request, part) as job:
        bill.started(job.started)
        shown = job
        if exhibits is not None:
            shown = replace(job, events=exhibits.watched(job.events, request, part.number))
        sums = await _read(shown, ask.questions, bill, metrics)
    return means(sums, ONE, wanted.draws)


async def _read(
    job: RunningJob, questions: tuple[Question, ...], bill: Bill, metrics: GatewayMetrics
) -> list[list[int]]:
    """Follow a read to its end, and return the sums of its probabilities over the draws."""
    sums = [[0] * len(question.labels) for question in questions]
    async for event in job.events:
        if isinstance(event, JobStarted):
            bill.started(event)
        elif isinstance(event, ReadAnswers):
            _paid(event, bill, metrics)
            for question, shares in zip(event.questions, event.answers, strict=True):
                sums[question] = [a + b for a, b in zip(sums[question], shares, strict=True)]
        elif isinstance(event, JobFinished):
            bill.finished(event)
    return sums
