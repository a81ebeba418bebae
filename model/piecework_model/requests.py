"""What the engine is asked and what it answers: plain, frozen values. No torch."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.open import OpenOutput
from piecework_protocol.kinds.text import OutputSegment, final_text
from piecework_protocol.trace import StepRecord

FailureKind = Literal["non_finite", "out_of_memory", "invalid_request", "internal"]


class CanvasFinish(enum.IntEnum):
    """Whether a canvas is the last one, and why. The numbers are those of the receipt's
    `finish`.
    """

    MORE = 0
    END_OF_TEXT = 1
    TOKEN_LIMIT = 2


HOLE: Final = -1
"""In a template: this position is free."""


@dataclass(frozen=True, slots=True)
class ReadSlot:
    """Where a question is answered on a canvas: the position, and one token a label."""

    position: int
    label_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An image in a prompt, resized and cut into patches (images.py).

    start: of its first token in the prompt. tokens: of its own, without those that frame it.
    columns, rows: how many patches lie beside and below each other.
    patches: uint8, row by row. A patch is its pixels row by row, red, green and blue of each.
    """

    start: int
    tokens: int
    columns: int
    rows: int
    patches: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpeningAsked:
    """Steps of a canvas of an earlier job that are asked for (kind `open`).

    context: tokens before the canvas, which are charged as the prompt.
    """

    job: bytes
    canvas: int
    steps: tuple[int, ...]
    soft: bool
    context: int


@dataclass(frozen=True, slots=True)
class AuditAsked:
    """A canvas of another job that is computed again (kind `audit`).

    context: tokens before the canvas, which are charged as the prompt.
    """

    content: AuditContent
    context: int


@dataclass(frozen=True, slots=True)
class EncodedContent:
    """What a job's content is for the engine (kinds). The fields are those of GenerationRequest.

    positions: of the template before its end, which a job's max_tokens must cover. 0 without one.
    opening: of an open job, what is asked for. It has no prompt.
    auditing: of an audit job, what is audited. It has no prompt either.
    """

    prompt_ids: tuple[int, ...]
    template: tuple[int, ...] = ()
    reads: tuple[tuple[ReadSlot, ...], ...] = ()
    positions: int = 0
    images: tuple[PromptImage, ...] = ()
    opening: OpeningAsked | None = None
    auditing: AuditAsked | None = None

    @property
    def prompt_tokens(self) -> int:
        """Count the tokens that are charged as the prompt."""
        before = self.opening or self.auditing
        return len(self.prompt_ids) if before is None else before.context


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One job for the engine.

    The fields from prompt_ids to stability_steps, template, reads and images decide the result. The
    same values give the same text.

    prompt_ids: the prompt as token ids, control tokens included (text/chat.py).
    seed: uint64.
    max_tokens: charged tokens at most, over all canvases.
    max_steps: denoising steps a canvas at most, from 1 to the checkpoint's own number
        (`ModelLimits.max_steps`).
    temperature_start, temperature_end: of the linear schedule, start >= end > 0.
    entropy_bound: nats, >= 0. With 0 a step accepts the most certain position, and those that are
        certain beyond doubt.
    confidence_threshold: mean entropy in nats below which a stable canvas is done. 0 never stops
    early.
    stability_steps: how many earlier steps must have had the same argmax canvas.
    canvas_limit: the sequence pauses before the canvas of this index (`Engine.allow`).
    committed: canvases already committed, to resume after a restart. The engine continues with the
    next.
    draft_every: a draft after every so many steps, 0 for none.
    tenant: who may share cached prefixes with this request (engine/prefix_cache.py). Empty: nobody.
    template: empty to write freely. Otherwise whole canvases, one entry a position: the id that is
        pinned there, or HOLE. What stands behind the form is pinned to an end-of-text id, which
        stands nowhere else. The text ends with the last canvas.
    reads: empty to write. Otherwise one entry for each canvas of the template: its slots. Canvas k
        is `k // draws` of the template, where draws is the number of the request's canvases over
        that of the template's. Each takes one step. None becomes part of the next one's context.
    images: in the order of the prompt. Where one stands, the prompt has the model's image token.
    keep_records: whether the event of a canvas has what its steps commit to.
    opening: of an open job, what is asked for. auditing: of an audit job, what is audited. No
    engine runs such a request as a sequence.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    seed: int
    max_tokens: int
    max_steps: int
    temperature_start: float
    temperature_end: float
    entropy_bound: float
    confidence_threshold: float
    stability_steps: int
    canvas_limit: int
    committed: tuple[tuple[int, ...], ...] = ()
    draft_every: int = 1
    tenant: str = ""
    template: tuple[int, ...] = ()
    reads: tuple[tuple[ReadSlot, ...], ...] = ()
    images: tuple[PromptImage, ...] = ()
    keep_records: bool = False
    opening: OpeningAsked | None = None
    auditing: AuditAsked | None = None


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a checkpoint's generation_config.json recommends. Units as in `GenerationRequest`."""

    max_steps: int
    temperature_start: float
    temperature_end: float
    entropy_bound: float
    confidence_threshold: float
    stability_steps: int

    def request(
        self,
        request_id: str,
        prompt_ids: tuple[int, ...],
        *,
        seed: int,
        max_tokens: int,
        canvas_limit: int,
        draft_every: int,
    ) -> GenerationRequest:
        """Make a request for free text as it is recommended. As in `GenerationRequest`."""
        return GenerationRequest(
            request_id=request_id,
            prompt_ids=prompt_ids,
            seed=seed,
            max_tokens=max_tokens,
            max_steps=self.max_steps,
            temperature_start=self.temperature_start,
            temperature_end=self.temperature_end,
            entropy_bound=self.entropy_bound,
            confidence_threshold=self.confidence_threshold,
            stability_steps=self.stability_steps,
            canvas_limit=canvas_limit,
            draft_every=draft_every,
        )


