"""Schemas as pydantic, zod and others write them, and what a good model answers to them."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.schema import parse_schema
from piecework.client.gateway.formats.skeleton import skeleton


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


@pytest.mark.parametrize(
    ("number", "step", "holding"),
    [
        (19.99, 0.01, True),
        (0.3, 0.1, True),
        (1.1, 0.1, True),
        (1e-7, 1e-9, True),
        (4, 0.5, True),
        (1e300, 0.01, True),
        (19.995, 0.01, False),
        (0.35, 0.1, False),
        (2.5, 2, False),
        (35, 5, True),
        (36, 5, False),
        (10**30 + 1, 10, False),
    ],
)
def test_a_multiple_is_one_in_decimals(number: float, step: float, holding: bool) -> None:
    """As floats, 19.99 is not a multiple of 0.01."""
    assert holds({"type": "number", "multipleOf": step}, number) is holding


def test_a_truth_value_has_no_multiples() -> None:
    assert holds({"multipleOf": 0.4}, True)


@pytest.mark.parametrize(
    ("kind", "text", "holding"),
    [
        ("time", "14:30:00", True),
        ("time", "14:30:00Z", True),
        ("time", "14:30:00.25+02:00", True),
        ("time", "14:30", False),
        ("time", "25:30:00", False),
        ("time", "noon", False),
        ("duration", "PT1H30M", True),
        ("duration", "P1DT0.5S", True),
        ("duration", "P2W", True),
        ("duration", "-P1D", True),
        ("duration", "P", False),
        ("duration", "P1DT", False),
        ("duration", "an hour", False),
        ("uri", "https://example.com/a?b=c#d", True),
        ("uri", "https://de.wikipedia.org/wiki/Köln", True),
        ("uri", "mailto:a@example.com", True),
        ("uri", "a fox", False),
        ("uri", "www.example.com", False),
        ("uri", "https://example.com/a b", False),
        ("hostname", "relay-1.example.com", True),
        ("hostname", "localhost", True),
        ("hostname", "-a.example.com", False),
        ("hostname", "a fox", False),
        ("path", "whatever pydantic calls a format", True),
    ],
)
def test_a_string_is_judged_by_the_formats_that_pydantic_and_zod_write(
    kind: str, text: str, holding: bool
) -> None:
    assert holds({"type": "string", "format": kind}, text) is holding


@pytest.mark.parametrize("kind", ["time", "duration", "uri", "hostname", "date-time"])
def test_a_format_says_nothing_about_other_kinds(kind: str) -> None:
    assert holds({"format": kind}, 5)


PAIR: list[dict[str, Any]] = [{"type": "integer"}, {"type": "string"}]


@pytest.mark.parametrize("name", ["draft-07", "draft-04"])
def test_a_tuple_of_an_older_draft_is_one_of_today(name: str) -> None:
    """zod, as the AI SDK sends it, writes tuples so."""
    older = {
        "$schema": f"http://json-schema.org/{name}/schema#",
        "type": "object",
        "properties": {"a": {"type": "array", "items": PAIR, "minItems": 2, "maxItems": 2}},
    }
    assert holds(older, {"a": [1, "x"]})
    assert not holds(older, {"a": ["x", 1]})
    pieces = skeleton(parse_schema(older, "schema"))
    assert [piece for piece in pieces if isinstance(piece, str)] == ['{"a": [', ', "', '"]}']


@pytest.mark.parametrize(
    ("schema", "value", "holding"),
    [
        ({"items": PAIR, "additionalItems": False}, [1, "x"], True),
        ({"items": PAIR, "additionalItems": False}, [1, "x", 2], False),
        ({"items": PAIR, "additionalItems": {"type": "null"}}, [1, "x", None], True),
        ({"items": PAIR, "additionalItems": {"type": "null"}}, [1, "x", 2], False),
        ({"items": PAIR}, [1, "x", 2], True),
        ({"items": [{"items": PAIR}]}, [["x"]], False),
        ({"items": [], "additionalItems": False}, [], True),
        ({"items": [], "additionalItems": False}, [1], False),
        ({"items": {"type": "integer"}, "additionalItems": False}, [1, 2], True),
        ({"items": {"type": "integer"}, "additionalItems": {"type": "null"}}, [None], False),
        ({"additionalItems": False}, [1, 2], True),
    ],
)
def test_more_items_than_a_tuple_has_are_judged_as_its_draft_says(
    schema: dict[str, Any], value: Any, holding: bool
) -> None:
    assert holds({"type": "array", **schema}, value) is holding


def test_a_tuple_that_is_named_in_both_ways_is_refused() -> None:
    with pytest.raises(ApiError, match="is not of type 'object'"):
        parse_schema({"items": PAIR, "prefixItems": PAIR}, "schema")


def test_a_reference_into_a_tuple_of_an_older_draft_leads_to_its_item() -> None:
    """zod refers to a part that comes twice by its first place."""
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": PAIR},
            "b": {"$ref": "#/properties/a/items/1"},
        },
    }
    assert holds(schema, {"b": "x"})
    assert not holds(schema, {"b": 1})


def test_the_items_of_a_tuple_of_an_older_draft_count_as_parts() -> None:
    with pytest.raises(ApiError, match="at most 4096 parts"):
        parse_schema({"items": [{}] * 5000}, "schema")


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        ({"type": "string", "nullable": True}, ["a", None], [1]),
        ({"type": "string", "nullable": False}, ["a"], [None]),
        ({"type": "string", "enum": ["a"], "nullable": True}, ["a", None], ["b"]),
        ({"$ref": "#/$defs/n", "nullable": True}, [1, None], ["a"]),
        ({"allOf": [{"$ref": "#/$defs/n"}], "nullable": True}, [1, None], ["a"]),
        ({"const": 1, "type": "integer", "nullable": True}, [1, None], [2]),
        ({"type": "array", "items": {"type": "integer", "nullable": True}}, [[1, None]], [["a"]]),
        ({"type": "integer", "example": 4}, [1], ["a"]),
    ],
)
def test_openapi_schemas_are_understood(node: Any, good: list[Any], bad: list[Any]) -> None:
    schema = parse_schema(
        {
            "$id": "https://example.org/schema",
            "$defs": {"n": {"type": "integer"}},
            "type": "object",
            "properties": {"a": node},
            "required": ["a"],
        },
        "schema",
    )
    assert [value for value in good if schema.faults({"a": value})] == []
    assert [value for value in bad if not schema.faults({"a": value})] == []
    assert skeleton(schema)


def test_a_property_may_be_named_as_a_keyword_of_openapi() -> None:
    schema = parse_schema(
        {"type": "object", "properties": {"nullable": {"type": "boolean"}, "example": {}}}, "schema"
    )
    assert schema.faults({"nullable": 1})
    assert not schema.faults({"nullable": True, "example": 3})
