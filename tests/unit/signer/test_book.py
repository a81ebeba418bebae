"""Limits of a day: they survive restarts, and no clock gives them back."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.base.amounts import Token
from piecework.signer.book import BookError, DailyLimits, LimitBook
from piecework.signer.limits import DAY_S, RESERVED_SIGNATURES
from piecework.signer.policy import GAS, SIGNATURES, TOKENS, NotSigned, Use

NOON = 20_000 * DAY_S + DAY_S // 2
TOKEN = Token(bytes(20), "USD", 6)
LIMITS = DailyLimits(signatures=3 * RESERVED_SIGNATURES, wei=10**30, tokens=50, token=TOKEN)


def refused(book: LimitBook, now: int, use: Use) -> str:
    with pytest.raises(NotSigned) as caught:
        book.take(now, use)
    return caught.value.refusal


@pytest.mark.parametrize(
    ("use", "more", "refusal"),
    [
        (Use("a", wei=10**30), Use("b", wei=1), GAS),
        (Use("a", tokens=50), Use("b", tokens=1), TOKENS),
    ],
)
def test_an_amount_over_the_limit_is_refused_and_the_next_day_renews_it(
    tmp_path: Path, use: Use, more: Use, refusal: str
) -> None:
    book = LimitBook.open(tmp_path / "limits.db", LIMITS)
    book.take(NOON, use)
    assert refused(book, NOON, more) == refusal
    book.take(NOON, Use("free"))
    book.take(NOON + DAY_S, use)
    book.close()


def test_what_was_used_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    killed = LimitBook.open(path, LIMITS)
    killed.take(NOON, Use("a", wei=7, tokens=50))
    (tmp_path / "copy.db").write_bytes(path.read_bytes())
    killed.close()
    again = LimitBook.open(tmp_path / "copy.db", LIMITS)
    assert refused(again, NOON, Use("b", tokens=1)) == TOKENS
    assert again.left(NOON).wei == LIMITS.wei - 7
    again.close()


def test_a_kill_costs_no_more_signatures_than_are_counted_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "limits.db"
    killed = LimitBook.open(path, LIMITS)
    killed.take(NOON, Use("a"))
    (tmp_path / "copy.db").write_bytes(path.read_bytes())
    killed.close()
    again = LimitBook.open(tmp_path / "copy.db", LIMITS)
    assert again.left(NOON).signatures == LIMITS.signatures - RESERVED_SIGNATURES
    again.close()
    closed = LimitBook.open(path, LIMITS)
    assert closed.left(NOON).signatures == LIMITS.signatures - 1
    closed.close()


def test_signatures_end_with_the_limit(tmp_path: Path) -> None:
    book = LimitBook.open(tmp_path / "limits.db", DailyLimits(3, 0, 0, TOKEN))
    for _ in range(3):
        book.take(NOON, Use("a"))
    assert refused(book, NOON, Use("a")) == SIGNATURES
    book.close()


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_goes_back_gives_nothing_back(tmp_path: Path, *, restart: bool) -> None:
    path = tmp_path / "limits.db"
    book = LimitBook.open(path, LIMITS)
    book.take(NOON - DAY_S, Use("a", tokens=50))
    book.take(NOON, Use("a", tokens=50))
    if restart:
        book.close()
        book = LimitBook.open(path, LIMITS)
    for back in (NOON - 1, NOON - DAY_S, NOON - 100 * DAY_S, 0):
        assert refused(book, back, Use("b", tokens=1)) == TOKENS
        assert book.left(back).renews_at == NOON + DAY_S // 2
    book.close()


def test_two_processes_do_not_count_side_by_side(tmp_path: Path) -> None:
    book = LimitBook.open(tmp_path / "limits.db", LIMITS)
    with pytest.raises(BookError):
        LimitBook.open(tmp_path / "limits.db", LIMITS)
    book.close()


@pytest.mark.parametrize("content", [b"no database at all, but text" * 100])
def test_a_damaged_journal_signs_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "limits.db").write_bytes(content)
    with pytest.raises(BookError):
        LimitBook.open(tmp_path / "limits.db", LIMITS)
