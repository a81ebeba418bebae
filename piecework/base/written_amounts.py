"""Amounts in settings, one rule for every program: a number of tokens with its unit.

`"1.5 USDC"` has the symbol of the market's token. `"1.5"` has a decimal point, which no count of
base units has. A bare whole number has no unit: it could be tokens or base units, and the two
differ by a factor of a million for most tokens. It is refused, and the error names what to write.
Zero is zero in every unit.

The token is known once the deployment is. Until then settings hold the text, with its form checked.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from piecework.base.amounts import MAX_SYMBOL_CHARACTERS, MAX_UNITS, AmountError, Token
from piecework.base.errors import SettingsError
from piecework.base.settings import Settings
from piecework.base.shapes import Words

MAX_CHARACTERS: Final = 60
_FORM: Final = re.compile(
    rf"(?=\.?[0-9])[0-9]*(?:\.[0-9]*)?(?:\s+\S{{1,{MAX_SYMBOL_CHARACTERS}}})?"
)
_HELP: Final = 'write an amount as a number of tokens in quotes, such as "1.5 USDC" or "1.5"'


def _form(value: object) -> object:
    """Check the form of an amount. A whole number without quotes waits for its token's error."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(_HELP)
    written = value.strip()
    if len(written) > MAX_CHARACTERS or not _FORM.fullmatch(written):
        raise ValueError(_HELP)
    return written


_WORDS: Final = Words('an amount, such as "1.5 USDC"')
WrittenAmount = Annotated[str, BeforeValidator(_form), _WORDS]
"""A number of tokens as a person writes it, with its symbol or a decimal point."""


def amount_fields(model: type[Settings]) -> tuple[str, ...]:
    """Return the settings of a model that are amounts."""
    return tuple(
        name
        for name, field in model.model_fields.items()
        if _WORDS in field.metadata or _WORDS in _metadata(field.annotation)
    )


def _metadata(annotation: Any) -> list[Any]:
    """The metadata of the alternatives of an annotation, such as `WrittenAmount | None`."""
    return [item for part in getattr(annotation, "__args__", ()) for item in _of(part)]


def _of(part: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = getattr(part, "__metadata__", ())
    return found


def base_units(settings: Settings, name: str, token: Token, most: int = MAX_UNITS) -> int | None:
    """Return an amount of the settings in base units. None: it is not set and has no default.

    A default that is less than one base unit of the token is one base unit.

    Raises:
        SettingsError: the amount has no unit, is of another token, has digits below a base unit, or
            is more than `most`.
    """
    written = getattr(settings, name)
    if written is None:
        return None
    try:
        if name in settings.model_fields_set:
            units = token.parse_with_unit(written)
        else:
            units = token.parse_rounded_up(written)
    except AmountError as error:
        raise SettingsError(f"{name}: {error}") from None
    if units > most:
        raise SettingsError(f"{name}: {token.format(units)} is more than {token.format(most)}")
    return units


def known_units(settings: Settings, name: str, token: Token, most: int = MAX_UNITS) -> int:
    """As `base_units`, for a setting that always has a value."""
    units = base_units(settings, name, token, most)
    if units is None:
        raise SettingsError(f"{name} is not set")
    return units


def weight(settings: Settings, name: str, token: Token) -> Decimal:
    """Return an amount that is never paid, in base units and parts of them.

    Raises:
        SettingsError: the amount has no unit, or is of another token.
    """
    written = getattr(settings, name)
    try:
        number = token.number_with_unit(written)
    except AmountError as error:
        raise SettingsError(f"{name}: {error}") from None
    return Decimal(number).scaleb(token.decimals)
