"""Asking a trained checkpoint through the engine that serves it, many requests at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from piecework_model import kinds
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.requests import CanvasEvent, CanvasFinish, FailedEvent, GenerationRequest
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import SegmentKind, TextContent

_SEQUENCES: Final = 8
_MOST_TOKENS: Final = 224  # of a free answer


@dataclass(frozen=True, slots=True)
class Schedule:
    """The sampler's settings: temperature from start to end, entropy bound in nats."""

    temperature_start: float
    temperature_end: float
    entropy_bound: float


PUBLISHED: Final = Schedule(0.8, 0.4, 0.1)
DEMO: Final = Schedule(1.0, 0.4, 0.02)


@dataclass(slots=True)
class ModelAnswer:
    """What came back for one content.

    text: the final text. thoughts: what was thought. calls, broken: tool calls, and what is none.
    steps: one a canvas. ended: whether the model ended it. shares: of a read, the probabilities of
    every question's labels in 1/65536.
    """

    text: str = ""
    thoughts: str = ""
    calls: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    ended: bool = False
    shares: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, event: CanvasEvent) -> None:
        """Take a canvas in."""
        self.steps.append(event.steps)
        self.ended = event.finish is CanvasFinish.END_OF_TEXT
        self.shares += event.answers
        for segment in event.segments:
            match segment.kind:
                case SegmentKind.FINAL:
                    self.text += segment.text
                case SegmentKind.THOUGHT:
                    self.thoughts += segment.text
                case SegmentKind.TOOL_CALL:
                    self.calls.append(segment.text)
                case SegmentKind.BROKEN_CALL:
                    self.broken.append(segment.text)


class Asking(Protocol):
    """Whatever answers contents. `ask` does so for one model."""

    def __call__(
        self,
        contents: Sequence[TextContent | ReadContent],
        schedule: Schedule = DEMO,
        first_seed: int = 0,
    ) -> list[ModelAnswer]: ...


def ask(
    loaded: LoadedModel,
    contents: Sequence[TextContent | ReadContent],
    schedule: Schedule = DEMO,
    first_seed: int = 0,
) -> list[ModelAnswer]:
    """ModelAnswer every content. Content i has the seed `first_seed` + i.

    Raises:
        RuntimeError: The engine could not answer one.
    """
    engine = Engine(loaded, max_sequences=_SEQUENCES, max_queued=len(contents))
    answers = [ModelAnswer() for _ in contents]
    for index, content in enumerate(contents):
        engine.submit(
            request(loaded, content, schedule, request_id=str(index), seed=first_seed + index)
        )
    while engine.has_runnable:
        for event in engine.step():
            if isinstance(event, FailedEvent):
                raise RuntimeError(f"evaluation failed: {event.message}")
            if isinstance(event, CanvasEvent):
                answers[int(event.request_id)].add(event)
    return answers


def request(
    loaded: LoadedModel,
    content: TextContent | ReadContent,
    schedule: Schedule,
    *,
    request_id: str,
    seed: int,
    max_tokens: int = _MOST_TOKENS,
) -> GenerationRequest:
    """Make the engine's request as a worker does. `max_tokens` is of a free answer."""
    limits, defaults = loaded.limits, loaded.defaults
    encoded = kinds.encode(loaded, content, limits.canvas_size, limits.max_context)
    reads = isinstance(content, ReadContent)
    most = len(encoded.template) or max_tokens
    if isinstance(content, ReadContent):
        most = content.canvases(limits.canvas_size) * limits.canvas_size
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=encoded.prompt_ids,
        seed=seed,
        max_tokens=most,
        max_steps=1 if reads else defaults.max_steps,
        temperature_start=schedule.temperature_start,
        temperature_end=schedule.temperature_end,
        entropy_bound=schedule.entropy_bound,
        confidence_threshold=defaults.confidence_threshold,
        stability_steps=0 if reads else defaults.stability_steps,
        canvas_limit=limits.max_context,
        draft_every=0,
        template=encoded.template,
        reads=encoded.reads,
    )
