"""JSON from outside, held to a depth. Pure.

json.loads recurses in C, up to the interpreter's recursion limit. py_ecc, which comes with web3 and
eth-account, sets that limit to 100,000 when it is imported: a body of as many brackets then does
not raise RecursionError, it kills the process. Everything that parses what it did not write itself
comes here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

MAX_JSON_DEPTH: Final = 64
"""A chat request nests six deep, and so does a block with its transactions."""

# Strings are skipped whole, and an unterminated one to the end: no input is read twice.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def loads(data: bytes | str, *, max_depth: int = MAX_JSON_DEPTH, unique: bool = False) -> Any:
    """Parse UTF-8 JSON as RFC 8259 has it: `ValueError` when it is none, holds a number that is not
    finite, or is nested deeper than `max_depth`.

    unique: also refuse an object that names a member twice. Readers differ in which of the two they
    take, so what is judged here might not be what another one shows.
    """
    text = data if isinstance(data, str) else data.decode()
    if text.count("[") + text.count("{") > max_depth and _is_deeper(text, max_depth):
        raise ValueError(f"nested deeper than {max_depth}")
    pairs = _once if unique else None
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=pairs)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object names a member twice")
    return found


def _finite(literal: str) -> float:
    """1e999 reads as infinity, which json.dumps would hand on as text that is not JSON."""
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError("a number is out of range")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_deeper(text: str, limit: int) -> bool:
    depth = 0
    for token in _TOKEN.finditer(text):
        character = text[token.start()]
        if character in "[{":
            depth += 1
            if depth > limit:
                return True
        elif character != '"':
            depth -= 1
    return False
