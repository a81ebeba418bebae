"""Reading what was written gives the same money, for every token."""

from __future__ import annotations

from decimal import Decimal, localcontext

from hypothesis import given
from hypothesis import strategies as st

from piecework.base.amounts import MAX_UNITS, AmountError, Token

TOKENS = st.builds(lambda d: Token(None, "COIN", d), st.integers(0, 36))


@given(TOKENS, st.integers(0, MAX_UNITS))
def test_what_is_shown_reads_back_as_the_same_money(token: Token, units: int) -> None:
    assert token.parse(token.number(units).replace(",", "")) == units


@given(TOKENS, st.integers(-(2**256), 2**256))
def test_what_is_shown_is_the_exact_quotient(token: Token, units: int) -> None:
    with localcontext() as context:
        context.prec = 200
        shown = Decimal(token.number(units).replace(",", ""))
        assert shown * 10**token.decimals == units


@given(TOKENS, st.text(max_size=120))
def test_any_text_is_an_amount_in_bounds_or_an_error(token: Token, text: str) -> None:
    try:
        assert 0 <= token.parse(text) <= MAX_UNITS
    except AmountError as error:
        str(error).encode()


@given(st.text(max_size=60), st.integers(0, 36))
def test_any_symbol_gives_one_word_that_does_not_start_like_a_number(
    symbol: str, decimals: int
) -> None:
    token = Token(b"\x07" * 20, symbol, decimals)
    number, space, shown = token.format(5).partition(" ")
    assert (number, space) == (token.number(5), " ")
    assert 1 <= len(shown) <= 16
    assert shown[:2] == "0x" or not shown[:2].isdecimal()
    assert not any(c.isspace() for c in shown)
