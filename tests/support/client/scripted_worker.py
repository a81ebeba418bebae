"""A fake worker that is told what to write: free answers, holes of templates, decisions.

It speaks the real protocol, as `FakeWorker` does. A `Mind` decides what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from piecework_protocol.content import output_digest
from piecework_protocol.kinds.read import ONE, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import (
    Fixed,
    OutputSegment,
    SegmentKind,
    TextContent,
    TextOutput,
)
from piecework_protocol.objects import Finish, Kind, ModelOffer
from piecework_protocol.sealing import canvas_context, seal
from piecework_protocol.types import PublicKey, Uint32
from piecework_protocol.worker_session import CanvasResult
from tests.support.client.fake_worker import STEPS, FakeWorker, Job, model_offer
from tests.support.protocol.traces import made_up_leaves

CANVAS = 256
CHARACTERS_PER_TOKEN = 4


def final(text: str) -> OutputSegment:
    """The answer itself."""
    return OutputSegment(SegmentKind.FINAL, text)


def thought(text: str) -> OutputSegment:
    """What the model thought before."""
    return OutputSegment(SegmentKind.THOUGHT, text)


def tool_call(text: str) -> OutputSegment:
    """A whole tool call."""
    return OutputSegment(SegmentKind.TOOL_CALL, text)


def evenly(question: Question) -> tuple[int, ...]:
    """Three quarters for the first label, the rest for the others."""
    others = ONE // 4 // (len(question.labels) - 1)
    return (ONE - others * (len(question.labels) - 1), *[others] * (len(question.labels) - 1))


def echo(content: TextContent) -> Sequence[OutputSegment]:
    """Say what was asked."""
    return (final(f"You said: {content.conversation.messages[-1].text}"),)


@dataclass
class Mind:
    """What the worker says.

    says: the segments of a free answer. Each has a canvas of its own. All but the last are full.
    fills: the text of a hole, from the text in front of it and the number of the job.
    believes: the probabilities of a question's labels.
    """

    says: Callable[[TextContent], Sequence[OutputSegment]] = echo
    fills: Callable[[str, int], str] = lambda before, job: "text"
    believes: Callable[[Question], tuple[int, ...]] = evenly
    asked: list[Any] = field(default_factory=list)
    """The content of each job, in order."""


def wide_model(name: str = "tale-1", **changes: Any) -> ModelOffer:
    """A model of both kinds with canvases and a context of the usual size."""
    usual = {
        "kinds": Uint32(Kind.TEXT.bit | Kind.READ.bit),
        "canvas_size": Uint32(CANVAS),
        "max_context": Uint32(32_768),
        "max_output": Uint32(8_192),
    }
    return model_offer(name).replace(**{**usual, **changes})


class ScriptedWorker(FakeWorker):
    """A worker with a mind."""

    def __init__(self, *arguments: Any, mind: Mind | None = None, **options: Any) -> None:
        options.setdefault("models", (wide_model(),))
        super().__init__(*arguments, **options)
        self.mind = mind or Mind()

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        """What the mind has for this canvas."""
        content = job.content
        if canvas == 0:
            self.mind.asked.append(content)
        if isinstance(content, ReadContent):
            return self._decide(job, content, canvas)
        assert isinstance(content, TextContent)
        said = self._filled(content) if content.template else list(self.mind.says(content))
        left = job.session.accepted.job.parameters.max_tokens - canvas * CANVAS
        segment, last = said[canvas], canvas + 1 == len(said)
        tokens = min(_tokens(segment.text) if last else CANVAS, left)
        if tokens == left and not (last and _tokens(segment.text) <= left):
            segment = OutputSegment(segment.kind, segment.text[: left * CHARACTERS_PER_TOKEN])
            finish = Finish.TOKEN_LIMIT
        else:
            finish = Finish.END_OF_TEXT if last else Finish.MORE
        output = TextOutput(tuple(range(tokens)), (segment,))
        return self._result(job, output.encode(), canvas, (STEPS, tokens, finish))

    def _filled(self, content: TextContent) -> list[OutputSegment]:
        """Every part of the template, each on a canvas of its own."""
        number = len(self.mind.asked) - 1
        written, before = [], ""
        for part in content.template:
            text = part.text if isinstance(part, Fixed) else self.mind.fills(before, number)
            before += text
            written.append(text)
        whole = "".join(written)
        width = CANVAS * CHARACTERS_PER_TOKEN
        return [final(whole[i : i + width]) for i in range(0, len(whole), width)]

    def _decide(self, job: Job, content: ReadContent, canvas: int) -> CanvasResult:
        size = job.session.accepted.model.canvas_size
        asked = content.on_canvas(canvas, size)
        answers = tuple(self.mind.believes(content.questions[i]) for i in asked)
        last = canvas + 1 == content.canvases(size)
        finish = Finish.END_OF_TEXT if last else Finish.MORE
        return self._result(job, ReadOutput(answers).encode(), canvas, (1, 0, finish))

    def _result(
        self, job: Job, output: bytes, canvas: int, spent: tuple[int, int, Finish]
    ) -> CanvasResult:
        steps, units, finish = spent
        accepted = job.session.accepted
        key = PublicKey(accepted.job.reply_key)
        return CanvasResult(
            canvas=canvas,
            output_digest=output_digest(accepted.id, canvas, output),
            leaves=made_up_leaves(output, steps),
            steps=steps,
            units=units,
            finish=finish,
            sealed_output=seal(output, key, canvas_context(self.domain, accepted.id, canvas)),
            resume_secret=b"",
        )


def _tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)
