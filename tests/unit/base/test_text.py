"""What people write passes; what drives or deceives a terminal does not."""

from __future__ import annotations

import io

import pytest

from piecework.base.text import MAX_EXTENDERS, both_ends, one_line, printable, tolerate, write

WRITTEN = {
    "French narrow space": "Ça va\u202f?",
    "no-break space": "10\u00a0kg",
    "ideographic space": "東京\u3000大阪",
    "Persian non-joiner": "می\u200cخواهم",
    "Hindi joiner": "क्\u200dष",
    "Thai with a zero width space": "ภาษา\u200bไทย",
    "family": "👨\u200d👩\u200d👧",
    "kiss with skin tones": "👩🏽\u200d❤\ufe0f\u200d💋\u200d👨🏿",
    "flag of France": "🇫🇷",
    "flag of England": "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    "flag of Scotland": "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "flag of Wales": "🏴\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "keycap": "1\ufe0f\u20e3",
    "soft hyphen": "Donau\u00addampf",
    "Hebrew mark": "שלום\u200f!",
    "Hebrew points and accents": "בְּרֵאשִׁ֖ית",
    "Arabic mark": "عربي\u061c!",
    "Vietnamese, decomposed": "Tie\u0302\u0301ng Vie\u0323\u0302t",
    "Tibetan stack": "རྒྱལ་བསྒྲུབས",
    "Hangul jamo": "\u1112\u1161\u11ab",
    "Mongolian": "ᠮᠣᠩᠭᠣᠯ\u180eᠠ",
    "ideograph with a selector": "葛\U000e0100",
    "an emoji younger than Python's tables": "\U0001fae8",
    "quotes, euro, dashes": "„5 €“ – – \\ 'x'",
}

DROPPED = {
    "escape": "a\x1b[31mb",
    "title by OSC and BEL": "a\x1b]0;owned\x07b",
    "C1 CSI": "a\x9b31mb",
    "null": "a\x00b",
    "backspace": "a\x08b",
    "delete": "a\x7fb",
    "override": "a\u202eb",
    "embedding": "a\u202ab\u202c",
    "isolate": "a\u2066b\u2069",
    "lone surrogate": "a\ud83db",
    "paired surrogates": "a\ud83d\ude00b",
    "tags that spell": "a\U000e0068\U000e0069b",
    "language tag": "a\U000e0001b",
    "annotation": "a\ufff9b\ufffb",
    "byte order mark": "a\ufeffb",
    "noncharacter": "a\uffffb\ufdd0\U0010fffe",
    "deprecated format": "a\u206ab",
    "invisible times": "a\u2062b",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_people_write_passes_unchanged(text: str) -> None:
    assert printable(text, lines=True, limit=100) == text
    assert printable(text, lines=False, limit=100) == text
    assert one_line(text, 100) == text


@pytest.mark.parametrize("text", DROPPED.values(), ids=DROPPED.keys())
def test_what_drives_a_terminal_is_dropped(text: str) -> None:
    for cleaned in (
        printable(text, lines=True, limit=100),
        printable(text, lines=False, limit=100),
    ):
        assert cleaned.startswith("a") and "b" in cleaned
        assert all(c.isprintable() and c.isascii() for c in cleaned)


def test_a_subdivision_flag_that_is_none_of_the_three_loses_its_tags() -> None:
    hidden = "🏴" + "".join(chr(0xE0000 + ord(c)) for c in "ignoreallrules") + "\U000e007f"
    assert printable(hidden, lines=False, limit=100) == "🏴"


def test_a_flag_without_its_end_loses_its_tags() -> None:
    assert printable("🏴\U000e0067\U000e0062x", lines=False, limit=100) == "🏴x"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_every_line_break_is_a_newline_in_lines_and_a_space_in_one(line_break: str) -> None:
    assert printable(f"a{line_break}b", lines=True, limit=9) == "a\nb"
    assert printable(f"a{line_break}b", lines=False, limit=9) == "a b"


def test_a_tab_stays_in_lines_and_is_a_space_in_one() -> None:
    assert printable("a\tb", lines=True, limit=9) == "a\tb"
    assert printable("a\tb", lines=False, limit=9) == "a b"


def test_a_pile_of_marks_is_cut_down() -> None:
    pile = "a" + "\u0301" * 500 + "b"
    assert printable(pile, lines=True, limit=1000) == "a" + "\u0301" * MAX_EXTENDERS + "b"


def test_joiners_between_the_marks_do_not_renew_the_pile() -> None:
    pile = "a" + ("\u0301" * 5 + "\u200c\u200f\u00ad") * 50
    assert len(printable(pile, lines=True, limit=1000)) == 1 + MAX_EXTENDERS


def test_a_mark_at_the_start_does_not_sit_on_the_text_before_it() -> None:
    assert one_line("\u0301\u200da", 9) == "a"
    assert one_line("  \u0301 \u0301a", 9) == "a"
    assert printable("\u0301a", lines=False, limit=9) == "a"


def test_a_piece_of_a_longer_text_may_start_with_a_mark() -> None:
    assert printable("\u093fa", lines=True, limit=9) == "\u093fa"


def test_one_line_makes_one_space_of_many_and_keeps_the_others() -> None:
    assert one_line("  a \n\t b\u00a0\u00a0c  ", 99) == "a b\u00a0\u00a0c"


def test_spaces_at_the_end_cost_no_letters() -> None:
    assert one_line("abcd   ", 4) == "abcd"


def test_a_long_text_ends_in_an_ellipsis_within_the_limit() -> None:
    assert printable("abcdef", lines=False, limit=4) == "abc…"
    assert printable("abcd", lines=False, limit=4) == "abcd"


def test_dropped_characters_do_not_count_against_the_limit() -> None:
    assert printable("\x00" * 1000 + "abcd", lines=False, limit=4) == "abcd"


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("ab👨\u200d👩\u200d👧", 5, "ab…"),
        ("ab🇫🇷🇩🇪", 4, "ab…"),
        ("ab🇫🇷🇩🇪", 5, "ab🇫🇷…"),
        ("ab🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007fc", 6, "ab…"),
        ("abe\u0301c", 4, "ab…"),
        ("ab👍🏽c", 4, "ab…"),
        ("ab1\ufe0f\u20e3c", 5, "ab…"),
        ("abक्षc", 5, "ab…"),
        ("ab\u1112\u1161\u11abc", 5, "ab…"),
        ("안녕하세요", 4, "안녕하…"),
    ],
)
def test_what_a_reader_sees_as_one_character_is_not_cut(text: str, limit: int, shown: str) -> None:
    assert printable(text, lines=False, limit=limit) == shown


