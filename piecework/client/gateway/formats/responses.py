"""The Responses API, stateless: input items to an `Ask`, and answers to items and events. Pure.

Nothing is stored, whatever `store` says, so a request that needs stored state is refused. Thoughts
are reasoning items with their text in the open.

Objects and events have every member that Open Responses demands. Two things differ there from
OpenAI. The error event has its members inside of `error`, and here it has them in both places. The
text of a thought comes in `response.reasoning_text` events as OpenAI's SDK knows them, and not in
`response.reasoning` ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from piecework.client.gateway.formats import chat, content
from piecework.client.gateway.formats.asks import Ask, Free, Plan, Structured
from piecework.client.gateway.formats.common import (
    ApiError,
    Fields,
    FormatOptions,
    Head,
    Totals,
    bad,
    derived_id,
    plain_text,
    take_wanted,
)
from piecework.client.gateway.formats.items import input_messages
from piecework.client.gateway.formats.pieces import (
    DRAFT_EVENT,
    CallMade,
    DraftShown,
    Ended,
    Frame,
    Piece,
    TextAdded,
    ThoughtAdded,
)
from piecework_protocol.conversation import Message, Tool, ToolCall
from piecework_protocol.views import members

_STATEFUL: Final = ("previous_response_id", "conversation", "prompt")
_NO_TOOL: Final[Mapping[str, Any]] = {"description": None, "parameters": None, "strict": None}
_HOSTED: Final = "this gateway runs no tools. Only tools of type function are supported"


def parse_response(body: Any, options: FormatOptions = FormatOptions()) -> Ask:  # noqa: B008
    """Parse the JSON body of a response.

    Raises:
        ApiError: A field cannot be used (400). It names the field.
    """
    fields = Fields(body, options)
    for name in _STATEFUL:
        if fields.take(name) is not None:
            bad(f"{name} needs stored state, and nothing is stored here", name)
    if fields.flag("background", False):
        bad("a response is not made in the background here", "background")
    wanted = take_wanted(fields, options, "max_output_tokens")
    stream = fields.flag("stream", False)
    fields.take("stream_options")
    tools, functions = _tools(fields)
    plan, shown = _plan(fields, tools, functions)
    thinking = _thinking(fields)
    if thinking and not isinstance(plan, Free):
        thinking = False  # a template begins with the answer
        fields.ignore("reasoning")
    messages = input_messages(fields.take("input"), "input")
    instructions = fields.text("instructions")
    if instructions:
        messages = [Message("system", instructions), *messages]
    return Ask(
        wanted=wanted,
        conversations=(content.conversation(messages, shown, thinking=thinking, where="input"),),
        plan=plan,
        stream=stream,
        include_usage=True,
        ignored=fields.rest(),
        echo=_echo(body),
    )


def _echo(body: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a request that its response repeats.

    Raises:
        ApiError: One has lone surrogates.
    """
    temperature, most = body.get("temperature"), body.get("max_output_tokens")
    echo = {
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "temperature": 1.0 if temperature is None else temperature,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [_NO_TOOL | tool for tool in body.get("tools") or []],
        "max_output_tokens": None if most == -1 else most,
        "text": _text_field(body.get("text") or {}),
        "reasoning": {"effort": None, "summary": None} | (body.get("reasoning") or {}),
        "safety_identifier": body.get("safety_identifier"),
        "prompt_cache_key": body.get("prompt_cache_key"),
    }
    for name, value in echo.items():
        plain_text(content.compact(value), name)
    return echo


def _text_field(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the text is formatted, with the members that a schema's format may leave out."""
    form = given.get("format") or {"type": "text"}
    if form.get("type") == "json_schema":
        form = {"description": None, "strict": False} | form
    return {**given, "format": form}


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], list[Any]]:
    """The functions that are offered, and how the request describes them."""
    raw = fields.take("tools") or []
    if not isinstance(raw, list):
        bad("tools is a list", "tools")
    for i, item in enumerate(raw):
        if not isinstance(item, dict) or item.get("type") != "function":
            bad(_HOSTED, f"tools[{i}].type", code="unsupported_parameter")
    return content.tools(raw, "tools", raw), raw


def _plan(
    fields: Fields, tools: tuple[Tool, ...], functions: list[Any]
) -> tuple[Plan, tuple[Tool, ...]]:
    parallel, choice = fields.flag("parallel_tool_calls", True), fields.take("tool_choice")
    every = tools
    text = fields.inner("text")
    form = chat.response_plan(text.take("format"), "text.format", "schema")
    if text.rest():
        fields.ignore("text.verbosity")
    choice, tools = chat.allowed(choice, tools)
    if choice == "none" or not tools:
        if choice not in (None, "none", "auto"):
            bad("tool_choice names a tool, and there are no tools", "tool_choice")
        return form or Free(), ()
    if choice in (None, "auto"):
        strict = chat.strict_schemas(fields, every, functions, "tools[{}].strict")
        free = Free(parallel, chat.only(strict, tools))
        return (Structured(form.schema, free) if isinstance(form, Structured) else free), tools
    if choice == "required":
        return chat.called(tools, "tool_choice"), tools
    return chat.called(chat.chosen(tools, choice, "tool_choice"), "tool_choice"), tools


def _thinking(fields: Fields) -> bool:
    reasoning = fields.inner("reasoning")
    effort = reasoning.take("effort")
    reasoning.take("summary"), reasoning.take("generate_summary")
    if effort is not None and effort not in (*chat.THINKING_EFFORTS, *chat.NO_THINKING_EFFORTS):
        bad("reasoning.effort is not one of OpenAI's", "reasoning.effort")
    return effort in chat.THINKING_EFFORTS


