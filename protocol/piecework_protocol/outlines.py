"""What a client keeps of a content: enough to hold every output to it, and no text (clause 8.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.limits import MAX_OPENED_STEPS, MAX_QUESTIONS
from piecework_protocol.types import Digest


@dataclass(frozen=True, slots=True)
class Outline:
    """The shape of a content.

    prompt_tokens: that the prompt can have at most (clause 3.4).
    templated: whether a template decides how many tokens a canvas has.
    labels: of each question of a read, how many. draws: of each question.
    opened: of an opening, the canvas leaf and the leaves of the steps. soft: whether it has the
        soft embeddings.
    """

    prompt_tokens: int
    templated: bool = False
    labels: tuple[int, ...] = ()
    draws: int = 0
    opened: tuple[Digest, ...] = ()
    soft: bool = False

    def encode(self) -> bytes:
        """Encode it for the client's journal."""
        writer = Writer()
        writer.number(self.prompt_tokens, 4)
        writer.number(self.templated, 1)
        writer.number(len(self.labels), 4)
        for count in self.labels:
            writer.number(count, 4)
        writer.number(self.draws, 4)
        if self.opened:  # behind the end of what the others have
            writer.number(len(self.opened), 4)
            for leaf in self.opened:
                writer.data(leaf)
            writer.number(self.soft, 1)
        return bytes(writer)

    @classmethod
    def decode(cls, data: bytes) -> Outline:
        """Parse what `encode` makes.

        Raises:
            MalformedInput: The bytes are not such.
        """
        reader = Reader(data, "an outline")
        prompt_tokens, templated = reader.number(4), reader.flag()
        labels = reader.items(lambda r: r.number(4), MAX_QUESTIONS)
        outline = cls(prompt_tokens, templated, labels, reader.number(4))
        if not reader.is_over:
            leaves = reader.items(lambda r: Digest(r.data()), MAX_OPENED_STEPS + 1)
            outline = replace(outline, opened=leaves, soft=reader.flag())
        reader.end()
        return outline
