"""What people, tools and models say to each other, as plain values with one encoding each.

The words are those of chat APIs. A system message is an instruction. A tool message answers a tool
call of the assistant. Texts of tools are JSON and stay as they were written.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import Final

from piecework.base.jsons import loads
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CALL_ID_BYTES,
    MAX_CALLS_PER_MESSAGE,
    MAX_CALLS_PER_PROMPT,
    MAX_IMAGES_PER_PROMPT,
    MAX_MESSAGES_PER_PROMPT,
    MAX_PARTS_PER_MESSAGE,
    MAX_TOOL_JSON_DEPTH,
    MAX_TOOL_JSON_MARKS,
    MAX_TOOLS_PER_PROMPT,
)

# A byte-fallback tokenizer makes at most one token of a byte of text. What a chat template writes
# around the texts is counted generously: turn markers and names of roles, the frame of a tool, and
# a preamble. The text of JSON counts twice, because some templates write it out with spaces.
PREAMBLE_TOKENS: Final = 256
MESSAGE_TOKENS: Final = 32
TOOL_TOKENS: Final = 128
CALL_TOKENS: Final = 64
# The largest number of tokens that the published processor makes of an image, and what frames them.
IMAGE_TOKENS: Final = 1152
ROLES: Final = ("system", "user", "assistant", "tool")
"""In the order of their numbers in the encoding."""
IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/webp")
"""In the order of their numbers in the encoding."""
_STARTS: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# Everything up to the next mark. Strings are skipped whole, and an unterminated one to the end.
_MARK = re.compile(r'(?:[^",:\[{]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?)*+[,:\[{]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a message: a text that is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A part of a message: a picture as a file's bytes. `media_type` is one of `IMAGE_TYPES`."""

    media_type: str
    data: bytes

    def __post_init__(self) -> None:
        if self.media_type not in IMAGE_TYPES:
            raise MalformedInput(f"an image is one of {', '.join(IMAGE_TYPES)}")
        if not self.data:
            raise MalformedInput("an image is not empty")

    @classmethod
    def of(cls, data: bytes) -> Image:
        """Take a file's bytes, whose first ones say of which type it is.

        Raises:
            MalformedInput: They are those of no type that the protocol carries.
        """
        for media_type, start in _STARTS.items():
            if start.match(data):
                return cls(media_type, data)
        raise MalformedInput(f"an image is one of {', '.join(IMAGE_TYPES)}")


