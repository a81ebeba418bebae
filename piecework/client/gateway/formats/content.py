"""Parts of messages, tools and tool calls, from any format to the protocol's values. Pure.

The gateway fetches nothing: an image comes as a data URL.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from piecework.base.jsons import loads
from piecework.client.gateway.formats.common import bad, plain_text, wrong
from piecework_protocol.conversation import (
    Conversation,
    Image,
    Message,
    Part,
    Text,
    Tool,
    ToolCall,
)
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CONTENT_BYTES,
    MAX_PARTS_PER_MESSAGE,
    MAX_TOOL_JSON_DEPTH,
    MAX_TOOLS_PER_PROMPT,
)

NO_PARAMETERS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}}
"""The schema of a tool that takes nothing."""
# RFC 2397, with parameters such as a name. What the type says is not needed: the bytes say it.
_DATA_URL = re.compile(
    r"data:[^,;]{0,127}(?:;[a-z0-9-]{1,64}=[^,;]{0,255}){0,8};base64,", re.IGNORECASE
)
_WHITE_SPACE = re.compile(r"[ \t\r\n]+")


def content(raw: Any, where: str, *, empty: bool = False) -> str | tuple[Part, ...]:
    """Read the content of a message: a text, or a list of parts of any format.

    empty: whether an absent content is an empty text.

    Raises:
        ApiError: A part cannot be used. It names the part.
    """
    if raw is None and empty:
        return ""
    if isinstance(raw, str):
        return plain_text(raw, where)
    if not isinstance(raw, list):
        bad("a message's content is a text or a list of parts", where)
    if len(raw) > MAX_PARTS_PER_MESSAGE:
        bad(f"a message has at most {MAX_PARTS_PER_MESSAGE} parts", where)
    return joined(_part(item, f"{where}[{i}]") for i, item in enumerate(raw))


def joined(parts: Iterable[Part]) -> str | tuple[Part, ...]:
    """Return parts in the protocol's one form: texts put together, a text alone as a text."""
    found: list[Part] = []
    for part in parts:
        before = found[-1] if found else None
        if isinstance(part, Text) and isinstance(before, Text):
            found[-1] = Text(before.text + part.text)
        elif not isinstance(part, Text) or part.text:
            found.append(part)
    if any(isinstance(part, Image) for part in found):
        return tuple(found)
    return "".join(part.text for part in found if isinstance(part, Text))


def _part(item: Any, where: str) -> Part:
    if not isinstance(item, dict):
        bad("a part is an object", where)
    kind = item.get("type")
    if kind in ("text", "input_text", "output_text"):
        return Text(plain_text(item.get("text"), f"{where}.text"))
    if kind == "refusal":
        return Text(plain_text(item.get("refusal"), f"{where}.refusal"))
    if kind == "input_json":
        return Text(compact(item.get("data")))
    if kind in ("image_url", "input_image"):
        raw = item.get("image_url")
        url = raw.get("url") if isinstance(raw, dict) else raw
        return image(url, f"{where}.image_url")
    raise wrong(
        f"a part of type {str(kind)[:40]!r} is not supported", where, code="unsupported_parameter"
    )


def image(url: Any, where: str) -> Image:
    """Read an image from a data URL.

    Raises:
        ApiError: It is another URL, or is not an image that the protocol knows.
    """
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    if match is None:
        bad(
            "an image is a base64 data URL, such as data:image/png;base64,…. "
            "This gateway fetches nothing from the web",
            where,
            code="unsupported_image_url",
        )
    return image_of(url[match.end() :], where)


