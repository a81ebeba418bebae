"""Schemas as pydantic, zod and others write them, and what a good model answers to them."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.schema import parse_schema


def holds(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value holds a schema that is accepted."""
    return not parse_schema(schema, "schema").faults(value)


@pytest.mark.parametrize(
    ("pattern", "text", "holding"),
    [
        (r"^\p{L}+$", "Zoë", True),
        (r"^\p{L}+$", "4", False),
        (r"^(\p{Extended_Pictographic}|\p{Emoji_Component})+$", "\U0001f600", True),
        (r"^(?<year>\d{4})$", "2026", True),
        (r"^[\u{1F600}-\u{1F64F}]$", "\U0001f600", True),
        (r"^[\u{1F600}-\u{1F64F}]$", "x", False),
        (r"^\u00e9$", "é", True),
        (r"^\/api\/v1$", "/api/v1", True),
        (r"^\d{5}$", "12345", True),
        (r"^\d{5}$", "12345\n", False),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", "19.99", True),
        (r"^[$]\d+\$$", "$5$", True),
        (r"^[]$]+$", "]$", True),
        (r"^[\]$]+$", "]$", True),
        (r"^[[]a$", "[a", True),
    ],
)
def test_a_pattern_means_what_ecmascript_says(pattern: str, text: str, holding: bool) -> None:
    assert holds({"type": "string", "pattern": pattern}, text) is holding


@pytest.mark.parametrize("pattern", [r"\p{Nothing}", r"\u{110000}", "(", "(?<a>x)(?<a>y)"])
def test_a_pattern_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ApiError, match="is not a 'regex'"):
        parse_schema({"type": "string", "pattern": pattern}, "schema")
