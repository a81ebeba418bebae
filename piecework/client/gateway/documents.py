"""Answers that must hold a schema: documents, calls that are demanded, calls of strict tools.

Each is a chain of jobs. A job fills what is free of a template. What is valid is pinned, and the
next job fills the rest again (`formats.structured`). A call of a strict tool begins with what the
model wrote freely. What is valid of its arguments is pinned in the same way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.client.errors import RequestRefused
from piecework.client.gateway.formats.asks import Called, Free, Structured
from piecework.client.gateway.formats.common import ApiError, bad, derived_id
from piecework.client.gateway.formats.content import instructed
from piecework.client.gateway.formats.pieces import CallMade, Ended, Piece, Started, TextAdded
from piecework.client.gateway.formats.schema import DocumentTooDear, JsonSchema, Path
from piecework.client.gateway.formats.structured import (
    CALL_INSTRUCTION,
    CHOICE_INSTRUCTION,
    INSTRUCTION,
    MAX_REPAIRS,
    Filling,
    shown_path,
)
from piecework.client.jobs.events import CanvasText, JobFinished, JobStarted
from piecework.client.jobs.selection import MAX_TOKENS_TOO_LARGE, PRICE_TOO_LOW
from piecework.client.journal.records import Part
from piecework_protocol.conversation import Conversation, ToolCall
from piecework_protocol.errors import MalformedInput

if TYPE_CHECKING:
    from piecework.client.gateway.answers import Answers

Emit = Callable[[Piece], None]

MAX_TOKEN_CHARACTERS: Final = 64
"""Of a charged token. A document with more was not written by a model."""

NARROWER_FROM: Final = 2
"""From this repair on the model has less to choose in a slot that it did not fill."""
FEW_NUMBERS_FROM: Final = 3
"""From this repair on a number is one of a few."""
DECIDED_AT: Final = (1, FEW_NUMBERS_FROM)
"""The repairs before which reads decide what is one of a few."""
MAX_JOBS: Final = 16
"""Of one answer: one that writes freely, documents or calls, and their repairs."""
_OUTGROWN: Final = (MAX_TOKENS_TOO_LARGE, "context_length_exceeded")


@dataclass(slots=True)
class Seen:
    """What a job wrote that is judged before it is shown."""

    pieces: list[Piece]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, TextAdded))

    @property
    def has_calls(self) -> bool:
        return any(isinstance(piece, CallMade) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked for next: a document, or text that is written freely if there is no schema."""

    talk: Conversation
    schema: JsonSchema | None


def first_step(plan: Structured | Called, talk: Conversation) -> Step:
    """Return what a structured answer asks for first."""
    if isinstance(plan, Structured):
        told = instructed(talk, INSTRUCTION.format(schema=plan.schema.text))
        return Step(told, None if plan.free is not None else plan.schema)
    if len(plan.tools) == 1:
        return call_step(plan.schemas[plan.tools[0].name], talk, plan.tools[0].name)
    names = {"enum": [tool.name for tool in plan.tools]}
    schema = JsonSchema({"type": "object", "properties": {"name": names}, "required": ["name"]})
    return Step(instructed(talk, CHOICE_INSTRUCTION.format(schema=schema.text)), schema)


def call_step(schema: JsonSchema, talk: Conversation, name: str) -> Step:
    """Return what is asked for a call of a function."""
    return Step(instructed(talk, CALL_INSTRUCTION.format(name=name, schema=schema.text)), schema)


