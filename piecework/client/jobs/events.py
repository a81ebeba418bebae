"""What a running job tells its caller, in the order in which it happens."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from piecework_protocol.kinds.audit import AuditOutput
from piecework_protocol.kinds.text import OutputSegment, final_text
from piecework_protocol.objects import Service
from piecework_protocol.types import Address, Amount, ChannelId, Digest, JobId


class FinishReason(enum.Enum):
    """Why the text ends."""

    END_OF_TEXT = "stop"
    TOKEN_LIMIT = "length"  # noqa: S105 - OpenAI's word for a full answer, no secret
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class JobStarted:
    """A worker has promised to run the job. `ceiling` is the most that it can cost."""

    job: JobId
    channel: ChannelId
    operator: Address
    model: str
    model_digest: Digest
    prompt_tokens: int
    ceiling: Amount
    service: Service


@dataclass(frozen=True, slots=True)
class DraftText:
    """The canvas while it is being denoised: unsigned, lossy, and gone with the next one."""

    canvas: int
    step: int
    segments: tuple[OutputSegment, ...]

    @property
    def text(self) -> str:
        """The final text, without thoughts and calls."""
        return final_text(self.segments)


@dataclass(frozen=True, slots=True)
class CanvasText:
    """A canvas whose receipt was verified, recorded and paid.

    `segments` is what the canvas adds to the answer: final text, thoughts and tool calls. `cost` is
    what the whole job has cost so far. `leaf_index` is the receipt's place in the channel's
    accumulator. `again`: it had been paid before and was replayed after a resume. `token_ids` are
    those that the receipt charges.
    """

    canvas: int
    segments: tuple[OutputSegment, ...]
    tokens: int
    steps: int
    amount: Amount
    cost: Amount
    receipt: Digest
    leaf_index: int
    last: bool
    again: bool
    token_ids: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The final text, without thoughts and calls."""
        return final_text(self.segments)


@dataclass(frozen=True, slots=True)
class ReadAnswers:
    """The answers of a read's canvas whose receipt was verified, recorded and paid.

    `questions` are the indexes of those that stand on it. `answers` has the probabilities of each
    one's labels in 1/65536. The other members are those of `CanvasText`.
    """

    canvas: int
    questions: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    steps: int
    amount: Amount
    cost: Amount
    receipt: Digest
    leaf_index: int
    last: bool
    again: bool


@dataclass(frozen=True, slots=True)
class StepOpened:
    """A step of an earlier canvas, opened by its worker. Its receipt was verified and paid.

    `canvas_fields` are those of the earlier canvas's leaf, and `fields` those of the step's. Both
    were held to the leaves that the worker had signed for. `soft` is the soft embedding, if it was
    asked for. The other members are those of `CanvasText`, of the job that asked.
    """

    canvas: int
    canvas_fields: tuple[bytes, ...]
    fields: tuple[bytes, ...]
    soft: bytes | None
    steps: int
    amount: Amount
    cost: Amount
    receipt: Digest
    leaf_index: int
    last: bool
    again: bool


@dataclass(frozen=True, slots=True)
class CanvasAudited:
    """The report of an audit. Its receipt was verified and paid.

    `report` is empty if the audit was cancelled. `leaves` are those under the receipt's trace root:
    the steps that the auditor computed stand behind the first. The other members are those of
    `CanvasText`, of the job that asked.
    """

    canvas: int
    report: AuditOutput
    leaves: tuple[Digest, ...]
    steps: int
    amount: Amount
    cost: Amount
    receipt: Digest
    leaf_index: int
    last: bool
    again: bool


@dataclass(frozen=True, slots=True)
class JobResuming:
    """The stream broke; the same job is presented again after `wait_s` seconds."""

    attempt: int
    wait_s: float
    why: str


@dataclass(frozen=True, slots=True)
class JobFinished:
    """No more canvases. `cost` in base units; `acknowledged`: the worker has confirmed the last
    voucher."""

    finish: FinishReason
    job: JobId
    channel: ChannelId
    operator: Address
    prompt_tokens: int
    output_tokens: int
    denoising_steps: int
    canvases: int
    cost: Amount
    acknowledged: bool


JobEvent = (
    JobStarted
    | DraftText
    | CanvasText
    | ReadAnswers
    | StepOpened
    | CanvasAudited
    | JobResuming
    | JobFinished
)
"""Whatever a job can tell its caller."""
