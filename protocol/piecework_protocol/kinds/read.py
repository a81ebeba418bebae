"""Kind `read`: a decision. A state and typed questions in, probabilities out, no text.

The engine writes one line a question on a canvas. The answer's position is noise, every label is
one token, and one denoising step reads the model's probabilities of the labels there. A *draw* is
one such canvas over other noise. Each canvas has its receipt, as a canvas of text has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from piecework_protocol.content import (
    content_bytes,
    content_reader,
    content_writer,
    output_bytes,
    output_reader,
)
from piecework_protocol.conversation import (
    Conversation,
    most_prompt_tokens,
    size,
)
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_DRAWS,
    MAX_LABELS,
    MAX_QUESTIONS,
)
from piecework_protocol.objects import Finish, Kind, Parameters, Service
from piecework_protocol.outlines import Outline

ONE: Final = 1 << 16
"""Probabilities are in 1/65536, and those of a question add up to it."""
POSITIONS_PER_QUESTION: Final = 16
"""Of a canvas. A question's line is its name, its answer and a line break."""
QUESTION_TOKENS: Final = 16
"""What a prompt may show of a question beside its instructions: its number and line breaks."""
LABEL_TOKENS: Final = 16
"""What a prompt may show of a label beside its name and description: its code and marks."""


@dataclass(frozen=True, slots=True)
class Label:
    """A possible answer: a short name, and what it means (may be empty)."""

    name: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What to decide, and the answers to choose from.

    Raises:
        MalformedInput: There are too few or too many labels, or two of one name.
    """

    instructions: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.labels) <= MAX_LABELS:
            raise MalformedInput(f"a question has 2 to {MAX_LABELS} labels")
        if len({label.name for label in self.labels}) != len(self.labels):
            raise MalformedInput("two labels of a question have one name")


@dataclass(frozen=True, slots=True)
class ReadContent:
    """The exact content of a read job: the state as a conversation, the questions, the draws.

    Raises:
        MalformedInput: There are too few or too many questions or draws.
    """

    conversation: Conversation
    questions: tuple[Question, ...]
    draws: int = 1

    kind: ClassVar = Kind.READ

    def __post_init__(self) -> None:
        if not 1 <= len(self.questions) <= MAX_QUESTIONS:
            raise MalformedInput(f"a read has 1 to {MAX_QUESTIONS} questions")
        if not 1 <= self.draws <= MAX_DRAWS:
            raise MalformedInput(f"a read has 1 to {MAX_DRAWS} draws")

    @property
    def has_images(self) -> bool:
        """Whether the conversation shows images."""
        return self.conversation.has_images

    @property
    def text_bytes(self) -> int:
        """Count the bytes of all texts in it that a prompt shows."""
        asked = (
            size(question.instructions)
            + sum(size(label.name + label.description) for label in question.labels)
            for question in self.questions
        )
        return self.conversation.text_bytes + sum(asked)

    @property
    def least_tokens(self) -> int:
        """Count the tokens that a prompt takes at least, whatever its texts are.

        Each question and each label has a line of its own, and no token goes on behind a line.
        """
        return sum(1 + len(question.labels) for question in self.questions)

    @property
    def outline(self) -> Outline:
        """What a client keeps to hold outputs to it."""
        labels = tuple(len(question.labels) for question in self.questions)
        asked = self.text_bytes - self.conversation.text_bytes
        tokens = most_prompt_tokens(self.conversation) + asked
        tokens += QUESTION_TOKENS * len(labels) + LABEL_TOKENS * sum(labels)
        return Outline(tokens, labels=labels, draws=self.draws)

    def parameters_fault(self, parameters: Parameters, canvas_size: int) -> str | None:
        """Say what of a job's parameters contradicts the content, or None."""
        positions = self.canvases(canvas_size) * canvas_size
        if parameters.max_tokens != positions:
            return f"max_tokens is {parameters.max_tokens}, this read takes {positions} positions"
        if parameters.service is Service.REPLAYABLE and parameters.max_steps != 1:
            return f"max_steps is {parameters.max_steps}, a read takes one step a canvas"
        if parameters.service is Service.BEST_EFFORT:
            return self.best_effort_fault(canvas_size)
        return None

    def best_effort_fault(self, canvas_size: int) -> str | None:
        """Say why no best-effort model takes this read, or None.

        A read is paid by its steps, and at best effort nobody charges them. So only the canvas that
        the prompt pays for is computed.
        """
        canvases = self.canvases(canvas_size)
        if canvases == 1:
            return None
        return f"a read at best effort has one canvas, this one takes {canvases}"

    def canvases(self, canvas_size: int) -> int:
        """Count the canvases of the job, in canvases of that many tokens."""
        return self.draws * batches(len(self.questions), canvas_size)

    def on_canvas(self, canvas: int, canvas_size: int) -> range:
        """Return the indexes of the questions that stand on a canvas.

        All draws of the first questions come first.
        """
        return on_canvas(len(self.questions), self.draws, canvas, canvas_size)

    def encode(self) -> bytes:
        """Encode it: the version byte, the conversation, the questions, then the draws.

        Raises:
            MalformedInput: It is too long, or a text has lone surrogates.
        """
        writer = content_writer(self.conversation)
        writer.number(len(self.questions), 4)
        for question in self.questions:
            writer.text(question.instructions)
            writer.number(len(question.labels), 4)
            for label in question.labels:
                writer.text(label.name)
                writer.text(label.description)
        writer.number(self.draws, 4)
        return content_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> ReadContent:
        """Parse what `encode` makes, strictly.

        Raises:
            MalformedInput: The bytes are not such. The text names the defect, never the content.
        """
        reader, conversation = content_reader(data)
        questions = reader.items(_read_question, MAX_QUESTIONS)
        draws = reader.number(4)
        reader.end()
        return cls(conversation, questions, draws)


