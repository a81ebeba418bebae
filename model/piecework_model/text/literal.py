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


def literal_ids(codec: TextCodec, text: str, *, start: bool) -> tuple[int, ...]:
    """Encode `text` so that its ids decode to it. It never gives a control id.

    start: whether it stands at the start of an answer. Elsewhere a tokenizer that puts a space
        before every text must not do so.

    Raises:
        PromptError: The vocabulary cannot write it.
    """
    ids = _whole(codec, text) if start else None
    ids = ids if ids is not None else _behind(codec, text, start=start)
    if ids is not None:
        return ids
    if len(text) < 2:
        raise PromptError(f"the vocabulary cannot write U+{ord(text):04X} in a template")
    middle = len(text) // 2
    return (
        *literal_ids(codec, text[:middle], start=start),
        *literal_ids(codec, text[middle:], start=False),
    )


def _whole(codec: TextCodec, text: str) -> tuple[int, ...] | None:
    ids = codec.encode_content(text)
    return ids if codec.control_ids.isdisjoint(ids) and codec.decode(ids) == text else None


def _behind(codec: TextCodec, text: str, *, start: bool) -> tuple[int, ...] | None:
    """Encode text as it stands behind other text, or return None."""
    for lead in _LEADS:
        before = codec.encode_content(lead)
        ids = codec.encode_content(lead + text)
        rest = ids[len(before) :]
        if ids[: len(before)] != before or not codec.control_ids.isdisjoint(rest):
            continue
        written = codec.decode(rest) if start else codec.decode(ids).removeprefix(lead)
        if written == text:
            return rest
    return None