PUBLISHED_DEFAULTS: Final = GenerationDefaults(48, 0.8, 0.4, 0.1, 0.005, 1)
"""What `generate` of transformers 5.23 falls back to."""


@dataclass(frozen=True, slots=True)
class DraftEvent:
    """The argmax canvas after step `step` of canvas `canvas`. It is not final.

    token_ids: the prefix that would be charged, as in `CanvasEvent.charged_ids`. segments: what the
    canvas would add to the answer.
    """

    request_id: str
    canvas: int
    step: int
    token_ids: tuple[int, ...]
    segments: tuple[OutputSegment, ...]

    @property
    def text(self) -> str:
        """The final text of this canvas, without thoughts and calls."""
        return final_text(self.segments)


@dataclass(frozen=True, slots=True)
class CanvasEvent:
    """A committed canvas.

    token_ids: the whole canvas, C ids.
    charged_ids: what is charged. Of free text, the prefix up to, not including, the first
        end-of-text token, and within max_tokens. charging.py has the rules of the others.
    segments: what this canvas adds to the answer (text/segments.py).
    step_leaves: one 32-byte trace leaf a step, `steps` of them.
    answers: of a read, a question's probabilities in 1/65536, in the order of its labels.
    records: what the step leaves commit to, if the request keeps records.
    opened: of an open job, the opened step. report: of an audit job, what was found.
    """

    request_id: str
    canvas: int
    token_ids: tuple[int, ...]
    charged_ids: tuple[int, ...]
    segments: tuple[OutputSegment, ...]
    steps: int
    step_leaves: tuple[bytes, ...]
    finish: CanvasFinish
    answers: tuple[tuple[int, ...], ...] = ()
    records: Sequence[StepRecord] = field(default=(), repr=False)
    opened: OpenOutput | None = field(default=None, repr=False)
    report: AuditOutput | None = None

    @property
    def text(self) -> str:
        """The final text of this canvas, without thoughts and calls."""
        return final_text(self.segments)


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """The request is over without a further canvas. `message` holds no text of the job."""

    request_id: str
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """Where a request is: `steps` of canvas `canvas` are done, `prompt_tokens` are prefilled.

    It comes with the first step of a canvas, at every PROGRESS_STEPS steps, and while a prompt is
    prefilled.
    """

    request_id: str
    canvas: int
    steps: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StoppedEvent:
    """The request was stopped, and this is its last event.

    canvas: the one in progress. steps: taken of it, with one 32-byte trace leaf a step.
    prompt_tokens: prefilled, 0 if the request never began. records: as in `CanvasEvent`.
    """

    request_id: str
    canvas: int
    steps: int
    prompt_tokens: int
    step_leaves: tuple[bytes, ...]
    records: Sequence[StepRecord] = field(default=(), repr=False)


PROGRESS_STEPS: Final = 4
"""A receipt of a stopped canvas may exceed the last progress by eight steps (clause 3.8)."""

Event = DraftEvent | CanvasEvent | FailedEvent | ProgressEvent | StoppedEvent
