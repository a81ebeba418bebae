"""OpenAI's chat completions: a body to an `Ask`, and answers to the wire. Pure.

Reasoning is named as vLLM names it: `reasoning` in messages and deltas, `reasoning_effort` or
`chat_template_kwargs.enable_thinking` in requests. Thinking is off unless asked for.

A call that `tool_choice` demands ("required", or a named function) is made through a template: the
model's own call marks are control tokens, which no template may hold, so the arguments are written
as a structured answer to the function's own schema. With several functions the model first chooses
a name in the same way. So the call always holds its schema. A call that the model makes by itself
("auto") is shown as the model made it, unless the function is `strict`: then arguments that break
the schema are filled again, with what is valid of them pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.client.gateway.formats import content
from piecework.client.gateway.formats.asks import Ask, Called, Free, Plan, Structured
from piecework.client.gateway.formats.common import (
    MAX_CHOICES,
    ApiError,
    Fields,
    FormatOptions,
    Head,
    Totals,
    bad,
    plain_text,
    take_stop,
    take_stream,
    take_wanted,
    wrong,
)
from piecework.client.gateway.formats.pieces import (
    DRAFT_EVENT,
    CallMade,
    DraftShown,
    Frame,
    Piece,
    Started,
    TextAdded,
    ThoughtAdded,
)
from piecework.client.gateway.formats.schema import (
    ANY_OBJECT,
    MAX_SCHEMA_BYTES,
    JsonSchema,
    parse_schema,
)
from piecework_protocol.conversation import Message, Tool, ToolCall
from piecework_protocol.limits import (
    MAX_CALLS_PER_MESSAGE,
    MAX_CALLS_PER_PROMPT,
    MAX_MESSAGES_PER_PROMPT,
)
from piecework_protocol.views import members

THINKING_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
NO_THINKING_EFFORTS: Final = ("none", "minimal")
_MESSAGE_MEMBERS: Final = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_calls",
        "function_call",
        "tool_call_id",
        "reasoning",
        "reasoning_content",
        "refusal",
    }
)
_SAID_OTHERWISE: Final = ("audio",)
"""Members with what was said and is not text. Without them the message would be another one."""
_ROLES: Final = {"developer": "system", "function": "tool"}


def parse_chat(body: Any, options: FormatOptions = FormatOptions()) -> Ask:  # noqa: B008 - frozen
    """Parse the JSON body of a chat completion.

    Raises:
        ApiError: A field cannot be used (400). It names the field.
    """
    fields = Fields(body, options)
    wanted = take_wanted(fields, options, "max_completion_tokens", "max_tokens")
    stream, include_usage = take_stream(fields)
    found, legacy, functions = _tools(fields)
    thinking = take_thinking(fields)
    plan, offered = _plan(fields, found, functions, legacy=legacy)
    messages = _messages(fields)
    if thinking and not isinstance(plan, Free):
        thinking = False  # a template begins with the answer
        fields.ignore("reasoning_effort")
    if not isinstance(plan, Free):
        wanted = replace(wanted, drafts=False)
    stop = take_stop(fields)
    if stop and not isinstance(plan, Free):
        fields.ignore("stop")  # a document that is cut is none
        stop = ()
    return Ask(
        wanted=wanted,
        conversations=(
            content.conversation(messages, offered, thinking=thinking, where="messages"),
        ),
        plan=plan,
        choices=fields.integer("n", 1, MAX_CHOICES) or 1,
        stop=stop,
        stream=stream,
        include_usage=include_usage,
        ignored=fields.rest(),
        echo={"legacy": legacy},
    )


def take_thinking(fields: Fields) -> bool:
    """Take what says whether the model thinks first. `enable_thinking` wins.

    Raises:
        ApiError: It cannot be used.
    """
    effort = fields.take("reasoning_effort")
    if effort is not None and effort not in (*THINKING_EFFORTS, *NO_THINKING_EFFORTS):
        efforts = ", ".join((*NO_THINKING_EFFORTS, *THINKING_EFFORTS))
        bad(f"reasoning_effort is one of {efforts}", fields.path("reasoning_effort"))
    template = fields.inner("chat_template_kwargs")
    thinking = template.flag("enable_thinking", effort in THINKING_EFFORTS)
    for name in template.rest():
        fields.ignore(name)
    return thinking


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], bool, list[Any]]:
    """The functions that are offered, whether the request names them as it did in 2023, and how it
    describes them.
    """
    raw = fields.take("tools") or []
    older = fields.take("functions") or []
    if not isinstance(raw, list) or not isinstance(older, list):
        bad("tools is a list", "tools")
    if older and not raw:
        return content.tools(older, "functions", older), True, []
    functions = []
    for i, item in enumerate(raw):
        if not isinstance(item, dict) or item.get("type") != "function":
            bad("a tool has the type function", f"tools[{i}].type", code="unsupported_parameter")
        functions.append(item.get("function"))
    if older:
        fields.ignore("functions")
    return content.tools(raw, "tools", functions), False, functions


def _plan(
    fields: Fields, tools: tuple[Tool, ...], functions: list[Any], *, legacy: bool
) -> tuple[Plan, tuple[Tool, ...]]:
    """How the answer is made, and which tools the model is shown."""
    parallel = fields.flag("parallel_tool_calls", True)
    choice = fields.take("function_call" if legacy else "tool_choice")
    other = "tool_choice" if legacy else "function_call"
    if fields.take(other) not in (None, "auto", "none"):
        fields.ignore(other)
    every = tools
    choice, tools = allowed(choice, tools)
    form = response_plan(fields.take("response_format"), "response_format")
    if choice == "none" or not tools:
        if choice not in (None, "none", "auto"):
            bad("tool_choice names a tool, and there are no tools", "tool_choice")
        return form or Free(), ()
    if choice in (None, "auto"):
        strict = strict_schemas(fields, every, functions, "tools[{}].function.strict")
        free = Free(parallel and not legacy, only(strict, tools))
        if isinstance(form, Structured):
            return replace(form, free=free), tools
        return free, tools
    where = "function_call" if legacy else "tool_choice"
    if choice == "required" and not legacy:
        return called(tools, where), tools
    named = choice if isinstance(choice, dict) else {}
    inner = named if legacy or "function" not in named else named["function"]
    return called(chosen(tools, inner, where), where), tools


def allowed(choice: Any, tools: tuple[Tool, ...]) -> tuple[Any, tuple[Tool, ...]]:
    """Keep the tools that a choice of type `allowed_tools` allows. Another choice allows all.

    Chat completions have the mode and the tools in an object inside, responses beside the type.

    Returns:
        What is left of the choice, and the tools.

    Raises:
        ApiError: It names no tool of the request, or has no mode.
    """
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return choice, tools
    inner = choice.get("allowed_tools", choice)
    listed = inner.get("tools") if isinstance(inner, dict) else None
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    functions = [one.get("function", one) for one in found]
    given = (one.get("name") for one in functions if isinstance(one, dict))
    names = {name for name in given if isinstance(name, str)}
    kept = tuple(tool for tool in tools if tool.name in names)
    if not kept or inner.get("mode") not in ("auto", "required"):
        bad("allowed_tools has a mode and names some of the tools", "tool_choice")
    return inner["mode"], kept


def only(schemas: Mapping[str, JsonSchema], tools: tuple[Tool, ...]) -> dict[str, JsonSchema]:
    """Return the schemas of these tools alone."""
    return {tool.name: schemas[tool.name] for tool in tools if tool.name in schemas}


def chosen(tools: tuple[Tool, ...], named: Any, where: str) -> tuple[Tool, ...]:
    """Return the one tool that a choice names.

    Raises:
        ApiError: No tool has that name.
    """
    name = named.get("name") if isinstance(named, dict) else None
    found = tuple(tool for tool in tools if tool.name == name)
    if not found:
        bad(f"{where} is none, auto, required, or names one of the tools", where)
    return found


def strict_schemas(
    fields: Fields, tools: tuple[Tool, ...], functions: list[Any], where: str
) -> dict[str, JsonSchema]:
    """Return the schemas of the tools that are `strict`. One that nobody can hold is ignored.

    functions: the tools as the request describes them, one for each. where: the place of `strict`
    in the request, with {} for the tool's number.

    Raises:
        ApiError: The gateway is strict itself, and a schema cannot be held.
    """
    found: dict[str, JsonSchema] = {}
    room = MAX_SCHEMA_BYTES
    for i, (one, raw) in enumerate(zip(tools, functions, strict=False)):
        if raw.get("strict") is not True:
            continue
        room -= len(one.parameters)
        try:
            schema = _of_objects(loads(one.parameters), one.name) if room >= 0 else None
        except ApiError:
            schema = None
        if schema is None:
            fields.ignore(where.format(i))
        else:
            found[one.name] = schema
    return found


def called(tools: tuple[Tool, ...], where: str) -> Called:
    """Return the plan of a call that must be made.

    Raises:
        ApiError: A tool's schema cannot be used, or all together are too large.
    """
    if sum(len(tool.parameters) for tool in tools) > MAX_SCHEMA_BYTES:
        bad(f"the schemas of tools are at most {MAX_SCHEMA_BYTES} bytes together", where)
    schemas = {}
    for tool in tools:
        try:
            schemas[tool.name] = _of_objects(loads(tool.parameters), where)
        except ApiError as error:
            bad(f"the function {tool.name}: {error.message}", where, code=error.code)
    return Called(tools, schemas)


def _of_objects(schema: dict[str, Any], where: str) -> JsonSchema:
    """Read a tool's schema. A call's arguments are an object, also where it leaves that open.

    Raises:
        ApiError: The schema is of something else, or cannot be used.
    """
    if "$ref" not in schema:
        return parse_schema(_object(schema, where) | {"type": "object"}, where)
    parsed = parse_schema(schema, where)
    target = parsed.resolved(schema)
    # Beside a reference, a type would hide what it points at. So what it points at has to say it.
    if not isinstance(target, dict) or "type" not in target:
        bad("a function's parameters refer to a schema without the type object", where)
    _object(target, where)
    return parsed


def _object(schema: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a schema that an object may hold by its type, or that has none.

    Raises:
        ApiError: Its type is another.
    """
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        bad("a function's parameters are of type object", where)
    return schema


