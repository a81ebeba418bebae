"""The sanitizer against arbitrary code points, with the `regex` module's graphemes as the judge."""

from __future__ import annotations

import unicodedata

import regex
from hypothesis import example, given
from hypothesis import strategies as st

from piecework.base.text import (
    ELLIPSIS,
    MAX_EXTENDERS,
    both_ends,
    is_extender,
    one_line,
    printable,
)

FORBIDDEN = (
    {*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)}
    | {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029}
    | {*range(0xD800, 0xE000), *range(0xFDD0, 0xFDF0), *range(0xFFF9, 0xFFFC), 0xFEFF}
    | {plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)}
)
TAGS = range(0xE0000, 0xE0080)
# Where characters meet that belong together, and those that must not pass.
AWKWARD = st.sampled_from(
    "a \n\r\t\x1b\x9b\u0301\u0308\u200c\u200d\u200e\u202e\u2066\u00ad\ufe0f\u20e3\ud83d\ude00"
    "\u1112\u1161\u11ab안가क्षिमन្ក\u0d4e\u0600१👨👩👧🏽❤🇫🇷🇩🇪🏴"
    "\U000e0067\U000e0062\U000e0065\U000e006e\U000e007f\U000e0100"
)
FLAGS = st.sampled_from(
    [
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "👨\u200d👩\u200d👧",
        "👩🏽\u200d❤\ufe0f\u200d💋\u200d👨🏿",
        "🇫🇷",
    ]
)
TEXTS = st.lists(st.one_of(AWKWARD, FLAGS, st.characters()), max_size=60).map("".join)
LIMITS = st.integers(1, 40)


@given(TEXTS, LIMITS, st.booleans())
def test_cleaning_twice_is_cleaning_once(text: str, limit: int, lines: bool) -> None:
    once = printable(text, lines=lines, limit=limit)
    assert printable(once, lines=lines, limit=limit) == once
    line = one_line(text, limit)
    assert one_line(line, limit) == line
    assert printable(line, lines=False, limit=limit) == line


@given(TEXTS, LIMITS)
def test_nothing_forbidden_comes_out_and_utf8_takes_it(text: str, limit: int) -> None:
    for lines in (False, True):
        shown = printable(text, lines=lines, limit=limit)
        assert not {ord(c) for c in shown} & FORBIDDEN
        assert lines or not {"\n", "\t"} & set(shown)
        assert len(shown) <= limit
        shown.encode()


@given(TEXTS, st.integers(3, 40))
def test_both_ends_of_a_text_are_as_clean_and_within_the_limit(text: str, limit: int) -> None:
    shown, whole = both_ends(text, limit), printable(text, lines=True, limit=1000)
    assert not {ord(c) for c in shown} & FORBIDDEN
    assert len(shown) <= limit
    if len(whole) <= limit:
        assert shown == whole
    else:
        head, tail = shown.split(f"{ELLIPSIS}\n{ELLIPSIS}")[0], shown.rpartition(ELLIPSIS)[2]
        assert whole.startswith(head) and whole.endswith(tail)


@given(TEXTS)
def test_tags_come_out_only_inside_a_flag(text: str) -> None:
    shown = printable(text, lines=True, limit=1000)
    assert not {ord(c) for c in regex.sub(r"🏴[\U000e0061-\U000e007a]{5}\U000e007f", "", shown)} & {
        *TAGS
    }


@given(TEXTS)
def test_no_base_carries_more_than_the_bound(text: str) -> None:
    run = 0
    for character in printable(text, lines=True, limit=1000):
        run = run + 1 if is_extender(character) else 0
        assert run <= MAX_EXTENDERS


@given(TEXTS, LIMITS, st.booleans())
@example("ab👨\u200d👩\u200d👧", 5, False)
def test_the_cut_falls_between_two_graphemes(text: str, limit: int, lines: bool) -> None:
    whole = printable(text, lines=lines, limit=10_000)
    shown = printable(text, lines=lines, limit=limit)
    if len(whole) <= limit:
        assert shown == whole
        return
    assert shown.endswith(ELLIPSIS)
    kept = shown.removesuffix(ELLIPSIS)
    assert whole.startswith(kept)
    # A character that this Python does not know yet has no properties here.
    if all(unicodedata.category(c) != "Cn" for c in whole):
        ends = {match.end() for match in regex.finditer(r"\X", whole)}
        assert not kept or len(kept) in ends


@given(st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E)), LIMITS)
def test_plain_ascii_is_only_cut(text: str, limit: int) -> None:
    shown = printable(text, lines=False, limit=limit)
    assert shown == (text if len(text) <= limit else text[: limit - 1] + ELLIPSIS)