def per_canvas(canvas_size: int) -> int:
    """Count the questions that one canvas has room for. At least one."""
    return max(1, canvas_size // POSITIONS_PER_QUESTION)


def batches(questions: int, canvas_size: int) -> int:
    """Count the canvases that one draw of all questions takes."""
    return -(-questions // per_canvas(canvas_size))


def on_canvas(questions: int, draws: int, canvas: int, canvas_size: int) -> range:
    """Return which of so many questions stand on a canvas, as `ReadContent.on_canvas`."""
    first = canvas // draws * per_canvas(canvas_size)
    return range(first, min(first + per_canvas(canvas_size), questions))


def _read_question(reader: Reader) -> Question:
    instructions = reader.text()
    return Question(instructions, reader.items(lambda r: Label(r.text(), r.text()), MAX_LABELS))


@dataclass(frozen=True, slots=True)
class ReadOutput:
    """What a client gets for one canvas: per question on it, the probabilities of its labels.

    They are in 1/65536, in the order of the labels.

    Raises:
        MalformedInput: The probabilities of a question do not add up to one.
    """

    answers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.answers) > MAX_CANVAS_TOKENS:
            raise MalformedInput(f"a canvas has at most {MAX_CANVAS_TOKENS} questions")
        for answer in self.answers:
            if not 2 <= len(answer) <= MAX_LABELS or sum(answer) != ONE or min(answer) < 0:
                raise MalformedInput("the probabilities of a question add up to one")

    @property
    def units(self) -> int:
        """What a receipt charges beside the steps: no output tokens."""
        return 0

    def fault(self, outline: Outline, canvas: int, canvas_size: int, finish: Finish) -> str | None:
        """Say what contradicts the content in a finished canvas, or None (clauses 4.2 and 4.5)."""
        labels = outline.labels
        asked = on_canvas(len(labels), outline.draws, canvas, canvas_size)
        if tuple(map(len, self.answers)) != tuple(labels[index] for index in asked):
            return "the answers are not those of the canvas's questions"
        last = canvas + 1 == outline.draws * batches(len(labels), canvas_size)
        if finish is not (Finish.END_OF_TEXT if last else Finish.MORE):
            return "a read ends with its last canvas"
        return None

    def encode(self) -> bytes:
        """Encode a uint32 count, then per question a uint32 count and that many uint32.

        Raises:
            MalformedInput: It is too long.
        """
        writer = Writer()
        writer.number(len(self.answers), 4)
        for answer in self.answers:
            writer.number(len(answer), 4)
            for share in answer:
                writer.number(share, 4)
        return output_bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> ReadOutput:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not such.
        """
        reader = output_reader(data)
        answers = reader.items(
            lambda r: r.items(lambda inner: inner.number(4), MAX_LABELS), MAX_CANVAS_TOKENS
        )
        reader.end()
        return cls(answers)
