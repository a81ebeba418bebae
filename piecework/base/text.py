"""Text that a stranger wrote, made safe for a terminal, a log line or an error message.

Dropped: control characters, bidi embeddings, overrides and isolates, lone surrogates,
noncharacters, invisible format characters that no script needs, and tag characters outside a flag.
Kept: what people write. That includes French spaces, Persian and Hindi joiners, flags, emoji
sequences, soft hyphens and the directional marks.

The marks U+200E, U+200F and U+061C stay. Hebrew and Arabic writers type them beside punctuation.
A mark acts like one invisible letter. It has no scope and cannot reverse the text of others.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO

MAX_EXTENDERS: Final = 8
"""Combining marks and invisible characters after one base. Tibetan and Hebrew need up to six."""
ELLIPSIS: Final = "…"
_GAP: Final = f"{ELLIPSIS}\n{ELLIPSIS}"

_BREAKS: Final = frozenset("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")
_INVISIBLE: Final = frozenset("\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060")
_JOINER: Final = "\u200d"
_BLACK_FLAG: Final = "\U0001f3f4"
# The subdivision flags that Unicode recommends: England, Scotland, Wales. Any other run of tags is
# invisible text, which a reader cannot see and a language model can.
_FLAG_TAGS: Final = tuple(
    "".join(chr(0xE0000 + ord(letter)) for letter in region) + "\U000e007f"
    for region in ("gbeng", "gbsct", "gbwls")
)
_PREPENDED_LETTERS: Final = frozenset(
    "\u0d4e\U000111c2\U000111c3\U0001193f\U00011941\U00011a3a\U00011d46"
    "\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89"
)
_DROPPED_RANGES: Final = (
    (0x00, 0x1F),  # C0; line breaks and tabs were taken out before
    (0x7F, 0x9F),  # DEL, C1
    (0x202A, 0x202E),  # bidi embeddings and overrides
    (0x2061, 0x206F),  # invisible operators, bidi isolates, deprecated format characters
    (0xD800, 0xDFFF),  # lone surrogates: a Python string holds no others
    (0xFDD0, 0xFDEF),  # noncharacters
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFF0, 0xFFFB),  # reserved and interlinear annotation
    (0x1BCA0, 0x1BCA3),  # shorthand format controls
    (0x1D173, 0x1D17A),  # musical format controls
    (0xE0000, 0xE00FF),  # tags and reserved
    (0xE01F0, 0xE0FFF),  # reserved
)


def printable(text: str, *, lines: bool, limit: int) -> str:
    """Return `text` without what could drive or deceive a terminal, at most `limit` code points.

    With `lines`, line breaks and tabs stay, each kind of break as a newline. The text may then be a
    piece of a longer one, so a mark at its start stays too. Without `lines`, breaks and tabs become
    spaces, and a mark at the start goes, because it would sit on the text before it.
    A longer text ends in "…". No grapheme is cut: a flag or a family stays whole or goes whole.
    """
    return _cut(_clean(text, lines=lines, squeeze=False, most=limit + 1), limit)


def both_ends(text: str, limit: int) -> str:
    """Return `text` with its lines, as `printable` does. Of a longer one both ends stay.

    "…" ends the first part and begins the second, on a line of its own.

    Raises:
        ValueError: `limit` has no room for the two marks.
    """
    if limit < len(_GAP):
        raise ValueError(f"the limit is at least {len(_GAP)}")
    whole = _clean(text, lines=True, squeeze=False, most=limit + 1)
    if len(whole) <= limit:
        return whole
    half = (limit - 1) // 2
    return f"{_cut(whole, half)}\n{_cut_front(text, half)}"


def one_line(text: str, limit: int) -> str:
    """Return `text` as one line for a message: as `printable`, with runs of spaces made one."""
    return _cut(_clean(text, lines=False, squeeze=True, most=limit + 1), limit)


def in_words(value: object, words: Callable[[Any], str] = str) -> str:
    """Return what `words` makes of a value, or the name of its type if that raises."""
    try:
        return words(value)
    except Exception:  # noqa: BLE001  anything may raise here, and a report must not fail of it
        return f"<{type(value).__name__} that cannot be shown>"


def is_text(text: str) -> bool:
    """Say whether UTF-8 can encode a string. JSON can hold halves of characters, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write(stream: TextIO, text: str) -> None:
    """Write to a stream. A character that its encoding lacks becomes "?" instead of an error.

    Raises:
        OSError: the stream is full or closed.
    """
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        safe = text.encode(encoding, "replace").decode(encoding)
    except LookupError:  # the environment names an encoding that Python does not know
        safe = text.encode("ascii", "replace").decode("ascii")
    stream.write(safe)


