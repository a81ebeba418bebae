"""Kind `text`: a conversation is answered, or a template is filled in (clauses 3.3 and 4.2).

A template is a text with holes. The fixed parts stand in the canvas from the first step on and are
never denoised. The model fills the holes, with sight of what comes after them.
"""

from __future__ import annotations

import enum
import itertools
import json
from dataclasses import dataclass
from typing import ClassVar, Final

from piecework.base.jsons import loads
from piecework_protocol.content import (
    content_bytes,
    content_reader,
    content_writer,
    output_bytes,
    output_reader,
)
from piecework_protocol.conversation import (
    Conversation,
    ToolCall,
    most_prompt_tokens,
    size,
)
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_HOLE_TOKENS,
    MAX_TEMPLATE_PARTS,
    MAX_TOOL_JSON_DEPTH,
)
from piecework_protocol.objects import Finish, Kind, Parameters
from piecework_protocol.outlines import Outline

MAX_SEGMENTS: Final = MAX_CANVAS_TOKENS
"""Each has at least one token."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A part of a template that is given. It is not empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Hole:
    """A part of a template that the model fills: `tokens` positions.

    It may fill fewer. What follows an end-of-text token in a hole is left out of the output.
    """

    tokens: int


TemplatePart = Fixed | Hole
"""A template is a sequence of these."""


@dataclass(frozen=True, slots=True)
class TextContent:
    """The exact content of a text job, which the client seals and whose digest it signs.

    template: empty to write freely. Otherwise the answer's form, with at least one hole.

    Raises:
        MalformedInput: The template has no hole, an empty part, or two fixed parts in a row.
    """

    conversation: Conversation
    template: tuple[TemplatePart, ...] = ()

    kind: ClassVar = Kind.TEXT

    def __post_init__(self) -> None:
        if len(self.template) > MAX_TEMPLATE_PARTS:
            raise MalformedInput(f"a template has at most {MAX_TEMPLATE_PARTS} parts")
        holes = [part for part in self.template if isinstance(part, Hole)]
        if self.template and not holes:
            raise MalformedInput("a template has a hole")
        if any(not 1 <= hole.tokens <= MAX_HOLE_TOKENS for hole in holes):
            raise MalformedInput(f"a hole has 1 to {MAX_HOLE_TOKENS} tokens")
        if any(isinstance(part, Fixed) and not part.text for part in self.template):
            raise MalformedInput("a fixed part of a template is not empty")
        fixed = [isinstance(part, Fixed) for part in self.template]
        if any(first and second for first, second in itertools.pairwise(fixed)):
            raise MalformedInput("two fixed parts of a template follow each other")

    @property
    def has_images(self) -> bool:
        """Whether the conversation shows images."""
        return self.conversation.has_images

    @property
    def text_bytes(self) -> int:
        """Count the bytes of all texts in it that a prompt or a template shows."""
        fixed = (part.text for part in self.template if isinstance(part, Fixed))
        return self.conversation.text_bytes + sum(map(size, fixed))

    @property
    def least_tokens(self) -> int:
        """Count the positions that the template takes at least. A fixed part takes one or more."""
        return sum(part.tokens if isinstance(part, Hole) else 1 for part in self.template)

    @property
    def outline(self) -> Outline:
        """What a client keeps to hold outputs to it."""
        return Outline(most_prompt_tokens(self.conversation), templated=bool(self.template))

    def parameters_fault(self, parameters: Parameters, canvas_size: int) -> str | None:
        """Say what of a job's parameters contradicts the content, or None.

        The engine counts the tokens of the fixed parts. Here only the holes are known.
        """
        holes = sum(part.tokens for part in self.template if isinstance(part, Hole))
        if holes > parameters.max_tokens:
            return f"max_tokens is {parameters.max_tokens}, the template's holes have {holes}"
        return None

    def encode(self) -> bytes:
        """Encode it: the version byte, the conversation, then the template's parts.

        Raises:
            MalformedInput: It is too long, or a text has lone surrogates.
        """
        writer = content_writer(self.conversation)
        writer.number(len(self.template), 4)
        for part in self.template:
            if isinstance(part, Fixed):
                writer.number(0, 1)
                writer.text(part.text)
            else:
                writer.number(1, 1)
                writer.number(part.tokens, 4)
        return content_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> TextContent:
        """Parse what `encode` makes, strictly.

        Raises:
            MalformedInput: The bytes are not such. The text names the defect, never the content.
        """
        reader, conversation = content_reader(data)
        template = reader.items(_read_part, MAX_TEMPLATE_PARTS)
        reader.end()
        return cls(conversation, template)


def _read_part(reader: Reader) -> TemplatePart:
    return Hole(reader.number(4)) if reader.flag() else Fixed(reader.text())


class SegmentKind(enum.IntEnum):
    """What a part of an answer is."""

    FINAL = 0
    """The answer itself."""
    THOUGHT = 1
    """What the model thought before."""
    TOOL_CALL = 2
    """A whole tool call: a JSON object with `name` and `arguments`."""
    BROKEN_CALL = 3
    """A tool call that ended too early or is not in the model's grammar, as it was written."""


