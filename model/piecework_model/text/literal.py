"""Text that must come out of the decoder exactly as it went in, wherever it stands in an answer.

A tokenizer may put a space before a text, read a character as another one, or spell a byte where
text spells `<0x41>`. For what a user typed that is harmless. The fixed parts of a template must not
change, so each encoding is decoded again and compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from piecework_model import limits
from piecework_model.errors import PromptError
from piecework_model.text.tokens import TextCodec

_LEADS: Final = ("\n", ".", "a", "0")
"""Text that something may stand behind. Of one that joins with what follows, the next is tried."""


def literal_ids(
    codec: TextCodec, text: str, *, start: bool, most: int | None = None
) -> tuple[int, ...]:
    """Encode `text` so that its ids decode to it. It never gives a control id.

    A long text is encoded in pieces, so that little more is encoded than `most` ids take.

    start: whether it stands at the start of an answer. Elsewhere a tokenizer that puts a space
        before every text must not do so.

    Raises:
        PromptError: The vocabulary cannot write it, or it takes more than `most` ids.
    """
    ids: list[int] = []
    for piece in _pieces(text):
        ids += _piece_ids(codec, piece, start=start and not ids)
        if most is not None and len(ids) > most:
            raise PromptError(f"a template's text takes more than the {most} positions left")
    return tuple(ids)


def _pieces(text: str) -> Iterator[str]:
    """Cut a text behind a line or before a word, and inside of a word that is too long."""
    start, size = 0, limits.LITERAL_PIECE_CHARS
    while len(text) - start > size:
        low, high = start + size // 2, start + size
        line, word = text.rfind("\n", low, high) + 1, text.rfind(" ", low, high)
        cut = line or (word if word > low else high)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _piece_ids(codec: TextCodec, text: str, *, start: bool) -> tuple[int, ...]:
    """Encode a piece as a whole, or in halves if it would change."""
    ids = _exact(codec, text, start=start)
    if ids is not None:
        return ids
    if len(text) < 2:
        raise PromptError(f"the vocabulary cannot write U+{ord(text):04X} in a template")
    middle = len(text) // 2
    return (
        *_piece_ids(codec, text[:middle], start=start),
        *_piece_ids(codec, text[middle:], start=False),
    )


def _exact(codec: TextCodec, text: str, *, start: bool) -> tuple[int, ...] | None:
    """Encode text in one piece, or return None if that would change it."""
    if start:
        ids = codec.encode_content(text)
        if codec.control_ids.isdisjoint(ids) and codec.decode(ids) == text:
            return ids
    for lead in _LEADS:
        before, ids = codec.encode_lead(lead), codec.encode_content(lead + text)
        rest = ids[len(before) :]
        if ids[: len(before)] != before:
            continue
        written = codec.decode(rest) if start else codec.decode(ids).removeprefix(lead)
        exact = written == text and codec.control_ids.isdisjoint(rest)
        return rest if exact else None
    return None
