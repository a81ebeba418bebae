"""Amounts in settings carry their unit. What could be base units is refused with both readings."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.base.amounts import MAX_UNITS, Token
from piecework.base.errors import SettingsError
from piecework.base.settings import Settings, Variables, check, describe
from piecework.base.written_amounts import WrittenAmount, amount_fields, base_units, weight

USD = Token(b"\x11" * 20, "USD", 6)
COARSE = Token(b"\x22" * 20, "ONE", 0)
INCH = Token(b"\x33" * 20, "1INCH", 18)


class Purse(Settings):
    """Settings with two amounts."""

    deposit: WrittenAmount = "0.1"
    limit: WrittenAmount | None = None
    name: str = ""


def units(written: Any, token: Token = USD) -> int | None:
    return base_units(check(Purse, {"deposit": written}), "deposit", token)


@pytest.mark.parametrize(
    ("written", "token", "expected"),
    [
        ("1.5 USD", USD, 1_500_000),
        ("  1.5   USD ", USD, 1_500_000),
        ("2 USD", USD, 2_000_000),
        ("2.0", USD, 2_000_000),
        ("2.", USD, 2_000_000),
        (".5", USD, 500_000),
        ("0", USD, 0),
        (0, USD, 0),
        ("3 ONE", COARSE, 3),
        ("3.0", COARSE, 3),
        ("1 1INCH", INCH, 10**18),
    ],
)
def test_an_amount_with_its_unit_is_read(written: Any, token: Token, expected: int) -> None:
    assert units(written, token) == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("200000", 'Write "200000 USD" if these are tokens, or "0.20 USD" if these are base units'),
        (1_500_000, '"1500000 USD" if these are tokens, or "1.50 USD" if these are base units'),
        ("1_000_000_000", "in quotes"),
        ("5 EUR", "amount of EUR, and this market pays in USD"),
        ("5 usd", "amount of usd, and this market pays in USD"),
        ("0.0000001", "USD has 6 decimals"),
        ("9" * 40 + ".0", "too much"),
        (0.5, 'such as "1.5 USD'),
        (True, 'such as "1.5 USD'),
        ("-1 USD", 'such as "1.5 USD'),
        ("1e6 USD", 'such as "1.5 USD'),
        ("1 USD or so", 'such as "1.5 USD'),
        ("", 'such as "1.5 USD'),
        ("1" * 100, 'such as "1.5 USD'),
        ([], "an amount"),
        ("١.٥", 'such as "1.5 USD'),
    ],
)
def test_what_is_not_an_amount_of_the_token_is_refused_by_name(written: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        units(written)
    assert words in str(caught.value) and "deposit" in str(caught.value)


@given(st.integers(1, MAX_UNITS), st.integers(0, 36))
def test_what_is_written_for_settings_is_read_back(amount: int, decimals: int) -> None:
    token = Token(b"\x44" * 20, "TOK", decimals)
    assert units(token.write(amount), token) == amount


@given(st.integers(1, 10**30), st.integers(1, 36))
def test_no_count_of_base_units_passes_for_tokens(amount: int, decimals: int) -> None:
    token = Token(b"\x44" * 20, "TOK", decimals)
    for written in (amount, str(amount)):
        with pytest.raises(SettingsError, match="has no unit"):
            units(written, token)


def test_a_default_that_is_less_than_a_base_unit_is_one() -> None:
    assert base_units(Purse(), "deposit", COARSE) == 1
    with pytest.raises(SettingsError, match="no decimals"):
        base_units(Purse(deposit="0.1"), "deposit", COARSE)


def test_what_is_not_set_and_has_no_default_is_none() -> None:
    assert base_units(Purse(), "limit", USD) is None
    with pytest.raises(SettingsError, match=r"limit: 2\.00 USD is more than 1\.00 USD"):
        base_units(Purse(limit="2 USD"), "limit", USD, most=10**6)


def test_a_weight_may_be_a_part_of_a_base_unit_and_needs_its_unit_too() -> None:
    assert weight(Purse(deposit="0.1"), "deposit", COARSE) == Decimal("0.1")
    with pytest.raises(SettingsError, match="has no unit"):
        weight(Purse(deposit="5"), "deposit", COARSE)


def test_amounts_are_named_as_such_where_settings_are_listed() -> None:
    assert amount_fields(Purse) == ("deposit", "limit")
    listed = {one.name: one.expected for one in describe(Purse, Variables("PURSE_"))}
    assert listed["deposit"] == 'an amount, such as "1.5 USDC"'