def image_of(encoded: str, where: str) -> Image:
    """Read an image from base64. Its first bytes say which type it has.

    Many programs name each image JPEG or PNG, whatever it is, wrap the base64 into lines, or leave
    out its padding.

    Raises:
        ApiError: It is not base64, too large, or of another type.
    """
    if len(encoded) > 2 * MAX_CONTENT_BYTES:
        bad(f"a prompt with its images is at most {MAX_CONTENT_BYTES} bytes", where)
    packed = _WHITE_SPACE.sub("", encoded)
    try:
        return Image.of(base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True))
    except (binascii.Error, ValueError):
        bad("the image is not base64", where)
    except MalformedInput as error:
        bad(str(error), where)


def compact(value: Any) -> str:
    """Return a JSON value as one line, with its characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tool(raw: Any, where: str) -> Tool:
    """Read a function: its name, description and parameters.

    Raises:
        ApiError: It is not such. It names the field.
    """
    if not isinstance(raw, dict):
        bad("a function is an object", where)
    name = plain_text(raw.get("name"), f"{where}.name")
    description = raw.get("description")
    parameters = raw.get("parameters")
    if parameters is None:
        parameters = dict(NO_PARAMETERS)
    if not isinstance(parameters, dict):
        bad("a function's parameters are a JSON schema", f"{where}.parameters")
    try:
        return Tool(
            name,
            "" if description is None else plain_text(description, f"{where}.description"),
            compact(parameters),
        )
    except MalformedInput as error:
        bad(str(error), where)


def tools(raw: Any, where: str, functions: Iterable[Any]) -> tuple[Tool, ...]:
    """Read a list of functions. `raw` is the list that they come from.

    Raises:
        ApiError: There are too many, one is not a function, or two have one name.
    """
    if len(raw) > MAX_TOOLS_PER_PROMPT:
        bad(f"{where} has at most {MAX_TOOLS_PER_PROMPT} functions, not {len(raw)}", where)
    found = tuple(tool(item, f"{where}[{i}]") for i, item in enumerate(functions))
    if len({one.name for one in found}) != len(found):
        bad("two functions have one name", where)
    return found


def tool_call(call_id: Any, name: Any, arguments: Any, where: str) -> ToolCall:
    """Read a call that the assistant made earlier. Absent arguments, and null, are an empty object.

    Raises:
        ApiError: It is not such.
    """
    none = arguments in (None, "", "null")
    text = plain_text("{}" if none else arguments, f"{where}.arguments")
    try:
        return ToolCall(plain_text(call_id, f"{where}.id"), plain_text(name, f"{where}.name"), text)
    except MalformedInput as error:
        bad(str(error), where)


def message(where: str, role: str, body: str | tuple[Part, ...], **more: Any) -> Message:
    """Return a message.

    Raises:
        ApiError: The protocol cannot carry it.
    """
    try:
        return Message(role, body, **more)
    except MalformedInput as error:
        bad(str(error), where)


def conversation(
    messages: Iterable[Message], functions: tuple[Tool, ...], *, thinking: bool, where: str
) -> Conversation:
    """Return a conversation.

    Raises:
        ApiError: The protocol cannot carry it.
    """
    try:
        return Conversation(tuple(messages), functions, thinking)
    except MalformedInput as error:
        bad(str(error), where)


def instructed(talk: Conversation, instruction: str) -> Conversation:
    """Return the conversation with one more line in its system message, or with a system message.

    Templates take at most one, in front.
    """
    first = talk.messages[0]
    if first.role == "system" and isinstance(first.content, str):
        told = replace(first, content=f"{first.content}\n\n{instruction}".lstrip())
        return replace(talk, messages=(told, *talk.messages[1:]))
    return replace(talk, messages=(Message("system", instruction), *talk.messages))


def arguments_of(text: str) -> tuple[str, str]:
    """Read a tool call's segment: its name, and its arguments as a JSON text.

    Raises:
        ValueError: It is not a JSON object with both.
    """
    call = loads(text, max_depth=MAX_TOOL_JSON_DEPTH + 2)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("a tool call has a name")
    arguments = call.get("arguments")
    return call["name"], arguments if isinstance(arguments, str) else compact(arguments or {})