def response_plan(raw: Any, where: str, schema_at: str = "json_schema.schema") -> Plan | None:
    """Read a response format. None asks for plain text.

    schema_at: where in it this API has the schema, as an error names it.

    Raises:
        ApiError: It cannot be used.
    """
    if raw is None:
        return None
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        # llama.cpp, Together and others take a schema here. OpenAI's own has none.
        schema = raw.get("schema")
        return Structured(ANY_OBJECT if schema is None else parse_schema(schema, f"{where}.schema"))
    if kind == "json_schema":
        inner = raw.get("json_schema", raw)
        schema = inner.get("schema") if isinstance(inner, dict) else None
        return Structured(parse_schema(schema, f"{where}.{schema_at}"))
    raise wrong(f"{where}.type is text, json_object or json_schema", where)


def _messages(fields: Fields) -> list[Message]:
    raw = fields.take("messages")
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_MESSAGES_PER_PROMPT:
        bad(f"messages is a list of 1 to {MAX_MESSAGES_PER_PROMPT}", "messages")
    listed = (item.get("tool_calls") for item in raw if isinstance(item, dict))
    if sum(len(calls) for calls in listed if isinstance(calls, list)) > MAX_CALLS_PER_PROMPT:
        bad(f"a prompt has at most {MAX_CALLS_PER_PROMPT} tool calls", "messages")
    names: dict[str, str] = {}
    found = [_message(item, f"messages[{i}]", names) for i, item in enumerate(raw)]
    # What other servers and frameworks add to messages: notes on caches, ids, sources.
    for name in dict.fromkeys(name for item in raw for name in _unknown(item)):
        fields.ignore(f"messages[].{name}")
    return found


