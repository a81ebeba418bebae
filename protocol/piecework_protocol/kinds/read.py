"""Kind `read`: a decision. A state and typed questions in, probabilities out, no text.

The engine writes one line a question on a canvas. The answer's position is noise, every label is
one token, and one denoising step reads the model's probabilities of the labels there. A *draw* is
one such canvas over other noise. Each canvas has its receipt, as a canvas of text has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from piecework_protocol.conversation import (
    Conversation,
    read_conversation,
    write_conversation,
)
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.text import CONTENT_VERSION, content_reader
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CONTENT_BYTES,
    MAX_DRAWS,
    MAX_LABELS,
    MAX_OUTPUT_BYTES,
    MAX_QUESTIONS,
)

ONE: Final = 1 << 16
"""Probabilities are in 1/65536, and those of a question add up to it."""
POSITIONS_PER_QUESTION: Final = 16
"""Of a canvas. A question's line is its name, its answer and a line break."""


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

    def __post_init__(self) -> None:
        if not 1 <= len(self.questions) <= MAX_QUESTIONS:
            raise MalformedInput(f"a read has 1 to {MAX_QUESTIONS} questions")
        if not 1 <= self.draws <= MAX_DRAWS:
            raise MalformedInput(f"a read has 1 to {MAX_DRAWS} draws")

    def canvases(self, canvas_size: int) -> int:
        """Count the canvases of the job, in canvases of that many tokens."""
        return self.draws * batches(len(self.questions), canvas_size)

    def on_canvas(self, canvas: int, canvas_size: int) -> range:
        """Return the indexes of the questions that stand on a canvas.

        All draws of the first questions come first.
        """
        first = canvas // self.draws * per_canvas(canvas_size)
        return range(first, min(first + per_canvas(canvas_size), len(self.questions)))

    def encode(self) -> bytes:
        """Encode it: the version byte, the conversation, the questions, then the draws.

        Raises:
            MalformedInput: It is too long, or a text has lone surrogates.
        """
        writer = Writer()
        writer.number(CONTENT_VERSION, 1)
        write_conversation(writer, self.conversation)
        writer.number(len(self.questions), 4)
        for question in self.questions:
            writer.text(question.instructions)
            writer.number(len(question.labels), 4)
            for label in question.labels:
                writer.text(label.name)
                writer.text(label.description)
        writer.number(self.draws, 4)
        data = bytes(writer)
        if len(data) > MAX_CONTENT_BYTES:
            raise MalformedInput(f"a prompt is at most {MAX_CONTENT_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> ReadContent:
        """Parse what `encode` makes, strictly.

        Raises:
            MalformedInput: The bytes are not such. The text names the defect, never the content.
        """
        reader = content_reader(data)
        conversation = read_conversation(reader)
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
        data = bytes(writer)
        if len(data) > MAX_OUTPUT_BYTES:
            raise MalformedInput(f"a canvas output is at most {MAX_OUTPUT_BYTES} bytes")
        return data

    @classmethod
    def decode(cls, data: bytes) -> ReadOutput:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not such.
        """
        if len(data) > MAX_OUTPUT_BYTES:
            raise MalformedInput("a canvas output has an impossible length")
        reader = Reader(data, "a canvas output")
        answers = reader.items(
            lambda r: r.items(lambda inner: inner.number(4), MAX_LABELS), MAX_CANVAS_TOKENS
        )
        reader.end()
        return cls(answers)
