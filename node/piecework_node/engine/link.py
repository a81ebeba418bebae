"""The engine as the worker sees it: requests down, events up, never a tensor and never torch.

Requests and events are those of `model.requests`. Two links are real:
`node.engine.EngineSupervisor` keeps our own engine in a child process, `node.vllm.VllmLink` speaks
to vLLM servers; tests drive a deterministic fake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from piecework_model.requests import Event, GenerationRequest
from piecework_protocol.content import Message
from piecework_protocol.objects import Service
from piecework_protocol.types import Digest


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine process says about itself once its model is loaded and measured."""

    name: str
    digest: Digest
    profile: str
    device: str
    max_context: int
    canvas_size: int
    max_steps: int
    vocab_size: int
    tokens_per_second: int
    first_canvas_ms: int
    steps_per_second: int
    service: Service
    details: dict[str, Any]
    """Facts that nobody pays by: hardware, build."""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine process died or hung: every row is gone. `EngineReady` follows when it is back."""

    message: str


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine process is (again) ready to take rows."""

    facts: EngineFacts


EngineEvent = Event | EngineLost | EngineReady


class EngineLink(Protocol):
    """Rows are named by `request_id`. Commands never block; what they lead to comes as events."""

    @property
    def facts(self) -> EngineFacts | None:
        """What runs; None while nothing does."""
        ...

    @property
    def ready(self) -> bool:
        """Whether rows can be started now."""
        ...

    async def encode_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """The prompt's token ids. `PromptRejected`, `EngineUnavailable`."""
        ...

    def start(self, request: GenerationRequest) -> None:
        """Start a row. A row that cannot be started ends in a `FailedEvent`."""
        ...

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Let a row go on up to, not including, canvas `canvas_limit`."""
        ...

    def cancel(self, request_id: str) -> None:
        """Free a row. Events that are already under way may still come."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Everything that happens, in order, for one reader."""
        ...


class EngineBackend(EngineLink, Protocol):
    """A link with a life of its own, as the daemon keeps it."""

    losses: int
    """How often every row was lost."""

    @property
    def pid(self) -> int | None:
        """The engine's process while it is a child of ours."""
        ...

    async def run(self) -> None:
        """Keep the engine there for ever. `EngineStartError` when it cannot be started at all."""
        ...