Part = Text | Image


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The assistant calls a tool. `arguments` is a JSON object, `id` ties the answer to it.

    Raises:
        MalformedInput: The name, the id or the arguments are not such.
    """

    id: str
    name: str
    arguments: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_call_id(self.id)
        _check_object(self.arguments, "a tool call's arguments are")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the assistant may call. `parameters` is a JSON schema of an object.

    Raises:
        MalformedInput: The name or the parameters are not such.
    """

    name: str
    description: str
    parameters: str

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_object(self.parameters, "a tool's parameters are")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `role` is one of `ROLES`.

    content: a text, or parts of which at least one is an image. No two texts follow each other
        there, so that each content has one form.
    thought: what the assistant thought before it answered. tool_calls: what it called.
    tool_call_id, name: of a tool message, the call that it answers and the tool's name.

    Raises:
        MalformedInput: The role is another, or has members that only another role has.
    """

    role: str
    content: str | tuple[Part, ...] = ""
    thought: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MalformedInput(f"a message's role is one of {', '.join(ROLES)}")
        if self.role != "assistant" and (self.thought or self.tool_calls):
            raise MalformedInput("only the assistant thinks and calls tools")
        if len(self.tool_calls) > MAX_CALLS_PER_MESSAGE:
            raise MalformedInput(f"a message has at most {MAX_CALLS_PER_MESSAGE} tool calls")
        if self.role == "tool":
            _check_name(self.name)
            _check_call_id(self.tool_call_id)
        elif self.tool_call_id or self.name:
            raise MalformedInput("only a tool message answers a call")
        if not isinstance(self.content, str):
            _check_parts(self.content)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The content as parts. An empty text has none."""
        if isinstance(self.content, str):
            return (Text(self.content),) if self.content else ()
        return self.content

    @property
    def text(self) -> str:
        """The texts of the content, one behind the other."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of the content, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def text_bytes(self) -> int:
        """Count the bytes of all its texts. White space around the content does not count, because
        chat templates drop it.
        """
        calls = (call.id + call.name + call.arguments for call in self.tool_calls)
        texts = (self.text.strip(), self.thought, self.tool_call_id, self.name, *calls)
        return sum(size(text) for text in texts)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a model answers: messages, the tools that it may call, and whether it thinks first.

    Raises:
        MalformedInput: There are too few or too many of something, or two tools of one name.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.messages) <= MAX_MESSAGES_PER_PROMPT:
            raise MalformedInput(f"a prompt has 1 to {MAX_MESSAGES_PER_PROMPT} messages")
        if len(self.tools) > MAX_TOOLS_PER_PROMPT:
            raise MalformedInput(f"a prompt has at most {MAX_TOOLS_PER_PROMPT} tools")
        if len({tool.name for tool in self.tools}) != len(self.tools):
            raise MalformedInput("two tools have one name")
        if sum(len(message.images) for message in self.messages) > MAX_IMAGES_PER_PROMPT:
            raise MalformedInput(f"a prompt has at most {MAX_IMAGES_PER_PROMPT} images")
        bounds = _JsonBounds()
        for tool in self.tools:
            bounds.add(tool.parameters)
        for message in self.messages:
            for call in message.tool_calls:
                bounds.add_call(call.arguments)

    @property
    def has_images(self) -> bool:
        """Whether a message shows an image."""
        return any(message.images for message in self.messages)

    @property
    def text_bytes(self) -> int:
        """Count the bytes of all texts of the messages and the tools."""
        tools = (tool.name + tool.description + tool.parameters for tool in self.tools)
        return sum(size(tool) for tool in tools) + sum(
            message.text_bytes for message in self.messages
        )


def most_prompt_tokens(conversation: Conversation) -> int:
    """Give the most tokens that a prompt of this conversation can have (clause 3.4)."""
    tokens = PREAMBLE_TOKENS
    for tool in conversation.tools:
        schema = 2 * size(tool.parameters)
        tokens += TOOL_TOKENS + size(tool.name + tool.description) + schema
    for message in conversation.messages:
        arguments = sum(size(call.arguments) for call in message.tool_calls)
        # A tool's name may stand in front of its answer and behind it.
        tokens += MESSAGE_TOKENS + size(message.text) + size(message.thought)
        tokens += size(message.name + message.tool_call_id) + 2 * arguments
        tokens += sum(CALL_TOKENS + size(c.id + c.name) for c in message.tool_calls)
        tokens += IMAGE_TOKENS * len(message.images)
    return tokens


def size(text: str) -> int:
    """Count the bytes of a text. A lone surrogate, which no content carries, counts as one."""
    return len(text.encode(errors="replace"))


def write_conversation(writer: Writer, conversation: Conversation) -> None:
    """Add the thinking flag, the tools and the messages.

    Raises:
        MalformedInput: A text has lone surrogates.
    """
    writer.number(conversation.thinking, 1)
    writer.number(len(conversation.tools), 4)
    for tool in conversation.tools:
        for text in (tool.name, tool.description, tool.parameters):
            writer.text(text)
    writer.number(len(conversation.messages), 4)
    for message in conversation.messages:
        _write_message(writer, message)


def read_conversation(reader: Reader) -> Conversation:
    """Take what `write_conversation` adds.

    Raises:
        MalformedInput: The bytes are not such.
    """
    thinking, bounds = reader.flag(), _JsonBounds()

    def read_tool(reader: Reader) -> Tool:
        name, description, parameters = reader.text(), reader.text(), reader.text()
        bounds.add(parameters)
        return Tool(name, description, parameters)

    tools = reader.items(read_tool, MAX_TOOLS_PER_PROMPT)
    messages = reader.items(lambda r: _read_message(r, bounds), MAX_MESSAGES_PER_PROMPT)
    return Conversation(messages, tools, thinking)


class _JsonBounds:
    """Counts the tool calls of a prompt, and what its JSON would be to parse, before it is parsed.

    Raises:
        MalformedInput: There is too much.
    """

    def __init__(self) -> None:
        self._calls = self._marks = 0

    def add(self, text: str) -> None:
        """Add the parameters of a tool."""
        # `finditer` would search again from each byte behind the last mark.
        mark = _MARK.match(text)
        while mark is not None:
            self._marks += 1
            if self._marks > MAX_TOOL_JSON_MARKS:
                raise MalformedInput(
                    f"the JSON of tools and calls has at most {MAX_TOOL_JSON_MARKS} commas, "
                    "colons and opening brackets"
                )
            mark = _MARK.match(text, mark.end())

    def add_call(self, arguments: str) -> None:
        """Add a tool call."""
        self._calls += 1
        if self._calls > MAX_CALLS_PER_PROMPT:
            raise MalformedInput(f"a prompt has at most {MAX_CALLS_PER_PROMPT} tool calls")
        self.add(arguments)


def _write_message(writer: Writer, message: Message) -> None:
    writer.number(ROLES.index(message.role), 1)
    writer.number(len(message.parts), 4)
    for part in message.parts:
        if isinstance(part, Text):
            writer.number(0, 1)
            writer.text(part.text)
        else:
            writer.number(1 + IMAGE_TYPES.index(part.media_type), 1)
            writer.data(part.data)
    writer.text(message.thought)
    writer.number(len(message.tool_calls), 4)
    for call in message.tool_calls:
        for text in (call.id, call.name, call.arguments):
            writer.text(text)
    writer.text(message.tool_call_id)
    writer.text(message.name)


def _read_message(reader: Reader, bounds: _JsonBounds) -> Message:
    def read_call(reader: Reader) -> ToolCall:
        id_, name, arguments = reader.text(), reader.text(), reader.text()
        bounds.add_call(arguments)
        return ToolCall(id_, name, arguments)

    role = reader.number(1)
    if role >= len(ROLES):
        raise reader.fail("has a message of no known role")
    parts = reader.items(_read_part, MAX_PARTS_PER_MESSAGE)
    only = parts[0] if len(parts) == 1 else None
    return Message(
        ROLES[role],
        (only.text if isinstance(only, Text) else parts) if parts else "",
        thought=reader.text(),
        tool_calls=reader.items(read_call, MAX_CALLS_PER_MESSAGE),
        tool_call_id=reader.text(),
        name=reader.text(),
    )


def _read_part(reader: Reader) -> Part:
    kind = reader.number(1)
    if kind == 0:
        text = reader.text()
        if not text:
            raise reader.fail("has an empty part")
        return Text(text)
    if kind > len(IMAGE_TYPES):
        raise reader.fail("has a part of no known kind")
    return Image(IMAGE_TYPES[kind - 1], reader.data())


def _check_parts(parts: tuple[Part, ...]) -> None:
    if len(parts) > MAX_PARTS_PER_MESSAGE:
        raise MalformedInput(f"a message has at most {MAX_PARTS_PER_MESSAGE} parts")
    if not any(isinstance(part, Image) for part in parts):
        raise MalformedInput("a content without images is a text")
    texts = [isinstance(part, Text) for part in parts]
    if any(first and second for first, second in itertools.pairwise(texts)):
        raise MalformedInput("two texts of a message follow each other")
    if any(isinstance(part, Text) and not part.text for part in parts):
        raise MalformedInput("a text among parts is not empty")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise MalformedInput("a tool's name has 1 to 64 letters, digits, and any of _ . : -")


def _check_call_id(call: str) -> None:
    if size(call) > MAX_CALL_ID_BYTES:
        raise MalformedInput(f"a tool call's id has at most {MAX_CALL_ID_BYTES} bytes")


def _check_object(text: str, what: str) -> None:
    try:
        value = loads(text, max_depth=MAX_TOOL_JSON_DEPTH)
        # An escaped lone surrogate is JSON, but nobody can hand on its value as UTF-8.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise MalformedInput(
            f"{what} a JSON object without lone surrogates, nested at most "
            f"{MAX_TOOL_JSON_DEPTH} deep"
        )