def _unknown(item: Mapping[str, Any]) -> Iterator[str]:
    """The members of a message that say something and that nobody knows."""
    for name, value in item.items():
        if name not in _MESSAGE_MEMBERS and value not in (None, [], {}, ""):
            yield name


def _message(item: Any, where: str, names: dict[str, str]) -> Message:
    """Read one message. `names`: the tools' names by the ids of earlier calls."""
    if not isinstance(item, dict):
        bad("a message is an object", where)
    for name in _SAID_OTHERWISE:
        if item.get(name) not in (None, {}):
            bad(f"a message's {name} is not supported", f"{where}.{name}")
    role = item.get("role")
    role = _ROLES.get(role, role) if isinstance(role, str) else None
    body = item.get("content")
    if role in ("system", "user"):
        # A name tells participants of one role apart. No template here knows it.
        plain_text(item.get("name") or "", f"{where}.name")
        return content.message(where, role, content.content(body, f"{where}.content"))
    if role == "assistant":
        return _assistant(item, where, names)
    if role == "tool":
        return _tool_message(item, where, names)
    raise wrong("a message's role is system, developer, user, assistant or tool", f"{where}.role")


def _assistant(item: Mapping[str, Any], where: str, names: dict[str, str]) -> Message:
    raw = item.get("tool_calls") or []
    if not isinstance(raw, list) or len(raw) > MAX_CALLS_PER_MESSAGE:
        bad(f"tool_calls is a list of at most {MAX_CALLS_PER_MESSAGE}", f"{where}.tool_calls")
    calls = [_call(one, f"{where}.tool_calls[{i}]") for i, one in enumerate(raw)]
    older = item.get("function_call")
    if isinstance(older, dict):
        name = older.get("name")
        calls.append(
            content.tool_call(str(name), name, older.get("arguments"), f"{where}.function_call")
        )
    names.update((call.id, call.name) for call in calls)
    thought = item.get("reasoning") or item.get("reasoning_content") or ""
    # An answer without a word is null in some histories. One that declined has a text of its own.
    body, place = item.get("content"), f"{where}.content"
    if body in (None, "", []) and item.get("refusal"):
        body, place = plain_text(item["refusal"], f"{where}.refusal"), f"{where}.refusal"
    return content.message(
        where,
        "assistant",
        content.content(body, place, empty=True),
        thought=plain_text(thought, f"{where}.reasoning"),
        tool_calls=tuple(calls),
    )