@dataclass(frozen=True, slots=True)
class OutputSegment:
    """A part of an answer. Its text is not empty.

    Raises:
        MalformedInput: It is a tool call and not JSON of one.
    """

    kind: SegmentKind
    text: str

    def __post_init__(self) -> None:
        if self.kind is SegmentKind.TOOL_CALL:
            read_tool_call(self.text)


def read_tool_call(text: str, call_id: str = "") -> ToolCall:
    """Read the text of a tool call's segment. `call_id` is the id that the caller gives it.

    Raises:
        MalformedInput: It is not a JSON object with a tool's `name` and `arguments` alone.
    """
    try:
        # The arguments are one level deeper here.
        value = loads(text, max_depth=MAX_TOOL_JSON_DEPTH + 1)
    except ValueError:
        value = None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        raise MalformedInput("a tool call is a JSON object with name and arguments")
    if not isinstance(value["name"], str):
        raise MalformedInput("a tool call's name is a string")
    return ToolCall(call_id, value["name"], json.dumps(value["arguments"], ensure_ascii=False))


def final_segments(text: str) -> tuple[OutputSegment, ...]:
    """Return an answer that is final text alone. An empty text has no segments."""
    return (OutputSegment(SegmentKind.FINAL, text),) if text else ()


def final_text(segments: tuple[OutputSegment, ...]) -> str:
    """Return the final text of an answer, without thoughts and calls."""
    return "".join(part.text for part in segments if part.kind is SegmentKind.FINAL)


@dataclass(frozen=True, slots=True)
class TextOutput:
    """What a client gets for one canvas: the charged token ids, and what they add to the answer.

    segments: parsed at the tokens, where nobody can forge them. Final text goes on where the last
        canvas ended. A tool call stands in the canvas that ends it, and is always whole.

    Raises:
        MalformedInput: There is too much, a segment is empty, or two texts of one kind follow each
            other.
    """

    token_ids: tuple[int, ...]
    segments: tuple[OutputSegment, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) > MAX_CANVAS_TOKENS:
            raise MalformedInput(f"a canvas has at most {MAX_CANVAS_TOKENS} tokens")
        if len(self.segments) > MAX_SEGMENTS:
            raise MalformedInput(f"a canvas has at most {MAX_SEGMENTS} segments")
        if any(not segment.text for segment in self.segments):
            raise MalformedInput("a segment is not empty")
        for first, second in zip(self.segments, self.segments[1:], strict=False):
            if first.kind is second.kind and first.kind in (
                SegmentKind.FINAL,
                SegmentKind.THOUGHT,
            ):
                raise MalformedInput("two texts of one kind follow each other")

    @classmethod
    def plain(cls, token_ids: tuple[int, ...], text: str) -> TextOutput:
        """Return an output that is final text alone."""
        return cls(token_ids, final_segments(text))

    @property
    def text(self) -> str:
        """The final text, without thoughts and calls."""
        return final_text(self.segments)

    @property
    def units(self) -> int:
        """What a receipt charges: the tokens."""
        return len(self.token_ids)

    def fault(
        self,
        outline: Outline,
        canvas: int,
        canvas_size: int,
        finish: Finish,
    ) -> str | None:
        """Say what contradicts the content in a finished canvas, or None (clause 4.5)."""
        if finish is Finish.MORE and not outline.templated and self.units != canvas_size:
            return "a canvas that is not the job's last is full"
        return None

    def encode(self) -> bytes:
        """Encode a uint32 count, that many uint32 ids, then the segments.

        Raises:
            MalformedInput: It is too long, an id does not fit, or a text has lone surrogates.
        """
        writer = Writer()
        writer.number(len(self.token_ids), 4)
        for token in self.token_ids:
            writer.number(token, 4)
        writer.number(len(self.segments), 4)
        for segment in self.segments:
            writer.number(segment.kind, 1)
            writer.text(segment.text)
        return output_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> TextOutput:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not a canvas output.
        """
        reader = output_reader(data)
        ids = reader.items(lambda r: r.number(4), MAX_CANVAS_TOKENS)
        segments = reader.items(_read_segment, MAX_SEGMENTS)
        reader.end()
        return cls(ids, segments)


def _read_segment(reader: Reader) -> OutputSegment:
    kind = reader.number(1)
    if kind > max(SegmentKind):
        raise reader.fail("has a segment of no known kind")
    return OutputSegment(SegmentKind(kind), reader.text())
