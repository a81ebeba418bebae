"""The owner's own test job: a prompt on the worker's engine, without a client and without money.

It shows that the machine generates, and how fast. It takes steps beside paid jobs, so one runs at a
time. Nothing of it is kept: no journal, no receipt, no log. Its text stays in memory for the owner.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from piecework.base.clock import Clock
from piecework_model.requests import (
    PUBLISHED_DEFAULTS,
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    GenerationDefaults,
    ProgressEvent,
    StoppedEvent,
)
from piecework_node.engine.link import EngineEvent, EngineFacts, EngineGone, EngineLost
from piecework_node.errors import OwnTestRefused
from piecework_node.runtime.cards import EngineCard, EngineCards
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.objects import Kind, Service

PREFIX: Final = "own test "
"""Of its name at the engine. No job is named so: a job's name is hexadecimal."""
MAX_CANVASES: Final = 16
"""Of one test job. It is to show that the engine works, and not to keep it from earning."""
DEFAULT_CANVASES: Final = 2


@dataclass(slots=True)
class OwnTest:
    """One test job.

    Attributes:
        number: Counts the test jobs of this start, from 1.
        state: running, done, stopped or failed. why: Why it failed.
        text: Of finished canvases. draft: Of the canvas that is denoised now.
        canvas: The canvas that is denoised now, from 0. step: Steps taken of it.
        tokens: Of finished canvases. steps: Of all canvases.
        seconds: From its start to its end, or to now.
        first_canvas_s: Seconds until the first canvas was finished. None: not yet.
    """

    number: int
    card: str
    prompt: str
    prompt_tokens: int
    max_steps: int
    state: str = "running"
    why: str = ""
    text: str = ""
    draft: str = ""
    canvas: int = 0
    step: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    first_canvas_s: float | None = None

    @property
    def name(self) -> str:
        """Its name at the engine."""
        return f"{PREFIX}{self.number}"


class OwnTests:
    """The test job that runs, or the last one."""

    def __init__(
        self,
        cards: EngineCards,
        clock: Clock,
        draw: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """`draw` gives a random number of so many bits."""
        self._cards, self._clock, self._draw = cards, clock, draw
        self._last: OwnTest | None = None
        self._card: EngineCard | None = None
        self._began = 0.0
        self._starting = False

    @property
    def last(self) -> OwnTest | None:
        """The test job that runs, or the last one. None: there was none since the start."""
        test = self._last
        if test is not None and test.state == "running":
            test.seconds = self._clock.monotonic() - self._began
        return test

    async def start(self, prompt: str, max_tokens: int | None = None) -> OwnTest:
        """Start one.

        max_tokens: of the answer. None: two canvases, or as many as the context has room for.

        Raises:
            OwnTestRefused: one runs already, no engine takes it now, or it does not fit.
            PromptRejected: the model's chat template refuses the prompt.
            EngineUnavailable: the engine does not answer.
        """
        if self._starting or (self._last is not None and self._last.state == "running"):
            raise OwnTestRefused("a test job runs already")
        self._starting = True
        try:
            card, facts = self._free_card()
            content = TextContent(Conversation((Message("user", prompt),)))
            encoded = await card.engine.encode(content)
            if not card.serves or card.facts is not facts:
                # It would be started by nobody when the engine is back.
                raise OwnTestRefused("the engine was lost or paused while it read the prompt")
            size = facts.canvas_size
            room = (facts.max_context - len(encoded.prompt_ids)) // size
            asked = DEFAULT_CANVASES if max_tokens is None else -(-max_tokens // size)
            canvases = min(asked, room) if max_tokens is None else asked
            if room < 1 or canvases > room:
                raise OwnTestRefused(
                    f"the prompt has {len(encoded.prompt_ids)} tokens, the context "
                    f"{facts.max_context}. That leaves room for {max(0, room)} canvases"
                )
            if canvases > MAX_CANVASES:
                raise OwnTestRefused(f"a test job has at most {MAX_CANVASES} canvases")
            number = 1 if self._last is None else self._last.number + 1
            test = OwnTest(number, card.name, prompt, len(encoded.prompt_ids), facts.max_steps)
            most = canvases * size if max_tokens is None else max_tokens
            request = _defaults(facts).request(
                test.name,
                encoded.prompt_ids,
                seed=self._draw(64),
                max_tokens=most,
                canvas_limit=canvases,
                draft_every=1,
            )
            card.engine.start(request)
        finally:
            self._starting = False
        self._last, self._card, self._began = test, card, self._clock.monotonic()
        return test

    def stop(self) -> None:
        """End the test job that runs, if one does."""
        if self._last is not None and self._last.state == "running" and self._card is not None:
            self._card.engine.stop(self._last.name, finish_canvas=False)

    def take(self, card: EngineCard, event: EngineEvent) -> bool:
        """Take an event of a card. Return whether it was about a test job, and so about no job."""
        test = self._last
        if isinstance(event, EngineLost | EngineGone):
            if test is not None and test.state == "running" and card is self._card:
                self._end("failed", "the engine was lost")
            return False
        if not isinstance(event, Event) or not event.request_id.startswith(PREFIX):
            return False
        if test is not None and event.request_id == test.name and test.state == "running":
            self._apply(test, event)
        return True

    def _apply(self, test: OwnTest, event: Event) -> None:
        if isinstance(event, DraftEvent):
            test.canvas, test.step, test.draft = event.canvas, event.step + 1, event.text
        elif isinstance(event, ProgressEvent):
            test.canvas, test.step = event.canvas, max(event.steps, test.step)
        elif isinstance(event, CanvasEvent):
            test.text, test.draft = test.text + event.text, ""
            test.canvas, test.step = event.canvas + 1, 0
            test.tokens += len(event.charged_ids)
            test.steps += event.steps
            if test.first_canvas_s is None:
                test.first_canvas_s = self._clock.monotonic() - self._began
            if event.finish is not CanvasFinish.MORE:
                self._end("done")
        elif isinstance(event, StoppedEvent):
            self._end("stopped")
        else:
            self._end("failed", event.message)

    def _end(self, state: str, why: str = "") -> None:
        if self._last is not None:
            self._last.seconds = self._clock.monotonic() - self._began
            self._last.state, self._last.why, self._last.draft = state, why, ""

    def _free_card(self) -> tuple[EngineCard, EngineFacts]:
        """The first card that takes steps, and writes text."""
        for card in self._cards:
            if card.serves and card.facts is not None and Kind.TEXT in card.facts.kinds:
                return card, card.facts
        why = "jobs are paused" if self._cards.pause is not None else "no engine is ready"
        raise OwnTestRefused(f"{why}: `piecework worker status` says more")


def _defaults(facts: EngineFacts) -> GenerationDefaults:
    if facts.service is Service.BEST_EFFORT:  # a server's own settings hold, as for jobs
        return GenerationDefaults(0, 0.0, 0.0, 0.0, 0.0, 0)
    told = facts.details.get("defaults")
    return GenerationDefaults(**told) if told else PUBLISHED_DEFAULTS