def _call(raw: Any, where: str) -> ToolCall:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(function, dict):
        bad("a tool call has a function", where)
    return content.tool_call(raw.get("id"), function.get("name"), function.get("arguments"), where)


def _tool_message(item: Mapping[str, Any], where: str, names: dict[str, str]) -> Message:
    call = item.get("tool_call_id") or item.get("name")
    call = plain_text(call, f"{where}.tool_call_id")
    name = names.get(call) or item.get("name")
    if name is None:
        bad("a tool message answers a call of an earlier message", f"{where}.tool_call_id")
    return content.message(
        where,
        "tool",
        content.content(item.get("content"), f"{where}.content", empty=True),
        tool_call_id=call,
        name=plain_text(name, f"{where}.name"),
    )


# --- the answer


@dataclass(slots=True)
class _Choice:
    """One choice as it grows."""

    text: list[str] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    reason: str = "stop"


class ChatReply:
    """Renders a chat completion. Implements `Reply`."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._legacy = bool(ask.echo.get("legacy"))
        self._choices = [_Choice() for _ in range(ask.answers)]
        self._head = Head("", 0, "")
        self._last: Frame | None = None

    def opening(self, head: Head) -> Iterator[Frame]:
        """Render the first chunk of each choice: its role."""
        self._head = head
        for index in range(len(self._choices)):
            yield self._chunk({"role": "assistant", "content": ""}, index=index)

    def take(self, piece: Piece) -> Iterator[Frame]:
        """Take a piece in, and render it as a chunk."""
        if isinstance(piece, Started):
            return
        choice = self._choices[piece.index]
        if isinstance(piece, TextAdded):
            choice.text.append(piece.text)
            yield self._chunk({"content": piece.text}, index=piece.index)
        elif isinstance(piece, ThoughtAdded):
            choice.thought.append(piece.text)
            yield self._chunk({"reasoning": piece.text}, index=piece.index)
        elif isinstance(piece, CallMade):
            choice.calls.append(piece.call)
            yield self._chunk(
                self._call_delta(piece.call, len(choice.calls) - 1), index=piece.index
            )
        elif isinstance(piece, DraftShown):
            # It has the shape of a chunk without choices, which every SDK passes on.
            shown = {"draft": members(piece, "index", "canvas", "step", "text")}
            yield Frame({**chunk(self._head, None), "piecework": shown}, DRAFT_EVENT)
        else:
            choice.reason = self._reason(piece.reason)
            if self._last is not None:
                yield self._last
            self._last = self._chunk({}, choice.reason, index=piece.index)

    def closing(self, totals: Totals, ours: Mapping[str, Any]) -> Iterator[Frame]:
        """Render the last chunk with what it cost, and usage if it was asked for.

        Only who asked for usage gets a chunk without choices. Programs index the first one.
        """
        if self._last is not None:
            yield Frame({**self._last.data, "piecework": ours})
        if self._ask.include_usage:
            yield Frame({**chunk(self._head, None), "usage": totals.chat_usage()})

    def failing(self, error: ApiError) -> Iterator[Frame]:
        """Render a failure as OpenAI does: an event with an error alone."""
        yield Frame(error.body())

    def whole(self, head: Head, totals: Totals, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Render the whole answer."""
        choices = [
            {
                "index": index,
                "message": self._message(choice),
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        more = {"usage": totals.chat_usage(), "piecework": ours}
        return {**head.of("chat.completion"), "choices": choices, **more}

    def _message(self, choice: _Choice) -> dict[str, Any]:
        text, calls = "".join(choice.text), choice.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not text else text,
            "refusal": None,
        }
        if choice.thought:
            message["reasoning"] = "".join(choice.thought)
        if calls and self._legacy:
            message["function_call"] = _function(calls[0])
        elif calls:
            message["tool_calls"] = [call_object(call) for call in calls]
        return message

    def _call_delta(self, call: ToolCall, index: int) -> dict[str, Any]:
        if self._legacy:
            return {"function_call": _function(call)}
        return {"tool_calls": [{"index": index, **call_object(call)}]}

    def _reason(self, reason: str) -> str:
        return "function_call" if self._legacy and reason == "tool_calls" else reason

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, *, index: int) -> Frame:
        return Frame(chunk(self._head, delta, reason, index=index))


def call_object(call: ToolCall) -> dict[str, Any]:
    """A tool call as chat completions have it."""
    return {"id": call.id, "type": "function", "function": _function(call)}


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def chunk(
    head: Head, delta: dict[str, Any] | None, reason: str | None = None, *, index: int = 0
) -> dict[str, Any]:
    """One piece of a stream. Without a delta it has no choice: usage, or a draft."""
    one = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**head.of("chat.completion.chunk"), "choices": [] if delta is None else [one]}
