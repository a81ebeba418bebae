"""What a request asks of the model, in one shape for all formats. Pure.

A parser makes an `Ask`. The gateway turns it into jobs, and renders what they say as the format
has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from piecework.client.gateway.formats.common import Wanted
from piecework.client.gateway.formats.schema import JsonSchema
from piecework_protocol.conversation import Conversation, Tool
from piecework_protocol.kinds.text import TemplatePart


@dataclass(frozen=True, slots=True)
class Free:
    """The model writes what it likes: text, thoughts, tool calls.

    parallel_calls: whether more than one tool call is shown. strict: by name, the schemas that
        calls of these tools must hold.
    """

    parallel_calls: bool = True
    strict: Mapping[str, JsonSchema] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with one hole. The text around the hole is not shown.

    before, after: the fixed text around the hole.
    """

    template: tuple[TemplatePart, ...]
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Structured:
    """A JSON document that a schema holds.

    free: the model may call tools instead, so it writes freely first. What it writes is the answer
        if it holds the schema.
    """

    schema: JsonSchema
    free: Free | None = None


@dataclass(frozen=True, slots=True)
class Called:
    """A call of one of these tools. With several, the model chooses first."""

    tools: tuple[Tool, ...]
    schemas: Mapping[str, JsonSchema]


Plan: TypeAlias = Free | Filled | Structured | Called


@dataclass(frozen=True, slots=True)
class Ask:
    """A parsed request: what to run, and how to answer.

    Attributes:
        conversations: One a prompt. Each is answered `choices` times.
        choices: How often each is answered.
        plan: How the text is made.
        stop: Where the text is cut.
        ignored: Parameters that cannot be honoured.
        echo: What a format wants to find again in its answer.
    """

    wanted: Wanted
    conversations: tuple[Conversation, ...]
    plan: Plan = Free()
    choices: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    ignored: tuple[str, ...] = ()
    echo: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> int:
        """How many answers there are in all."""
        return len(self.conversations) * self.choices
