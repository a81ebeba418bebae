"""Amounts of money that carry their token: its decimals and its symbol.

Money is counted in base units, a whole number. A token with 6 decimals has 10^6 base units in one
token. `Token.format` shows every base unit. It never rounds.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final, Self

from piecework.base.errors import UsageError
from piecework.base.text import one_line

MAX_DECIMALS: Final = 36
"""Real tokens have 0 to 24. More than this makes amounts that no person can read."""
MAX_UNITS: Final = 2**128 - 1
"""The largest amount of the protocol, in base units."""
MAX_SYMBOL_CHARACTERS: Final = 16
_MAX_WRITTEN_CHARACTERS: Final = 100
_SHOWN_DECIMALS: Final = 2
_NATIVE_DECIMALS: Final = 18


class AmountError(UsageError):
    """A text is not an amount of this token. The message says why."""


class TokenMismatch(UsageError):
    """Amounts of two tokens were put together."""


@dataclass(frozen=True, slots=True)
class Token:
    """What an amount is counted in.

    `address` has 20 bytes; None is the native coin of a chain. `symbol` comes from a contract that
    anybody may have written: it is cleaned, and one that could be read as a part of the number is
    replaced by the address.

    Raises:
        ValueError: `decimals` is not from 0 to 36, or `address` does not have 20 bytes.
    """

    address: bytes | None
    symbol: str
    decimals: int

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= MAX_DECIMALS:
            raise ValueError(f"a token has 0 to {MAX_DECIMALS} decimals, not {self.decimals}")
        if self.address is not None and len(self.address) != 20:
            raise ValueError("the address of a token has 20 bytes")
        object.__setattr__(self, "symbol", _symbol(self.symbol, self.address))

    def format(self, units: int) -> str:
        """Return base units as a person reads them, with the symbol: "1,234.50 USDC"."""
        return f"{self.number(units)} {self.symbol}"

    def number(self, units: int) -> str:
        """Return base units as a number of tokens: "1,234.50", with every digit that is not 0."""
        sign = "-" if units < 0 else ""
        whole, rest = divmod(abs(units), 10**self.decimals)
        digits = f"{rest:0{self.decimals}d}".rstrip("0") if self.decimals else ""
        digits = digits.ljust(min(_SHOWN_DECIMALS, self.decimals), "0")
        return f"{sign}{whole:,}.{digits}" if digits else f"{sign}{whole:,}"

    def format_price(self, units: int, per: str = "million tokens") -> str:
        """Return a price: "0.20 USDC per million tokens". `units` are base units for each `per`."""
        return f"{self.format(units)} per {per}"

    def write(self, units: int) -> str:
        """Return base units as settings have them: "1234.5 USDC", without marks for thousands."""
        return self.format(units).replace(",", "", self.number(units).count(","))

    def parse(self, text: str) -> int:
        """Return the base units of a number of tokens that a person wrote, such as "1.5".

        The symbol of the token may stand behind it: "1.5 USDC".

        Raises:
            AmountError: it is not a plain number, has digits below a base unit, is too large, or is
                an amount of another token.
        """
        return self._parse_number(self._without_symbol(text.strip()))

    def parse_with_unit(self, text: str) -> int:
        """As `parse`, for amounts where a count of base units may be meant.

        A whole number without the symbol and without a decimal point is refused. 0 is not.

        Raises:
            AmountError: as `parse`, or the unit is missing. The error names what to write.
        """
        return self._parse_number(self.number_with_unit(text))

    def number_with_unit(self, text: str) -> str:
        """Return the number of an amount of this token, after the check of `parse_with_unit`.

        Raises:
            AmountError: the unit is missing or another one.
        """
        written = text.strip()
        if written.isascii() and written.isdecimal() and int(written[:_MAX_WRITTEN_CHARACTERS]):
            meant = int(written[:_MAX_WRITTEN_CHARACTERS])
            raise AmountError(
                f'{one_line(written, 40)} has no unit. Write "{written[:40]} {self.symbol}" if '
                f'these are tokens, or "{self.write(meant)}" if these are base units'
            )
        return self._without_symbol(written)

    def parse_rounded_up(self, text: str) -> int:
        """Return the base units of a plain number of tokens. A part of a base unit is a whole one.

        Raises:
            AmountError: as `parse`, but for digits below a base unit.
        """
        whole, _, rest = text.strip().partition(".")
        kept, cut = rest[: self.decimals], rest[self.decimals :]
        return self._parse_number(f"{whole}.{kept}") + bool(cut.strip("0"))

    def _without_symbol(self, written: str) -> str:
        """The number of an amount. Its symbol, if there is one, must be this token's."""
        number, _, rest = written.partition(" ")
        symbol = rest.strip()
        if not _NUMBER.fullmatch(number) or not _is_believable(symbol):
            return written
        if symbol != self.symbol:
            text, own = one_line(written, 40), self.symbol
            other = one_line(symbol, 40)
            if self.address is None:
                raise AmountError(f"{text} is an amount of {other}, and gas is counted in {own}")
            raise AmountError(f"{text} is an amount of {other}, and this market pays in {own}")
        return number

    def _parse_number(self, written: str) -> int:
        shown = one_line(written, 40)
        match = _NUMBER.fullmatch(written) if len(written) <= _MAX_WRITTEN_CHARACTERS else None
        if match is None:
            raise AmountError(f"{shown!r} is not an amount: {self._why_not(written)}")
        whole, rest = match["whole"], (match["rest"] or "").rstrip("0")
        if len(rest) > self.decimals:
            raise AmountError(
                f"{shown} {self.symbol} cannot be paid: {self.symbol} has "
                f"{self._decimals()}, the smallest amount is {self.format(1)}"
            )
        units: int = int(whole or "0") * 10**self.decimals + int(
            rest.ljust(self.decimals, "0") or "0"
        )
        if units > MAX_UNITS:
            raise AmountError(
                f"{shown} {self.symbol} is too much: more than {self.format(MAX_UNITS)}"
            )
        return units

    def units_of(self, amount: TokenAmount | str) -> int:
        """Return the base units of an amount of this token, or of a number of tokens in a text.

        Raises:
            AmountError: the text is not an amount of this token.
            TokenMismatch: it is an amount of another token.
        """
        if isinstance(amount, str):
            return self.parse(amount)
        if amount.token != self:
            raise TokenMismatch(f"{amount} is not an amount of {self.symbol}")
        return amount.units

    def amount(self, units: int) -> TokenAmount:
        """Return base units of this token as a value that knows its token."""
        return TokenAmount(self, units)

    def _decimals(self) -> str:
        if self.decimals == 0:
            return "no decimals"
        return f"{self.decimals} decimal{'s' if self.decimals > 1 else ''}"

    def _why_not(self, text: str) -> str:
        """What is wrong with a text that is not a plain number."""
        plain = f"write a plain number of {self.symbol} such as {self._example()}"
        if not text:
            return f"it is empty; {plain}"
        if len(text) > _MAX_WRITTEN_CHARACTERS:
            return f"it is too long; {plain}"
        if _NUMBER.fullmatch(text.removeprefix("-")):
            return "it is negative"
        if text.startswith("+") or re.fullmatch(r"[+-]?[\d.]+[eE][+-]?\d+", text, re.ASCII):
            return f"it has a sign or an exponent; {plain}"
        if re.fullmatch(r"[\d.,'’_\s]+", text) and re.search(r"\d", text):
            return f"{plain}, without separators between thousands and with a point for decimals"
        return plain

    def _example(self) -> str:
        return "1.5" if self.decimals else "1"


