"""Whatever a model writes into the slots, an answer is valid or still open."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from piecework.client.gateway.formats.schema import parse_schema
from piecework.client.gateway.formats.skeleton import Slot, SlotKind, skeleton
from piecework.client.gateway.formats.structured import Filling
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.text import TextContent

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.sampled_from(["string", "integer", "number", "boolean", "null"])


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Strict objects of some properties."""
    return st.dictionaries(NAMES, inner, max_size=3).map(
        lambda properties: {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
    )


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists, some of a fixed length."""
    lengths = st.sampled_from(
        [{}, {"minItems": 2, "maxItems": 2}, {"maxItems": 0}, {"minItems": 1}]
    )
    return st.tuples(inner, lengths).map(
        lambda both: {"type": "array", "items": both[0], **both[1]}
    )


SCHEMAS = st.recursive(
    SCALARS.map(lambda name: {"type": name})
    | st.lists(st.none() | st.booleans() | NAMES, min_size=1, max_size=3).map(lambda v: {"enum": v})
    | NAMES.map(lambda value: {"const": value})
    | st.just({}),
    lambda inner: (
        objects(inner)
        | arrays(inner)
        | st.lists(inner, min_size=1, max_size=2).map(lambda both: {"anyOf": both})
    ),
    max_leaves=8,
)


def value_of(schema: Any, draw: Any) -> Any:
    """A value that holds a schema of those above."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw(st.sampled_from(schema["enum"]))
    if "anyOf" in schema:
        return value_of(draw(st.sampled_from(schema["anyOf"])), draw)
    if not schema:
        return draw(st.none() | st.integers() | NAMES)
    kind = schema["type"]
    if kind == "object":
        return {name: value_of(inner, draw) for name, inner in schema["properties"].items()}
    if kind == "array":
        least = schema.get("minItems", 0)
        count = draw(st.integers(least, schema.get("maxItems", least + 2)))
        return [value_of(schema["items"], draw) for _ in range(count)]
    scalars: dict[str, st.SearchStrategy[Any]] = {
        "string": NAMES,
        "integer": st.integers(),
        "number": st.floats(allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return draw(scalars[kind])


def at(document: Any, slot: Slot) -> str:
    """What a document has at a slot, as a model writes it there."""
    for step in slot.path:
        document = document[step]
    written = json.dumps(document, ensure_ascii=False)
    return written if slot.kind is SlotKind.VALUE else written[1:-1]


@given(SCHEMAS, st.data())
def test_slots_filled_with_values_that_hold_make_a_document_that_holds(
    raw: Any, data: st.DataObject
) -> None:
    schema = parse_schema(raw, "schema")
    document = value_of(raw, data.draw)
    filling = Filling.of(schema, None)
    assert filling is not None
    text = "".join(
        piece if isinstance(piece, str) else at(document, piece) for piece in skeleton(schema)
    )
    Draft202012Validator(raw).validate(json.loads(text))
    assert json.loads(text) == document


@given(SCHEMAS, st.lists(st.text(max_size=12), max_size=6), st.data())
def test_whatever_is_written_the_document_holds_or_is_open_and_grows(
    raw: Any, garbage: list[str], data: st.DataObject
) -> None:
    filling = Filling.of(parse_schema(raw, "schema"), None)
    assert filling is not None
    for attempt in range(5):
        if attempt > 1:
            filling = filling.narrowed(few_numbers=attempt > 2)
        for path, question in filling.questions if attempt else ():
            choice = data.draw(st.integers(0, len(question.labels) - 1))
            filling = filling.decided({path: choice})
        if filling.done:
            break
        TextContent(Conversation((Message("user", "x"),)), filling.template)  # a real template
        parts = [
            piece
            if isinstance(piece, str)
            else piece.front + data.draw(st.sampled_from([*garbage, "1", "null", "true", '"a"']))
            for piece in filling.pieces
        ]
        filling = filling.take("".join(parts))
    if filling.done:
        Draft202012Validator(raw).validate(json.loads(filling.document))
    else:
        assert filling.why


@given(SCHEMAS, st.text(max_size=200))
def test_a_text_that_is_no_document_breaks_nothing(raw: Any, text: str) -> None:
    filling = Filling.of(parse_schema(raw, "schema"), None)
    assert filling is not None
    if filling.done:
        return
    after = filling.take(text)
    if after.done:
        Draft202012Validator(raw).validate(json.loads(after.document))
