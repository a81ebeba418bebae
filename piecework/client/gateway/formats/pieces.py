"""What an answer says as it grows, in one shape for all formats. Pure.

A `Reply` renders it as one format has it: as frames of a stream, or whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from piecework.client.gateway.formats.common import ApiError, Head, Totals
from piecework_protocol.conversation import ToolCall

DRAFT_EVENT = "piecework.draft"
"""The event of drafts in a stream. Only those who ask get them."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker took a job of this answer. Until then a failure is an HTTP status."""

    index: int


@dataclass(frozen=True, slots=True)
class TextAdded:
    """More of the answer itself."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ThoughtAdded:
    """More of what the model thought before."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallMade:
    """A whole tool call."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class DraftShown:
    """A canvas while it is being denoised. It is unsigned and gone with the next one."""

    index: int
    canvas: int
    step: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing follows of this answer. `reason` is OpenAI's: stop, length or tool_calls."""

    index: int
    reason: str


Piece: TypeAlias = Started | TextAdded | ThoughtAdded | CallMade | DraftShown | Ended


@dataclass(frozen=True, slots=True)
class Frame:
    """One server-sent event."""

    data: Mapping[str, Any]
    event: str | None = None


class Reply(Protocol):
    """Renders one request's answers."""

    def opening(self, head: Head) -> Iterable[Frame]:
        """Render what a stream begins with."""
        ...

    def take(self, piece: Piece) -> Iterable[Frame]:
        """Take a piece in, and render what it adds to a stream."""
        ...

    def closing(self, totals: Totals, ours: Mapping[str, Any]) -> Iterable[Frame]:
        """Render what a stream ends with. `ours` is the `piecework` object."""
        ...

    def failing(self, error: ApiError) -> Iterable[Frame]:
        """Render a failure after a stream began."""
        ...

    def whole(self, head: Head, totals: Totals, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Render the answer of a request that does not stream."""
        ...
