"""Amounts carry the decimals and the symbol of their token, and lose nothing."""

from __future__ import annotations

import pytest

from piecework.base.amounts import AmountError, Token, TokenMismatch, native_coin

USDC = Token(b"\x01" * 20, "USDC", 6)
DAI = Token(b"\x02" * 20, "DAI", 18)
GUSD = Token(b"\x03" * 20, "GUSD", 2)
WHOLE = Token(b"\x04" * 20, "TICKET", 0)


@pytest.mark.parametrize(
    ("token", "units", "shown"),
    [
        (USDC, 0, "0.00 USDC"),
        (USDC, 1, "0.000001 USDC"),
        (USDC, 1_500_000, "1.50 USDC"),
        (USDC, -1_234_567_890_001, "-1,234,567.890001 USDC"),
        (DAI, 5 * 10**18, "5.00 DAI"),
        (DAI, 1, "0.000000000000000001 DAI"),
        (DAI, 5, "0.000000000000000005 DAI"),
        (GUSD, 5, "0.05 GUSD"),
        (GUSD, 500, "5.00 GUSD"),
        (WHOLE, 1234, "1,234 TICKET"),
        (Token(None, "A", 1), 15, "1.5 A"),
        (Token(None, "A", 36), 1, "0." + "0" * 35 + "1 A"),
    ],
)
def test_every_base_unit_is_shown(token: Token, units: int, shown: str) -> None:
    assert token.format(units) == shown


@pytest.mark.parametrize(
    ("token", "text", "units"),
    [
        (USDC, "5", 5_000_000),
        (USDC, "1.5", 1_500_000),
        (USDC, " 0.000001 ", 1),
        (USDC, ".5", 500_000),
        (USDC, "1.", 1_000_000),
        (USDC, "1.50000000000", 1_500_000),
        (USDC, "007", 7_000_000),
        (DAI, "5", 5 * 10**18),
        (DAI, "0.000000000000000001", 1),
        (GUSD, "5", 500),
        (GUSD, "5.05", 505),
        (WHOLE, "12", 12),
        (WHOLE, "12.0", 12),
        (WHOLE, str(2**128 - 1), 2**128 - 1),
    ],
)
def test_a_number_is_read_in_the_decimals_of_the_token(token: Token, text: str, units: int) -> None:
    assert token.parse(text) == units


@pytest.mark.parametrize(
    ("token", "text", "why"),
    [
        (USDC, "0.0000001", "USDC has 6 decimals, the smallest amount is 0.000001 USDC"),
        (GUSD, "1.234", "GUSD has 2 decimals, the smallest amount is 0.01 GUSD"),
        (WHOLE, "1.5", "TICKET has no decimals, the smallest amount is 1 TICKET"),
        (Token(None, "A", 1), "1.55", "A has 1 decimal,"),
        (USDC, "-1", "it is negative"),
        (USDC, "-.5", "it is negative"),
        (USDC, "1e6", "it has a sign or an exponent"),
        (USDC, "1.5E-3", "it has a sign or an exponent"),
        (USDC, "+1", "it has a sign or an exponent"),
        (USDC, "1,000", "without separators between thousands and with a point for decimals"),
        (USDC, "1 000", "without separators between thousands"),
        (USDC, "1_000", "without separators between thousands"),
        (USDC, "1,5", "with a point for decimals"),
        (USDC, "1.000.000", "without separators between thousands"),
        (USDC, "", "it is empty; write a plain number of USDC such as 1.5"),
        (WHOLE, "x", "write a plain number of TICKET such as 1"),
        (USDC, ".", "write a plain number"),
        (USDC, "5 EUR", "5 EUR is an amount of EUR, and this market pays in USDC"),
        (USDC, "٥", "is not an amount"),
        (USDC, "５", "is not an amount"),
        (USDC, "²", "is not an amount"),
        (USDC, "0x10", "write a plain number"),
        (USDC, "nan", "write a plain number"),
        (USDC, "inf", "write a plain number"),
        (USDC, "1" * 101, "it is too long"),
        (USDC, "9" * 90, "is too much"),
        (WHOLE, str(2**128), "is too much"),
        (USDC, "\x1b[2J", "is not an amount"),
    ],
)
def test_what_is_not_an_amount_is_refused_and_told_why(token: Token, text: str, why: str) -> None:
    with pytest.raises(AmountError) as caught:
        token.parse(text)
    line = str(caught.value)
    assert why in line
    assert "\x1b" not in line and len(line) < 250
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        ("tUSDC", "tUSDC"),
        ("1INCH", "1INCH"),
        ("USD₮0", "USD₮0"),
        ("₮", "₮"),
        ("$MYRO", "$MYRO"),
        ("🍣", "🍣"),
        ("円", "円"),
        ("Aave USDC", "AaveUSDC"),
        ("US\x1b[31mDC", "US[31mDC"),
        ("US\u202eDC", "USDC"),
        ("USDC\n9.99 sent", "USDC9.99sent"),
        ("A" * 100, "A" * 15 + "…"),
        ("", "0x01010101…"),
        ("000USDC", "0x01010101…"),
        (".5USDC", "0x01010101…"),
        (",000 USDC", "0x01010101…"),
        ("-USDC", "0x01010101…"),
        ("\u0301USDC", "USDC"),
        ("7", "0x01010101…"),
        ("\ud800", "0x01010101…"),
        (" ", "0x01010101…"),
    ],
)
def test_a_symbol_from_a_contract_cannot_change_the_number(symbol: str, shown: str) -> None:
    assert Token(b"\x01" * 20, symbol, 6).symbol == shown


@pytest.mark.parametrize("decimals", [-1, 37, 255])
def test_decimals_that_no_token_has_are_refused(decimals: int) -> None:
    with pytest.raises(ValueError, match="0 to 36 decimals"):
        Token(None, "A", decimals)


def test_an_address_has_twenty_bytes() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        Token(b"\x01", "A", 6)


def test_a_price_names_what_it_is_for() -> None:
    assert USDC.format_price(200_000) == "0.20 USDC per million tokens"
    assert DAI.format_price(1, "thousand steps") == ("0.000000000000000001 DAI per thousand steps")


def test_the_native_coin_is_shown_from_wei() -> None:
    assert native_coin("ETH").format(12_300_000_000_000_000) == "0.0123 ETH"
    assert native_coin().format(10**18) == "1.00 coin"
    assert native_coin("").symbol == "coin"


def test_amounts_of_one_token_add_and_compare() -> None:
    two, one = USDC.amount(2), USDC.amount(1)
    assert (two + one).units == 3
    assert (one - two).units == -1
    assert one < two
    assert one <= two
    assert not two <= one
    assert str(two) == "0.000002 USDC"


def test_amounts_of_two_tokens_do_not_mix() -> None:
    a, b = USDC.amount(1), DAI.amount(1)
    for mix in (a.__add__, a.__sub__, a.__lt__, a.__le__):
        with pytest.raises(TokenMismatch, match="amounts of two tokens"):
            mix(b)
