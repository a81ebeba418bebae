"""Input items, as responses and decisions have them, to messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from piecework.client.gateway.formats import content
from piecework.client.gateway.formats.common import bad, plain_text, wrong
from piecework_protocol.conversation import Message, ToolCall
from piecework_protocol.limits import MAX_MESSAGES_PER_PROMPT

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}


def input_messages(raw: Any, where: str) -> list[Message]:
    """Read an input: a text of the user, or a list of items.

    Raises:
        ApiError: An item cannot be used. It names the item.
    """
    if isinstance(raw, str):
        return [Message("user", plain_text(raw, where))]
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_MESSAGES_PER_PROMPT:
        bad(f"{where} is a text or a list of 1 to {MAX_MESSAGES_PER_PROMPT} items", where)
    reader = _Items()
    for i, item in enumerate(raw):
        reader.take(item, f"{where}[{i}]")
    return reader.end(where)


class _Items:
    """Puts the assistant's thoughts, texts and calls, each an item of its own, into messages."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}
        self._thought = ""
        self._calls: list[ToolCall] = []
        self._said: Message | None = None

    def take(self, item: Any, where: str) -> None:
        """Take one item in."""
        if not isinstance(item, dict):
            bad("an item is an object", where)
        kind = item.get("type")
        if kind is None or kind == "message":
            self._message(item, where)
        elif isinstance(kind, str) and kind in _CALLS:
            self._call(item, kind, where)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._output(item, where)
        elif kind == "reasoning":
            self._flush(where)
            self._thought += _reasoning(item, where)
        else:
            raise wrong(
                f"an item of type {str(kind)[:40]!r} is not supported",
                where,
                code="unsupported_parameter",
            )

    def end(self, where: str) -> list[Message]:
        """Return the messages."""
        self._flush(where)
        return self._messages

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        raw = item.get("role")
        role = _ROLES.get(raw) if isinstance(raw, str) else None
        if role is None:
            bad("a role is system, developer, user or assistant", f"{where}.role")
        body = content.content(item.get("content"), f"{where}.content")
        if role != "assistant" or self._calls or self._said is not None:
            self._flush(where)
        if role == "assistant":
            self._said = content.message(where, role, body)
        else:
            self._messages.append(content.message(where, role, body))

    def _call(self, item: Mapping[str, Any], kind: str, where: str) -> None:
        raw = item.get(_CALLS[kind])
        arguments = content.compact({"input": raw}) if kind == "custom_tool_call" else raw
        call = content.tool_call(item.get("call_id"), item.get("name"), arguments, where)
        self._names[call.id] = call.name
        self._calls.append(call)

    def _output(self, item: Mapping[str, Any], where: str) -> None:
        self._flush(where)
        call = plain_text(item.get("call_id"), f"{where}.call_id")
        if call not in self._names:
            bad("an output answers a call of an earlier item", f"{where}.call_id")
        body = content.content(item.get("output"), f"{where}.output")
        self._messages.append(
            content.message(where, "tool", body, tool_call_id=call, name=self._names[call])
        )

    def _flush(self, where: str) -> None:
        """Write the assistant's message that is under way."""
        if self._said is None and not self._calls and not self._thought:
            return
        body = "" if self._said is None else self._said.content
        calls = tuple(self._calls)
        self._messages.append(
            content.message(where, "assistant", body, thought=self._thought, tool_calls=calls)
        )
        self._thought, self._calls, self._said = "", [], None


def _reasoning(item: Mapping[str, Any], where: str) -> str:
    """The text of a reasoning item. One that is encrypted by somebody else has none."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        bad("a reasoning item has a list of parts", where)
    return "".join(plain_text(part.get("text"), where) for part in parts)
