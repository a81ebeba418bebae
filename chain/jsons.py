"""JSON from outside, held to a depth. Pure.

json.loads recurses in C, up to the interpreter's recursion limit. py_ecc, which comes with web3 and
eth-account, sets that limit to 100,000 when it is imported: an answer of as many brackets then does not raise
RecursionError, it kills the process.
"""

from __future__ import annotations

import json
import re
from typing import Any

from chain.limits import MAX_JSON_DEPTH

# Strings are skipped whole, and an unterminated one to the end: no input is read twice.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON; `ValueError` when it is none, or is nested deeper than MAX_JSON_DEPTH."""
    text = data.decode()
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH}")
    return json.loads(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        character = text[token.start()]
        if character in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return depth
            deepest = max(deepest, depth)
        elif character != '"':
            depth -= 1
    return deepest