# --- the answer


@dataclass(slots=True)
class _Item:
    """An output item as it grows. `kind` is message, reasoning or function_call."""

    kind: str
    id: str
    text: list[str] = field(default_factory=list)
    call: ToolCall | None = None
    status: str = "completed"

    def object(self, status: str) -> dict[str, Any]:
        """The item. Until it is completed a message has no parts."""
        text = "".join(self.text)
        head = {"id": self.id, "type": self.kind, "status": status}
        if self.call is not None:
            arguments = "" if status == "in_progress" else self.call.arguments
            named = {"call_id": self.call.id, "name": self.call.name}
            return {**head, **named, "arguments": arguments}
        parts = [] if status == "in_progress" else [self.part(text)]
        if self.kind == "reasoning":
            return {**head, "summary": [], "content": parts}
        return {**head, "role": "assistant", "content": parts}

    def part(self, text: str) -> dict[str, Any]:
        """The one part of a message or a reasoning item."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseReply:
    """Renders a response. Implements `Reply`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._head = Head("", 0, "")
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._reason = "stop"
        self._number = 0

    def opening(self, head: Head) -> Iterator[Frame]:
        """Render response.created and response.in_progress."""
        self._head = head
        yield self._event("response.created", response=self._object("in_progress"))
        yield self._event("response.in_progress", response=self._object("in_progress"))

    def take(self, piece: Piece) -> Iterator[Frame]:
        """Take a piece in, and render its events."""
        if isinstance(piece, TextAdded):
            yield from self._text("message", "msg", piece.text)
        elif isinstance(piece, ThoughtAdded):
            yield from self._text("reasoning", "rs", piece.text)
        elif isinstance(piece, CallMade):
            yield from self._call(piece.call)
        elif isinstance(piece, DraftShown):
            yield self._event(DRAFT_EVENT, draft=members(piece, "canvas", "step", "text"))
        elif isinstance(piece, Ended):
            self._reason = piece.reason
            yield from self._close("incomplete" if piece.reason == "length" else "completed")

    def closing(self, totals: Totals, ours: Mapping[str, Any]) -> Iterator[Frame]:
        """Render response.completed, or response.incomplete."""
        yield from self._close()
        status = self._status
        body = {**self._object(status), "usage": totals.response_usage(), "piecework": ours}
        yield self._event(f"response.{status}", response=body)

    def failing(self, error: ApiError) -> Iterator[Frame]:
        """Render response.failed."""
        body = {**self._object("failed"), "error": members(error, "code", "message")}
        yield self._event("response.failed", response=body)
        told = members(error, "code", "message", "param")
        # Open Responses has the members inside of `error`, OpenAI beside the event's own type.
        yield self._event("error", **told, error={"type": error.kind, **told})

    def whole(self, head: Head, totals: Totals, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Render the whole response."""
        for _ in self._close():
            pass
        usage = totals.response_usage()
        return {**self._object(self._status), "usage": usage, "piecework": ours}

    @property
    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _text(self, kind: str, prefix: str, text: str) -> Iterator[Frame]:
        if self._open is None or self._open.kind != kind:
            yield from self._close()
            yield from self._begin(_Item(kind, self._new_id(prefix)))
        item = self._open
        if item is not None:
            item.text.append(text)
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            place = self._place(item)
            yield self._event(f"response.{_word(item)}.delta", **place, delta=text, **more)

    def _call(self, call: ToolCall) -> Iterator[Frame]:
        yield from self._close()
        yield from self._begin(_Item("function_call", self._new_id("fc"), call=call))
        yield from self._close()

    def _begin(self, item: _Item) -> Iterator[Frame]:
        self._open = item
        self._items.append(item)
        index = len(self._items) - 1
        shown = item.object("in_progress")
        yield self._event("response.output_item.added", output_index=index, item=shown)
        if item.call is None:
            part = item.part("")
            yield self._event("response.content_part.added", **self._place(item), part=part)

    def _close(self, status: str = "completed") -> Iterator[Frame]:
        """End the item that is open."""
        item, self._open = self._open, None
        if item is None:
            return
        item.status = status
        index = len(self._items) - 1
        if item.call is not None:
            place = {"item_id": item.id, "output_index": index}
            word, arguments = "response.function_call_arguments", item.call.arguments
            yield self._event(f"{word}.delta", **place, delta=arguments)
            yield self._event(f"{word}.done", **place, name=item.call.name, arguments=arguments)
        else:
            text, place = "".join(item.text), self._place(item)
            more: dict[str, Any] = {"logprobs": []} if item.kind == "message" else {}
            yield self._event(f"response.{_word(item)}.done", **place, text=text, **more)
            yield self._event("response.content_part.done", **place, part=item.part(text))
        shown = item.object(item.status)
        yield self._event("response.output_item.done", output_index=index, item=shown)

    def _new_id(self, prefix: str) -> str:
        return derived_id(prefix, self._head.id, len(self._items))

    def _place(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._items) - 1, "content_index": 0}

    def _object(self, status: str) -> dict[str, Any]:
        """The response as it stands."""
        done = status not in ("in_progress", "failed")
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        items = [item.object(item.status) for item in self._items] if done else []
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "model": self._head.model,
            "output": items,
            "previous_response_id": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_logprobs": 0,
            "max_tool_calls": None,
            "truncation": "disabled",
            "usage": None,
            **self._ask.echo,
        }

    def _event(self, kind: str, **members: Any) -> Frame:
        self._number += 1
        return Frame({"type": kind, "sequence_number": self._number - 1, **members}, kind)


def _word(item: _Item) -> str:
    return "reasoning_text" if item.kind == "reasoning" else "output_text"
