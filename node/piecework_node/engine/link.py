"""The engine as the worker sees it: requests down, events up, never a tensor and never torch.

Requests and events are those of `piecework_model.requests`. There are two links.
`engine.supervisor.EngineSupervisor` keeps our own engine in a child process. `vllm.link.VllmLink`
speaks to vLLM servers. Tests drive a deterministic fake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from piecework_model.requests import EncodedContent, Event, GenerationRequest
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.objects import Kind, Service
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Digest


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says about itself once its model is loaded and measured."""

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
    """Facts that do not decide a payment: hardware, build."""
    kinds: tuple[Kind, ...] = (Kind.TEXT,)
    """The kinds of jobs that it runs."""
    images: bool = False
    """Whether prompts may show images."""
    end_ids: frozenset[int] = frozenset()
    """The token ids that end a text."""
    answer_tokens: int | None = None
    """How long an answer to the benchmark's prompt is, at the median. None: not known."""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine is gone: all running requests are lost. `EngineReady` follows when it is back."""

    message: str


@dataclass(frozen=True, slots=True)
class EngineGone:
    """The engine cannot be started. It is tried again later, and its jobs do not wait for that."""

    message: str


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine is ready, or ready again, to take requests."""

    facts: EngineFacts


@dataclass(frozen=True, slots=True)
class EnginePaused:
    """No step is taken any more. `freed_bytes` of the device wait on the host."""

    freed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EngineResumed:
    """Steps are taken again."""


@dataclass(frozen=True, slots=True)
class ReplayedTrace:
    """A canvas that was computed again: its step leaves, and the steps that were wanted."""

    step_leaves: tuple[bytes, ...]
    steps: tuple[StepOpening, ...]


@dataclass(frozen=True, slots=True)
class AuditedCanvas:
    """A canvas of another worker's job that was computed again.

    records: what the step leaves of the replay commit to, one a step.
    """

    report: AuditOutput
    records: tuple[StepRecord, ...]


@dataclass(slots=True)
class ReplayWork:
    """What an engine has done of a replay or an audit so far. It may be given up half way.

    prompt_tokens: prefilled of those before the canvas. records: of the steps that were shown.
    changed: called after each pass.
    """

    changed: Callable[[], None]
    prompt_tokens: int = 0
    records: list[StepRecord] = field(default_factory=list)


EngineEvent = Event | EngineLost | EngineGone | EngineReady | EnginePaused | EngineResumed


class EngineLink(Protocol):
    """Sequences are named by `request_id`. Commands never block. Their effects come as events."""

    @property
    def facts(self) -> EngineFacts | None:
        """What runs. None while nothing does."""
        ...

    @property
    def ready(self) -> bool:
        """Whether requests can be started now."""
        ...

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        """Encode a job's content for the engine.

        A prompt or a template of more tokens than the context is cut off there.

        most: a prompt of more tokens is not needed. What has more is cut off behind one more.

        Raises:
            PromptRejected: The engine cannot carry the content.
            EngineUnavailable: It does not answer.
        """
        ...

    async def replay(
        self,
        request: GenerationRequest,
        *,
        steps: int,
        wanted: Sequence[int],
        soft: bool = False,
        work: ReplayWork | None = None,
    ) -> ReplayedTrace:
        """Compute the canvas after the request's committed ones again. Nothing is charged.

        It is done one canvas at a time, when no job runs or when it has waited long enough. Only
        on the profile of the job are the leaves those of the job.

        steps: stop after so many. wanted: the steps that are opened, ascending. soft: whether with
        their soft embeddings. work: told what is done. A caller that is cancelled ends the work.

        Raises:
            ReplayDeclined: The engine cannot do it, or it does not come to those steps.
            EngineUnavailable: It does not answer in time.
        """
        ...

    async def audit(self, content: AuditContent, work: ReplayWork | None = None) -> AuditedCanvas:
        """Compute a canvas of another worker's job again, and judge what is claimed of it.

        It takes its turn as `replay` does. Only on the profile that the content names does the
        report mean anything.

        Raises:
            ReplayDeclined: The engine cannot do it.
            EngineUnavailable: It does not answer in time.
        """
        ...

    def start(self, request: GenerationRequest) -> None:
        """Start a request. One that cannot be started ends in a `FailedEvent`."""
        ...

    def allow(self, request_id: str, canvas_limit: int) -> None:
        """Let a sequence go on up to, not including, canvas `canvas_limit`."""
        ...

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        """End a sequence, at once or with the canvas that has begun.

        Its last event follows: a `StoppedEvent`, unless another one was already under way.
        """
        ...

    def pause(self, *, free_memory: bool) -> None:
        """Take no step after the one that runs. `EnginePaused` follows.

        Sequences keep their place and their canvas. With `free_memory` the bytes of the device
        wait on the host, where the backend can do that.
        """
        ...

    def resume(self) -> None:
        """Go on. `EngineResumed` follows, once the memory that was freed is there again."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Yield all events, in order, for one reader."""
        ...


class EngineBackend(EngineLink, Protocol):
    """A link that runs on its own, as the daemon keeps it."""

    losses: int
    """How often all running requests were lost."""

    @property
    def pid(self) -> int | None:
        """The engine's process, if it is a child of ours."""
        ...

    def give_up(self) -> None:
        """End the engine's process, because its GPU is gone. `run` starts another one.

        Servers that are not ours are left alone.
        """
        ...

    async def run(self) -> None:
        """Keep the engine running until cancelled. Raises `EngineStartError` if it cannot start at
        all.
        """
        ...