@dataclass(frozen=True, slots=True)
class TokenAmount:
    """Base units of one token. Adding or comparing those of two tokens raises `TokenMismatch`."""

    token: Token
    units: int

    def __str__(self) -> str:
        return self.token.format(self.units)

    def __add__(self, other: TokenAmount) -> Self:
        return type(self)(self.token, self.units + self._units_of(other))

    def __sub__(self, other: TokenAmount) -> Self:
        return type(self)(self.token, self.units - self._units_of(other))

    def __lt__(self, other: TokenAmount) -> bool:
        return self.units < self._units_of(other)

    def __le__(self, other: TokenAmount) -> bool:
        return self.units <= self._units_of(other)

    def _units_of(self, other: TokenAmount) -> int:
        if other.token != self.token:
            raise TokenMismatch(f"{self} and {other} are amounts of two tokens")
        return other.units


def native_coin(symbol: str = "coin") -> Token:
    """Return the coin that pays for gas on an EVM chain. Its base unit is the wei."""
    return Token(None, symbol, _NATIVE_DECIMALS)


_NUMBER: Final = re.compile(r"(?=\.?[0-9])(?P<whole>[0-9]*)(?:\.(?P<rest>[0-9]*))?")


def _symbol(text: str, address: bytes | None) -> str:
    symbol = "".join(one_line(text, MAX_SYMBOL_CHARACTERS).split())
    if _is_believable(symbol):
        return symbol
    return "coin" if address is None else f"0x{address.hex()[:8]}…"


def _is_believable(symbol: str) -> bool:
    """Whether nobody can take the symbol for digits. "1INCH" is one, "000USDC" and ".5" are not."""
    first, second = symbol[:1], symbol[1:2]
    if "0" <= first <= "9":
        return second.isalpha()
    return first.isalpha() or (first != "" and unicodedata.category(first) in ("Sc", "So"))
