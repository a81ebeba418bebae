"""Patterns of JSON schemas: ECMAScript's regular expressions, judged by the regex library. Pure.

What the two languages write differently is written anew: `$` is the end of a text and not also the
place before its last line break, and `\\u{1F600}` is one character.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import regex

MAX_KEPT: Final = 256
"""Patterns that are kept as they were written anew. A schema has 16,384 characters of them."""

_MARK = re.compile(r"\\u\{([0-9A-Fa-f]{1,6})\}|\\.|\[\^?\]?|\]|\$", re.DOTALL)
_GROUP_NAME = re.compile(r"(?<!\\)\(\?P?<(\w+)>")


@lru_cache(maxsize=MAX_KEPT)
def as_python(pattern: str) -> str:
    """Return a pattern as the regex library has it."""
    inside = False

    def written(found: re.Match[str]) -> str:
        nonlocal inside
        mark = found[0]
        if found[1] is not None:
            return f"\\U{int(found[1], 16):08x}"
        if mark == "$":
            return mark if inside else r"\Z"
        if mark[0] == "[":
            # A bracket in a class is a character. The first one behind its beginning is one too.
            inside = not (inside and mark[-1] == "]")
        elif mark == "]":
            inside = False
        return mark

    return _MARK.sub(written, pattern)


def check_pattern(pattern: str) -> None:
    """Check that a text is a pattern.

    Raises:
        ValueError: It is none, or has two groups of one name.
    """
    try:
        regex.compile(as_python(pattern))
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    names = _GROUP_NAME.findall(pattern)
    if len(set(names)) != len(names):
        raise ValueError("two groups have one name")


def is_found(pattern: str, text: str, timeout_s: float) -> bool:
    """Say whether a pattern is found in a text.

    Raises:
        TimeoutError: That takes longer.
    """
    return regex.search(as_python(pattern), text, timeout=timeout_s) is not None
