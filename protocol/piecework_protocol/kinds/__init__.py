"""What a worker can be paid for, one module a kind: its content, its output, what is charged.

The engine has a module of the same name for each, `piecework_model.kinds`. A test holds the two
lists together. A job of a kind that an offer does not list is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from piecework_protocol.conversation import Conversation
from piecework_protocol.kinds.read import ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import Kind


class Content(Protocol):
    """What the client seals, and whose digest it signs."""

    @property
    def conversation(self) -> Conversation: ...

    def encode(self) -> bytes: ...


class Output(Protocol):
    """What the client gets for one canvas."""

    @property
    def units(self) -> int: ...

    def encode(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class KindRules:
    """How the bytes of a kind are read. Both functions raise `MalformedInput`.

    charges_units: whether output tokens are charged. Steps and prompt tokens always are.
    """

    decode_content: Callable[[bytes], Content]
    decode_output: Callable[[bytes], Output]
    charges_units: bool


KINDS: Final[Mapping[Kind, KindRules]] = {
    Kind.TEXT: KindRules(TextContent.decode, TextOutput.decode, charges_units=True),
    Kind.READ: KindRules(ReadContent.decode, ReadOutput.decode, charges_units=False),
}
"""The kinds that exist. The numbers of the others are reserved."""