def tolerate(stream: TextIO | None) -> None:
    """Make every later write to a stream of the process replace what its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _clean(text: str, *, lines: bool, squeeze: bool, most: int) -> str:
    """Return the first `most` kept characters."""
    kept: list[str] = []
    room = MAX_EXTENDERS if lines else 0  # extenders that the base before may still take
    space = False  # with squeeze: spaces that count only if something follows
    for piece in _pieces(text, lines=lines):
        if squeeze and piece == " ":
            space = bool(kept)
            room = MAX_EXTENDERS if space else 0
            continue
        if is_extender(piece):
            if room == 0:
                continue
            room -= 1
        else:
            room = MAX_EXTENDERS
        if space:
            kept.append(" ")
            space = False
        kept.extend(piece)
        if len(kept) >= most:
            break
    return "".join(kept[:most])


def _pieces(text: str, *, lines: bool) -> Iterator[str]:
    """Yield the characters that may stay, one by one, and a subdivision flag as one piece."""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character in _BREAKS:
            if character == "\r" and text[at : at + 1] == "\n":
                at += 1
            yield "\n" if lines else " "
        elif character == "\t":
            yield "\t" if lines else " "
        elif character == _BLACK_FLAG:
            tags = next((t for t in _FLAG_TAGS if text.startswith(t, at)), "")
            at += len(tags)
            yield character + tags
        elif not _is_dropped(character):
            yield character


def _is_dropped(character: str) -> bool:
    point = ord(character)
    if 0x20 <= point < 0x7F:
        return False
    return point & 0xFFFE == 0xFFFE or any(low <= point <= high for low, high in _DROPPED_RANGES)


def is_extender(character: str) -> bool:
    """Whether a character takes no place of its own: a combining mark or an invisible one."""
    return character in _INVISIBLE or (
        len(character) == 1 and unicodedata.category(character) in ("Mn", "Mc", "Me")
    )


def _cut(text: str, limit: int) -> str:
    if limit < 1:
        raise ValueError("the limit is at least 1")
    if len(text) <= limit:
        return text
    end = limit - len(ELLIPSIS)
    while end > 0 and not _may_cut(text, end):
        end -= 1
    return text[:end] + ELLIPSIS


def _cut_front(text: str, limit: int) -> str:
    # As many again come along in front: what belongs together is seen whole where it is cut. And
    # as many more as it takes, if most of them are dropped.
    window, tail = 2 * limit, ""
    while len(tail) < 2 * limit:
        tail = _clean(text[-window:], lines=True, squeeze=False, most=window)
        if window >= len(text):
            break
        window *= 4
    start = max(0, len(tail) - limit + len(ELLIPSIS))
    while start < len(tail) and not (start and _may_cut(tail, start)):
        start += 1
    return ELLIPSIS + tail[start:]


def _may_cut(text: str, at: int) -> bool:
    """Whether a reader sees two characters where `text[:at]` ends (UAX 29, on the safe side)."""
    before, after = text[at - 1], text[at]
    if is_extender(after) or before == _JOINER or _is_attached(after):
        return False
    if _is_regional(before) and _is_regional(after):
        start = at
        while start > 0 and _is_regional(text[start - 1]):
            start -= 1
        return (at - start) % 2 == 0
    if _is_leading_jamo(before) and (_is_leading_jamo(after) or "\uac00" <= after <= "\ud7a3"):
        return False
    return not _is_prepended(before) and not _ends_in_virama(text, at)


def _is_attached(character: str) -> bool:
    """What is drawn onto the character before it although Unicode does not call it a mark."""
    return (
        "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= character <= "\U000e007f"  # the inside of a subdivision flag
        or "\u1160" <= character <= "\u11ff"  # vowels and finals of a Hangul syllable
        or "\ud7b0" <= character <= "\ud7fb"
        or character in "\uff9e\uff9f"  # halfwidth voicing marks
    )


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_leading_jamo(character: str) -> bool:
    return "\u1100" <= character <= "\u115f" or "\ua960" <= character <= "\ua97c"


def _is_prepended(character: str) -> bool:
    """What is drawn around the digits or letters after it: mostly Arabic number signs."""
    if character in _PREPENDED_LETTERS:
        return True
    return character < "\U000e0000" and unicodedata.category(character) == "Cf"


def _ends_in_virama(text: str, at: int) -> bool:
    """A virama, with marks and joiners after it, binds the next consonant to the one before."""
    while at > 0 and is_extender(text[at - 1]):
        at -= 1
        if unicodedata.combining(text[at]) == 9:
            return True
    return False