class DocumentWriter:
    """An answer that must hold a schema."""

    def __init__(self, answers: Answers, index: int, part: Part, emit: Emit) -> None:
        self._answers, self._index, self._emit = answers, index, emit
        self._part = part
        self._jobs = 0
        self._last: bytes | None = None

    async def document(self, plan: Structured, talk: Conversation) -> None:
        """Emit a document, or tool calls if the model may call tools and does."""
        step = first_step(plan, talk)
        if plan.free is not None and await self._instead(plan, plan.free, talk):
            return
        filling = await self._filled(plan.schema, step.talk, "response_format")
        text = filling.document if filling.done else filling.beginning
        self._emit(TextAdded(self._index, text))
        self._emit(Ended(self._index, "stop" if filling.done else "length"))

    async def call(self, plan: Called, talk: Conversation) -> None:
        """Emit one call of one of the tools. With several, a name is chosen first."""
        step, name = first_step(plan, talk), plan.tools[0].name
        if len(plan.tools) > 1 and step.schema is not None:
            chosen = await self._filled(step.schema, step.talk, "tool_choice")
            name = loads(chosen.document)["name"]
            step = call_step(plan.schemas[name], talk, name)
        filling = await self._filled(plan.schemas[name], step.talk, "tool_choice")
        if not filling.done:  # a call with half of its arguments would do harm
            self._emit(Ended(self._index, "length"))
            return
        # Without a job there was nothing to write: the schema has one document.
        known = self._last if self._last is not None else secrets.token_bytes(12)
        try:
            call = ToolCall(derived_id("call", known), name, filling.document)
        except MalformedInput as error:
            raise failed(str(error)) from None
        self._emit(CallMade(self._index, call))
        self._emit(Ended(self._index, "tool_calls"))

    async def freely(self, plan: Free, talk: Conversation) -> None:
        """Emit what the model writes. Calls of strict tools hold their schemas."""
        await self._write_freely(plan, talk, talk, self._emit)

    async def _write_freely(
        self, plan: Free, told: Conversation, talk: Conversation, emit: Emit
    ) -> None:
        """Run one job, and emit what it writes. `told` is `talk` with what the job is told.

        From the first call of a strict tool on, pieces wait for the end of the job.
        """
        waiting: list[Piece] = []

        def take(piece: Piece) -> None:
            if waiting or (isinstance(piece, CallMade) and piece.call.name in plan.strict):
                waiting.append(piece)
            else:
                emit(piece)

        request = self._answers.free_request(self._index, told)
        await self._answers.write(self._index, request, self._next_part(), plan, take)
        for piece in waiting:
            if not isinstance(piece, CallMade) or piece.call.name not in plan.strict:
                emit(piece)
                continue
            held = await self._held(piece.call, plan.strict[piece.call.name], talk)
            if held is None:  # a call with half of its arguments would do harm
                emit(Ended(self._index, "length"))
                return
            emit(CallMade(self._index, held))

    async def _held(
        self, call: ToolCall, schema: JsonSchema, talk: Conversation
    ) -> ToolCall | None:
        """Return a call whose arguments hold the schema. None if the token limit cuts them."""
        try:
            written = loads(call.arguments)
            if not await asyncio.to_thread(schema.faults, written):
                return call
            self._answers.structured()
            most = self._answers.most_tokens
            empty = Filling.of(schema, most)
            filling = None if empty is None else await asyncio.to_thread(empty.holding, written)
        except DocumentTooDear as error:
            raise failed(f"the call of {call.name} was not judged: {error}") from None
        fitted = None if filling is None else filling.fitted()
        if fitted is None:
            raise failed(f"max_tokens is too small to fill the call of {call.name} again")
        if not fitted.done:
            step = call_step(schema, replace(talk, thinking=False), call.name)
            fitted = await self._grown(fitted, step.talk, "tools", first=1)
        return replace(call, arguments=fitted.document) if fitted.done else None

    async def _instead(self, plan: Structured, free: Free, talk: Conversation) -> bool:
        """Let the model write. True if it called tools, or wrote what holds the schema."""
        seen = Seen([])
        told = first_step(plan, talk).talk
        await self._write_freely(free, told, talk, seen.pieces.append)
        if not seen.has_calls:
            try:
                if await asyncio.to_thread(lambda: plan.schema.faults(loads(seen.text))):
                    return False
            except (ValueError, DocumentTooDear):
                return False
        for piece in seen.pieces:
            self._emit(piece)
        return True

    async def _filled(self, schema: JsonSchema, talk: Conversation, param: str) -> Filling:
        """Return a document that holds the schema, or one whose strings the limit cut."""
        filling = self._answers.begun(schema)
        self._answers.structured()
        return await self._grown(filling, talk, param, first=0)

    async def _grown(
        self, filling: Filling, talk: Conversation, param: str, *, first: int
    ) -> Filling:
        """Fill what is open, job by job. Jobs from number 1 on are repairs."""
        taken: int | None = None
        for attempt in range(first, 1 + MAX_REPAIRS):
            if attempt >= NARROWER_FROM and not filling.done:
                few_numbers = attempt >= FEW_NUMBERS_FROM
                narrowing = partial(filling.narrowed, few_numbers=few_numbers)
                filling = await self._judging(narrowing, param)
            if filling.done:
                break
            if attempt:
                self._answers.repaired()
            if attempt in DECIDED_AT and filling.questions:
                filling = await self._decided(filling, talk)
                if filling.done:
                    break
            try:
                text, tokens = await self._fill(filling, talk)
            except RequestRefused as refused:
                filling = self._within(filling, refused, taken)
            else:
                taken = filling.limit
                filling = await self._judging(partial(filling.take, text, tokens), param)
            fitted = filling.fitted()
            if fitted is None:
                break
            filling = fitted
        if not filling.done:
            filling = await self._judging(filling.ended, param)
        if not filling.done and not filling.is_cut:
            raise failed(f"the model wrote nothing that holds the schema: {filling.why}")
        self._answers.decided([shown_path(path) for path in filling.decided_places])
        return filling

    def _within(self, filling: Filling, refused: RequestRefused, taken: int | None) -> Filling:
        """Bound a document that outgrew the model by what the model took before.

        taken: tokens that the document's last job might have. None if it had no job.

        Raises:
            RequestRefused: Nothing was paid yet, or it was refused for something else.
            ApiError: max_price covers no more jobs.
        """
        if taken is not None and refused.code in _OUTGROWN:
            return replace(filling, most=taken)
        if self._jobs == 1 or refused.code != PRICE_TOO_LOW:
            raise refused
        why = f"{filling.why}. max_price does not cover another job".removeprefix(". ")
        raise failed(f"the model wrote nothing that holds the schema: {why}") from None

    async def _judging(self, judge: Callable[[], Filling], param: str) -> Filling:
        """Judge a document beside other work."""
        try:
            return await asyncio.to_thread(judge)
        except DocumentTooDear as error:
            bad(str(error), param, code="unsupported_schema")

    async def _fill(self, filling: Filling, talk: Conversation) -> tuple[str, int]:
        """Run one job over the template, and return its text and its tokens."""
        request = self._answers.filling_request(self._index, talk, filling, self._jobs)
        text: list[str] = []
        tokens = 0
        async with self._answers.job(self._index, request, self._next_part()) as job:
            self._emit(Started(self._index))
            self._last = job.started.job
            async for event in job.events:
                if isinstance(event, JobStarted):
                    self._answers.bill.started(event)
                elif isinstance(event, CanvasText):
                    self._answers.paid(event)
                    if len(event.text) > MAX_TOKEN_CHARACTERS * event.tokens:
                        raise failed("the worker wrote more than its tokens can hold")
                    text.append(event.text)
                    tokens += event.tokens
                elif isinstance(event, JobFinished):
                    self._answers.bill.finished(event)
        return "".join(text), tokens

    async def _decided(self, filling: Filling, talk: Conversation) -> Filling:
        """Decide values that must be one of a few. Without workers that decide, nothing changes."""
        choices: dict[Path, int] = {}
        for asked in filling.reads:
            questions = tuple(question for _, question in asked)
            try:
                sums = await self._answers.decide(self._index, talk, questions, self._next_part())
            except PieceworkError as error:  # the read is a help alone: the document is written on
                self._answers.undecided(error)
                continue
            for (path, _), shares in zip(asked, sums, strict=True):
                choices[path] = max(range(len(shares)), key=shares.__getitem__)
        return filling.decided(choices)

    def _next_part(self) -> Part:
        if self._jobs == MAX_JOBS:
            raise failed(f"the answer needs more than {MAX_JOBS} jobs")
        part = self._answers.part(self._index, self._jobs, self._part)
        self._jobs += 1
        return part


def failed(reason: str) -> ApiError:
    """A document was paid for and cannot be used."""
    kind, code = "upstream_error", "structured_output_failed"
    return ApiError(502, kind, reason, code=code, may_retry=False)
