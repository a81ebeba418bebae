"""Holders: what a chat template is rendered with in place of a stranger's strings.

A holder is four characters for private use, which no template writes and no filter such as
`upper`, `trim` or `tojson` changes. Holders sort as their strings do, so that a template that sorts
keys gives the order that it gives with the strings.

In a JSON schema the words of JSON Schema stay as they are, because templates look at them. They are
ours and not a stranger's: a fixed list. The names of properties are always held, whatever they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from piecework_model import limits
from piecework_model.errors import PromptError

_START: Final = 0xF0000
_DIGITS: Final = 0xF0100
_BASE: Final = 256
_HOLDER: Final = re.compile(
    f"{chr(_START)}([{chr(_DIGITS)}-{chr(_DIGITS + _BASE - 1)}]{{3}})",
)
_WORDS: Final = frozenset(
    (
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "description",
        "nullable",
        "title",
        "default",
        "format",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "const",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "pattern",
        "examples",
        "additionalProperties",
        "uniqueItems",
        "prefixItems",
    )
)
_TYPES: Final = frozenset(
    (
        "string",
        "number",
        "integer",
        "boolean",
        "object",
        "array",
        "null",
    )
)
_NAMED: Final = frozenset(("properties", "$defs", "definitions", "patternProperties"))
"""Their keys are names and not words of JSON Schema."""
_VALUES: Final = frozenset(("enum", "const", "default", "examples"))
"""What stands there is data and no schema."""

Hold = Callable[[str], str]


class Holders:
    """The holders of one conversation.

    Each content has a number of its own, its index. Other strings share one where they are equal.

    Raises:
        PromptError: There are too many strings, or one is not valid Unicode.
    """

    def __init__(self, contents: Sequence[str], others: Iterable[str]) -> None:
        self._texts = list(contents)
        found: set[str] = set()
        for count, text in enumerate(others):
            if count >= limits.MAX_TOOL_STRINGS:
                raise PromptError(
                    f"the tools have more than {limits.MAX_TOOL_STRINGS} strings with their calls"
                )
            found.add(text)
        found.discard("")
        for text in (*self._texts, *found):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise PromptError("the text contains a lone surrogate")
        # As `dictsort` compares.
        ordered = sorted(found, key=lambda text: (text.lower(), text))
        self._numbers = {
            text: number for number, text in enumerate(ordered, start=len(self._texts))
        }
        self._texts += ordered

    def number(self, text: str) -> int:
        """Return the number of a string that is not a content."""
        return self._numbers[text]

    def hold(self, text: str) -> str:
        """Return the holder of a string that is not a content. An empty one needs none."""
        return _holder(self._numbers[text]) if text else ""

    def content(self, index: int) -> str:
        """Return the holder of a content."""
        return _holder(index)

    def split(self, rendered: str) -> list[tuple[str, int | None]]:
        """Cut a rendered text at its holders. A part is the template's own text, without a number,
        or what a holder stands for, with its number. None is empty.

        Raises:
            PromptError: The template made a holder that stands for nothing.
        """
        parts: list[tuple[str, int | None]] = []
        for index, piece in enumerate(_HOLDER.split(rendered)):
            if index % 2 == 0:
                parts += [(piece, None)] if piece else []
                continue
            number = 0
            for digit in piece:
                number = number * _BASE + ord(digit) - _DIGITS
            if number >= len(self._texts):
                raise PromptError("the chat template writes characters for private use")
            parts.append((self._texts[number], number))
        return parts


def _holder(number: int) -> str:
    digits = (number // _BASE**2, number // _BASE % _BASE, number % _BASE)
    return chr(_START) + "".join(chr(_DIGITS + digit) for digit in digits)


def strings_of(value: Any) -> Iterator[str]:
    """Yield every string of a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings_of(item)


def hold_arguments(value: Any, hold: Hold) -> Any:
    """Put holders in place of all strings of a JSON value."""
    if isinstance(value, str):
        return hold(value)
    if isinstance(value, dict):
        return {hold(key): hold_arguments(item, hold) for key, item in value.items()}
    if isinstance(value, list):
        return [hold_arguments(item, hold) for item in value]
    return value


def hold_schema(value: Any, hold: Hold) -> Any:
    """Put holders in place of the strings of a JSON schema, except the words of JSON Schema."""
    if not isinstance(value, dict):
        return hold_arguments(value, hold)
    held: dict[str, Any] = {}
    for key, item in value.items():
        shown = key if key in _WORDS else hold(key)
        if key == "type":
            held[shown] = _types(item, hold)
        elif key in _NAMED and isinstance(item, dict):
            held[shown] = {hold(name): hold_schema(of, hold) for name, of in item.items()}
        elif key in _VALUES:
            held[shown] = hold_arguments(item, hold)
        elif isinstance(item, list):
            held[shown] = [hold_schema(one, hold) for one in item]
        else:
            held[shown] = hold_schema(item, hold)
    return held


def _types(value: Any, hold: Hold) -> Any:
    if isinstance(value, list):
        return [_types(one, hold) for one in value]
    return value if isinstance(value, str) and value in _TYPES else hold_arguments(value, hold)
