"""Kind `open`: the worker of an earlier job opens steps of one of its canvases. No text.

The content names the steps by the leaves that the worker has signed for. The output of one canvas
is one step: the fields of its leaf and of the canvas leaf, and the soft embedding if it is wanted.
Whoever has the content can hold the output to the leaves, so nothing is paid that does not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from piecework_protocol.content import CONTENT_VERSION, content_bytes, versioned_reader
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVASES_PER_JOB,
    MAX_DENOISING_STEPS,
    MAX_OPENED_STEPS,
    MAX_OPENING_BYTES,
)
from piecework_protocol.objects import Finish, Kind, Parameters, Service
from piecework_protocol.outlines import Outline
from piecework_protocol.trace import (
    CanvasField,
    CanvasRecord,
    EmbeddingType,
    StepField,
    StepRecord,
    leaf_of,
    soft_field,
)
from piecework_protocol.types import DIGEST_BYTES, Digest, JobId

_MAX_CONTEXT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class WantedStep:
    """A step of the canvas, and its leaf as the client has it."""

    step: int
    leaf: Digest


@dataclass(frozen=True, slots=True)
class OpenContent:
    """The exact content of an open job.

    job, canvas: whose steps are asked for. canvas_leaf: the canvas leaf of it.
    context: tokens before the canvas: the prompt, and the canvases that stay in the context. They
        are charged as the prompt, because a replay prefills them.
    soft: whether the soft embeddings are wanted.

    Raises:
        MalformedInput: A number is out of range, or the steps do not ascend.
    """

    job: JobId
    canvas: int
    context: int
    canvas_leaf: Digest
    steps: tuple[WantedStep, ...]
    soft: bool = False

    kind: ClassVar = Kind.OPEN
    has_images: ClassVar = False
    text_bytes: ClassVar = 0
    least_tokens: ClassVar = 0

    def __post_init__(self) -> None:
        if not 0 <= self.canvas < MAX_CANVASES_PER_JOB or not 1 <= self.context <= _MAX_CONTEXT:
            raise MalformedInput("an opening names a canvas and the tokens before it")
        if not 1 <= len(self.steps) <= MAX_OPENED_STEPS:
            raise MalformedInput(f"an opening is of 1 to {MAX_OPENED_STEPS} steps")
        numbers = [wanted.step for wanted in self.steps]
        if numbers != sorted(set(numbers)) or not 0 <= numbers[-1] < MAX_DENOISING_STEPS:
            raise MalformedInput("the steps of an opening ascend within a canvas")
        leaves = (self.canvas_leaf, *(wanted.leaf for wanted in self.steps))
        if any(len(digest) != DIGEST_BYTES for digest in (self.job, *leaves)):
            raise MalformedInput(f"a job and a leaf have {DIGEST_BYTES} bytes")

    @property
    def outline(self) -> Outline:
        """What a client keeps to hold outputs to it."""
        leaves = (self.canvas_leaf, *(wanted.leaf for wanted in self.steps))
        return Outline(self.context, opened=leaves, soft=self.soft)

    def parameters_fault(self, parameters: Parameters, canvas_size: int) -> str | None:
        """Say what of a job's parameters contradicts the content, or None."""
        if parameters.service is not Service.REPLAYABLE:
            return "a model that is served at best effort has no steps to open"
        positions = len(self.steps) * canvas_size
        if parameters.max_tokens != positions:
            return f"max_tokens is {parameters.max_tokens}, these steps take {positions} positions"
        if parameters.max_steps != 1:
            return f"max_steps is {parameters.max_steps}, an opening takes one step a canvas"
        return None

    def encode(self) -> bytes:
        """Encode it: the version byte, then the members in their order."""
        writer = Writer()
        writer.number(CONTENT_VERSION, 1)
        writer.data(self.job)
        writer.number(self.canvas, 4)
        writer.number(self.context, 4)
        writer.data(self.canvas_leaf)
        writer.number(len(self.steps), 4)
        for wanted in self.steps:
            writer.number(wanted.step, 4)
            writer.data(wanted.leaf)
        writer.number(self.soft, 1)
        return content_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> OpenContent:
        """Parse what `encode` makes, strictly.

        Raises:
            MalformedInput: The bytes are not such.
        """
        reader = versioned_reader(data, "an opening")
        job, canvas, context = JobId(reader.data()), reader.number(4), reader.number(4)
        canvas_leaf = Digest(reader.data())
        steps = reader.items(lambda r: WantedStep(r.number(4), Digest(r.data())), MAX_OPENED_STEPS)
        soft = reader.flag()
        reader.end()
        return cls(job, canvas, context, canvas_leaf, steps, soft)


@dataclass(frozen=True, slots=True)
class OpenOutput:
    """One opened step. It is empty for a canvas that was cancelled.

    canvas: the six fields of the canvas leaf. fields: the seven of the step. soft: the values of
    the soft embedding, row by row, or None.

    Raises:
        MalformedInput: There are more or fewer fields, or they are not those of a step.
    """

    canvas: tuple[bytes, ...] = ()
    fields: tuple[bytes, ...] = ()
    soft: bytes | None = None

    def __post_init__(self) -> None:
        if not self.canvas and not self.fields and self.soft is None:
            return
        CanvasRecord.parse(self.canvas)
        StepRecord.parse(self.fields)

    @property
    def units(self) -> int:
        """What a receipt charges beside the steps: no output tokens."""
        return 0

    def fault(self, outline: Outline, canvas: int, canvas_size: int, finish: Finish) -> str | None:
        """Say what contradicts the content in a finished canvas, or None (clauses 4.2 and 4.5)."""
        if not self.fields or canvas + 1 >= len(outline.opened):
            return "there is no such step to open"
        if leaf_of(self.canvas) != outline.opened[0]:
            return "the opened canvas is not the one that was committed"
        if leaf_of(self.fields) != outline.opened[canvas + 1]:
            return "the opened step is not the one that was committed"
        if (self.soft is not None) is not outline.soft or not self._soft_fits:
            return "the soft embedding is not the one that was committed and asked for"
        last = canvas + 2 == len(outline.opened)
        if finish is not (Finish.END_OF_TEXT if last else Finish.MORE):
            return "an opening ends with its last step"
        return None

    @property
    def _soft_fits(self) -> bool:
        field = self.fields[StepField.SOFT]
        return self.soft is None or soft_field(EmbeddingType(field[0]), self.soft) == field

    def encode(self) -> bytes:
        """Encode both lists of fields, then a flag, and the soft embedding if it is there.

        Raises:
            MalformedInput: It is too long.
        """
        writer = Writer()
        for fields in (self.canvas, self.fields):
            writer.number(len(fields), 4)
            for field in fields:
                writer.data(field)
        writer.number(self.soft is not None, 1)
        if self.soft is not None:
            writer.data(self.soft)
        data = bytes(writer)
        if len(data) > MAX_OPENING_BYTES:
            raise MalformedInput(f"an opened step is at most {MAX_OPENING_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> OpenOutput:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not such.
        """
        if len(data) > MAX_OPENING_BYTES:
            raise MalformedInput(f"an opened step is at most {MAX_OPENING_BYTES} bytes")
        reader = Reader(data, "an opened step")
        canvas = reader.items(Reader.data, len(CanvasField))
        fields = reader.items(Reader.data, len(StepField))
        soft = reader.data() if reader.flag() else None
        reader.end()
        return cls(canvas, fields, soft)