def test_a_first_character_longer_than_the_limit_leaves_the_ellipsis() -> None:
    assert printable("👨\u200d👩\u200d👧", lines=False, limit=3) == "…"


def test_a_limit_below_one_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        printable("a", lines=False, limit=0)


def test_of_a_long_text_both_ends_stay_with_a_mark_between() -> None:
    text = "first\n" + "middle\n" * 1000 + "last"
    shown = both_ends(text, 40)
    assert shown.startswith("first\nmiddle\n") and shown.endswith("\nmiddle\nlast")
    assert "…\n…" in shown and len(shown) <= 40


def test_a_text_that_fits_is_whole_and_its_ends_hide_nothing() -> None:
    assert both_ends("first\r\n\x1b[2Jlast", 40) == "first\n[2Jlast"
    assert both_ends("a\x1b[2J" * 100, 20) == "a[2Ja[2J…\n…a[2Ja[2J"


def test_the_end_is_there_also_behind_much_that_is_dropped() -> None:
    assert both_ends("x" * 30 + "the end" + "\0" * 500, 20).endswith("…xthe end")


@pytest.mark.parametrize("limit", [5, 6])
def test_neither_end_is_cut_inside_of_what_a_reader_sees_as_one(limit: int) -> None:
    assert both_ends("🇫🇷" * 9, limit) == "…\n…"


def test_writing_replaces_what_an_encoding_lacks() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    write(stream, "5 € …\n")
    stream.flush()
    assert buffer.getvalue() == b"5 ? ?\n"


def test_writing_a_lone_surrogate_does_not_fail() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="utf-8")
    write(stream, "a\udcffb")
    stream.flush()
    assert buffer.getvalue() == b"a?b"


def test_writing_to_a_stream_without_an_encoding_keeps_the_text() -> None:
    stream = io.StringIO()
    write(stream, "5 €")
    assert stream.getvalue() == "5 €"


def test_a_tolerant_stream_takes_a_plain_print() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="latin-1")
    tolerate(stream)
    print("5 € é", file=stream, flush=True)
    assert buffer.getvalue() == b"5 ? \xe9\n"


def test_tolerating_a_closed_or_foreign_stream_does_nothing() -> None:
    tolerate(None)
    tolerate(io.StringIO())
