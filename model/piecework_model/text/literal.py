"""Text that must come out of the decoder exactly as it went in, wherever it stands in an answer.

A tokenizer may put a space before a text, read a character as another one, or spell a byte where
text spells `<0x41>`. For what a user typed that is harmless. The fixed parts of a template must not
change, so each encoding is decoded again and compared.
"""

from __future__ import annotations

from typing import Final

from piecework_model.errors import PromptError
from piecework_model.text.tokens import TextCodec

_LEADS: Final = ("\n", ".", "a", "0")
"""Text that something may stand behind. Of one that joins with what follows, the next is tried."""


def literal_ids(
    codec: TextCodec, text: str, *, start: bool, most: int | None = None
) -> tuple[int, ...]:
    """Encode `text` so that its ids decode to it. It never gives a control id.

    start: whether it stands at the start of an answer. Elsewhere a tokenizer that puts a space
        before every text must not do so.

    Raises:
        PromptError: The vocabulary cannot write it, or it takes more than `most` ids. So much is
            encoded at most of a text that must be taken apart.
    """
    ids = _exact(codec, text, start=start)
    if ids is None and len(text) < 2:
        raise PromptError(f"the vocabulary cannot write U+{ord(text):04X} in a template")
    if ids is None:
        middle = len(text) // 2
        ids = literal_ids(codec, text[:middle], start=start, most=most)
        left = None if most is None else most - len(ids)
        ids += literal_ids(codec, text[middle:], start=False, most=left)
    if most is not None and len(ids) > most:
        raise PromptError(f"a template's text takes more than the {most} positions that are left")
    return ids


def _exact(codec: TextCodec, text: str, *, start: bool) -> tuple[int, ...] | None:
    """Encode text in one piece, or return None if that would change it."""
    if start:
        ids = codec.encode_content(text)
        if codec.control_ids.isdisjoint(ids) and codec.decode(ids) == text:
            return ids
    for lead in _LEADS:
        before, ids = codec.encode_content(lead), codec.encode_content(lead + text)
        rest = ids[len(before) :]
        if ids[: len(before)] != before:
            continue
        written = codec.decode(rest) if start else codec.decode(ids).removeprefix(lead)
        exact = written == text and codec.control_ids.isdisjoint(rest)
        return rest if exact else None
    return None
