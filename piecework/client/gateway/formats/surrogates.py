"""Lone surrogates in a body: escapes such as \\ud800 that are JSON and no text. Pure.

UTF-8 cannot encode them, so no content carries them, and many readers of JSON refuse an answer that
repeats one. So a body that has one anywhere is refused, before anything of it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from piecework.base.text import is_text
from piecework.client.gateway.formats.common import bad

NAMED_DEPTH: Final = 8
"""Levels of a body that the error names. Each costs one encoding of the part above it."""
NAMED_CHARACTERS: Final = 80
"""Of the place that the error names."""
# UTF-8 itself cannot hold a surrogate, so one has to come from an escape.
_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def may_have_surrogates(raw: bytes) -> bool:
    """Say whether a body has an escape of a surrogate, alone or in a pair."""
    return _ESCAPE.search(raw) is not None


def check_surrogates(body: Any) -> None:
    """Refuse a parsed body with a lone surrogate, in a text or in a member's name.

    Raises:
        ApiError: It has one (400). It names the place.
    """
    if _is_text(body):
        return
    where, part = "", body
    for _ in range(NAMED_DEPTH):
        found = next(((name, one) for name, one in _parts(part) if not _is_text(one)), None)
        if found is None or not _is_text(found[0]):
            break
        where, part = where + found[0], found[1]
    where = where.removeprefix(".")[:NAMED_CHARACTERS]
    bad(f"{where or 'the body'} has lone surrogates", where or None)


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        return ((f".{name}", one) for name, one in value.items())
    return ((f"[{i}]", one) for i, one in enumerate(value)) if isinstance(value, list) else ()


def _is_text(value: Any) -> bool:
    """Say whether UTF-8 can encode a value."""
    return is_text(json.dumps(value, ensure_ascii=False))
