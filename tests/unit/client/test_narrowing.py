"""Slots that a model did not fill twice: what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from piecework.client.gateway.formats.narrowing import NUMBERS, narrowed, numbers
from piecework.client.gateway.formats.schema import JsonSchema, parse_schema
from piecework.client.gateway.formats.skeleton import Skeleton, Slot, SlotKind, skeleton
from piecework.client.gateway.formats.structured import MAX_REPAIRS, Filling

STRING: Any = {"type": "string"}
INTEGER: Any = {"type": "integer"}
NULL: Any = {"type": "null"}


def obj(**properties: Any) -> dict[str, Any]:
    """An object with these properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def shape(pieces: Skeleton) -> str:
    """A skeleton with its slots as <kind>, or with what they can hold."""
    return "".join(
        piece
        if isinstance(piece, str)
        else f"<{'|'.join(piece.options) or piece.front + piece.kind.name}>"
        for piece in pieces
    )


def after(schema: JsonSchema, *, few_numbers: bool = False) -> str:
    return shape(narrowed(schema, skeleton(schema), few_numbers=few_numbers))


class Counting(JsonSchema):
    """Counts how often a node is looked up."""

    followed = 0

    def resolved(self, node: Any) -> Any:
        Counting.followed += 1
        return super().resolved(node)


NODE = {
    "$defs": {"node": obj(value=INTEGER, next={"anyOf": [{"$ref": "#/$defs/node"}, NULL]})},
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (STRING, '"<TEXT>"'),
        ({"anyOf": [STRING, NULL]}, '"<TEXT>"'),
        ({"anyOf": [NULL, STRING]}, '"<TEXT>"'),
        ({"type": ["null", "string"]}, '"<TEXT>"'),
        ({"anyOf": [obj(x=STRING), obj(y=STRING)]}, '{"x": "<TEXT>"}'),
        ({"oneOf": [{"type": "array", "items": STRING}, NULL]}, "[<ITEMS>]"),
        ({"allOf": [obj(x=STRING), obj(y=INTEGER)]}, '{"x": "<TEXT>", "y": <VALUE>}'),
        ({**obj(x=STRING), "anyOf": [{"required": ["x"]}]}, '{"x": "<TEXT>"}'),
        ({}, '"<TEXT>"'),
        ({"not": {"const": "x"}}, '"<TEXT>"'),
        ({"allOf": [{"enum": ["a", "b"]}, {"title": "A"}]}, '"<a|b>"'),
        ({"type": ["string"]}, '"<TEXT>"'),
        ({"type": ["object"], "properties": {"x": STRING}}, '{"x": "<TEXT>"}'),
        ({"type": "array", "items": STRING}, '["<TEXT>"]'),
        ({"type": "array", "items": STRING, "maxItems": 0}, "[]"),
        ({"type": "array", "items": INTEGER, "minItems": 2}, "[<VALUE>, <VALUE>]"),
        ({"type": "array", "items": obj(x=STRING)}, '[{"x": "<TEXT>"}]'),
        ({"type": "array", "prefixItems": [STRING, INTEGER], "minItems": 2}, '["<TEXT>", <VALUE>]'),
        ({"type": "object"}, "{}"),
        ({"type": "object", "minProperties": 1}, "{<MEMBERS>}"),
        ({"type": "array", "items": INTEGER, "minItems": 65, "maxItems": 70}, "[<ITEMS>]"),
    ],
)
def test_a_slot_becomes_a_form_that_a_weak_model_can_fill(node: Any, expected: str) -> None:
    assert after(parse_schema(obj(a=node), "schema")) == f'{{"a": {expected}}}'


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 5}, "<1|2|3|4|5>"),
        ({"type": "integer", "minimum": 7, "maximum": 7}, "7"),
        ({"type": "integer", "minimum": 7, "maximum": 6}, "<VALUE>"),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, "<1|2>"),
        ({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 4}, NULL]}, "<3|4>"),
        ({"type": "number", "minimum": 0.5, "maximum": 0.5}, "0.5"),
    ],
)
def test_a_number_becomes_one_of_a_few(node: Any, expected: str) -> None:
    schema = parse_schema(obj(a=node), "schema")
    assert after(schema, few_numbers=True) == f'{{"a": {expected}}}'
    assert after(schema) == '{"a": <VALUE>}'


@pytest.mark.parametrize(
    ("node", "some"),
    [
        ({"type": "integer"}, {0, 7, 100}),
        ({"type": "number", "minimum": 0, "maximum": 1}, {0, 0.05, 0.9, 1}),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {0.05, 0.95}),
        ({"type": "integer", "minimum": 0, "maximum": 1000}, {0, 50, 1000}),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {0, 1}),
        ({"type": "integer", "minimum": 18}, {18, 118}),
        ({"type": "integer", "exclusiveMaximum": 0}, {-1, -10}),
        ({"type": "number", "multipleOf": 2.5}, {0, 5}),
        ({"type": "number", "minimum": 0, "maximum": 1e-9}, {0, 5e-10}),
        ({"type": "number", "minimum": -1e308, "maximum": 1e308}, {0, 100}),
    ],
)
def test_the_few_hold_the_bounds_and_are_spread(node: Any, some: set[float]) -> None:
    found = numbers(node)
    assert some <= set(found)
    assert len(set(found)) == len(found) <= len(NUMBERS) + 1
    assert not [n for n in found if JsonSchema(node).faults(json.loads(json.dumps(n)))]


def test_a_list_in_itself_ends_with_null() -> None:
    schema = parse_schema(NODE, "schema")
    assert after(schema) == '{"value": <VALUE>, "next": null}'


def tree(item: Any) -> dict[str, Any]:
    """A person with a list of `item`, as pydantic writes it."""
    person = obj(name=STRING, age=INTEGER, friends={"type": "array", "items": item})
    group = obj(title=STRING, members={"type": "array", "items": {"$ref": "#/$defs/person"}})
    return {"$defs": {"person": person, "group": group}, "$ref": "#/$defs/person"}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"$ref": "#/$defs/person"}, "[]"),
        ({"$ref": "#/$defs/group"}, '[{"title": "<TEXT>", "members": [<ITEMS>]}]'),
    ],
)
def test_a_list_of_what_it_stands_in_ends(item: Any, expected: str) -> None:
    schema = parse_schema(tree(item), "schema")
    first = narrowed(schema, skeleton(schema), few_numbers=False)
    head = '{"name": "<TEXT>", "age": <VALUE>, "friends": '
    assert shape(first) == f"{head}{expected}}}"
    last = shape(narrowed(schema, first, few_numbers=False))
    assert last == shape(first).replace("[<ITEMS>]", "[]")


def test_items_that_were_read_stay() -> None:
    schema = parse_schema(obj(a={"type": "array", "items": INTEGER, "minItems": 3}), "schema")
    filling = Filling.of(schema, None)
    assert filling is not None
    some = filling.take('{"a": [1, 2, three]}').narrowed(few_numbers=False)
    assert shape(some.pieces) == '{"a": [1, 2, <VALUE>]}'
    enough = filling.take('{"a": [1, 2, 3, four]}').narrowed(few_numbers=False)
    assert enough.document == '{"a": [1, 2, 3]}'


PEOPLE = [{"name": f"person number {n}", "address": f"{n} Long Street, Oslo"} for n in range(60)]


def room(slot: Slot) -> int:
    """Characters that a hole has room for, at two a token."""
    return 2 * slot.tokens


def repaired(schema: JsonSchema, write: Callable[[Slot], str], most: int | None = None) -> Filling:
    """A document after its repairs, as the gateway makes it. `write` is the model.

    Reads decide for the first of the values that there are.
    """
    filling = Filling.of(schema, most)
    assert filling is not None
    for attempt in range(1 + MAX_REPAIRS):
        if attempt > 1:
            filling = filling.narrowed(few_numbers=attempt > 2)
        if attempt and filling.questions:
            filling = filling.decided({path: 0 for path, _ in filling.questions})
        if filling.done:
            break
        filling = filling.take(
            "".join(p if isinstance(p, str) else p.front + write(p) for p in filling.pieces)
        )
        fitted = filling.fitted()
        if fitted is None:
            break
        filling = fitted
    return filling if filling.done else filling.ended()


def next_part(slot: Slot) -> str:
    """What comes next of PEOPLE, up to the room of a hole."""
    written = json.dumps(PEOPLE[len(slot.given) :])
    return (written if slot.kind is SlotKind.VALUE else written[1:-1])[: room(slot)]


@pytest.mark.parametrize("nullable", [False, True])
def test_a_list_that_fills_its_hole_goes_on_and_is_not_ended(nullable: bool) -> None:
    people = {"type": "array", "items": obj(name=STRING, address=STRING)}
    schema = parse_schema(obj(a={"anyOf": [people, NULL]} if nullable else people), "schema")
    filling = repaired(schema, next_part)
    assert filling.done
    assert json.loads(filling.document) == {"a": PEOPLE}


def test_a_value_of_the_second_kind_that_fills_its_hole_keeps_its_kind() -> None:
    people = {"type": "array", "items": obj(name=STRING, address=STRING)}
    schema = parse_schema(obj(a={"anyOf": [obj(x=STRING), people]}), "schema")
    filling = repaired(schema, next_part)
    assert json.loads(filling.document) == {"a": PEOPLE}


def test_a_list_that_fills_the_callers_limit_is_cut_there() -> None:
    people = {"type": "array", "items": obj(name=STRING, address=STRING)}
    filling = repaired(parse_schema(obj(a=people), "schema"), next_part, 600)
    assert not filling.done
    assert filling.is_cut
    kept = json.loads(filling.beginning.removesuffix(", ") + "]}")["a"]
    assert kept == PEOPLE[: len(kept)]
    assert kept


@pytest.mark.parametrize("most", [None, 600])
def test_a_list_without_end_is_ended_at_last(most: int | None) -> None:
    """Behind its good items. A caller's limit cuts it instead."""

    def again(slot: Slot) -> str:
        return ('"again", ' * slot.tokens)[: room(slot)]

    schema = parse_schema(obj(a={"type": "array", "items": STRING}), "schema")
    filling = repaired(schema, again, most)
    assert filling.done is (most is None)
    ended = filling.document if filling.done else filling.beginning.removesuffix(", ") + "]}"
    items = json.loads(ended)["a"]
    assert set(items) == {"again"}
    assert len(items) > 100


def test_an_object_without_end_is_ended_at_last() -> None:
    def members(slot: Slot) -> str:
        more = (f'"k{len(slot.given)}_{n}": "v", ' for n in range(slot.tokens))
        return "".join(more)[: room(slot)]

    free = {"type": "object", "additionalProperties": STRING}
    filling = repaired(parse_schema(obj(a=free), "schema"), members)
    assert set(json.loads(filling.document)["a"].values()) == {"v"}


def test_a_string_without_end_is_cut_beside_a_list() -> None:
    """The list alone could be ended."""

    def write(slot: Slot) -> str:
        return ("a fox and " if slot.kind is SlotKind.TEXT else '"again", ') * slot.tokens

    schema = parse_schema(obj(a=STRING, b={"type": "array", "items": STRING}), "schema")
    filling = repaired(schema, lambda slot: write(slot)[: room(slot)])
    assert not filling.done
    assert filling.is_cut


@pytest.mark.parametrize("most", [None, 400])
def test_a_value_without_end_becomes_narrower_at_last(most: int | None) -> None:
    def write(slot: Slot) -> str:
        endless = slot.kind is SlotKind.VALUE
        return ('{"y": ' * slot.tokens)[: room(slot)] if endless else "a fox"

    schema = parse_schema(obj(a={"anyOf": [obj(x=STRING), NULL]}), "schema")
    filling = repaired(schema, write, most)
    assert json.loads(filling.document) == {"a": {"x": "a fox"}}


def test_a_form_that_does_not_fit_the_token_limit_is_not_taken() -> None:
    inner = {"a long name of a property " + "x" * 60: STRING}
    schema = parse_schema(obj(a={"anyOf": [obj(**inner), NULL]}), "schema")
    filling = Filling.of(schema, 24)
    assert filling is not None
    assert filling.narrowed(few_numbers=True) is filling


def test_a_form_with_texts_longer_than_a_prompt_is_not_taken() -> None:
    const = {"const": "x" * 100_000}
    places = {f"p{i}": {"$ref": "#/$defs/C"} for i in range(2000)}
    schema = parse_schema({"$defs": {"C": const}, **obj(a={"anyOf": [obj(**places), NULL]})}, "s")
    filling = Filling.of(schema, None)
    assert filling is not None
    assert filling.narrowed(few_numbers=False) is filling


def test_a_form_with_too_many_parts_is_not_taken() -> None:
    row = {"type": "array", "minItems": 64, "maxItems": 64, "items": STRING}
    table = {"type": "array", "minItems": 64, "maxItems": 64, "items": row}
    schema = parse_schema(obj(a={"anyOf": [table, NULL]}), "schema")
    filling = Filling.of(schema, None)
    assert filling is not None
    assert filling.narrowed(few_numbers=False) is filling


def test_alternatives_around_many_slots_are_put_together_once() -> None:
    places = {f"p{i}": {"type": "string", "maxLength": 3} for i in range(200)}
    schema = parse_schema({"anyOf": [obj(**places), NULL]}, "schema")
    form = narrowed(schema, skeleton(schema), few_numbers=False)
    counting = Counting(schema.root)
    assert narrowed(counting, form, few_numbers=True) == form
    assert Counting.followed < 600


def test_a_document_of_a_model_that_writes_no_json_holds() -> None:
    """The kinds of fields that frameworks write, filled by a model that only writes words."""
    schema = parse_schema(
        obj(
            name=STRING,
            age=INTEGER,
            share={"type": "number", "minimum": 0, "maximum": 1},
            nick={"anyOf": [STRING, NULL]},
            size={"anyOf": [INTEGER, NULL]},
            tone={"anyOf": [{"enum": ["calm", "loud"]}, NULL]},
            born={"type": "string", "format": "date"},
            seen={"anyOf": [{"type": "string", "format": "date-time"}, NULL]},
            woken={"type": "string", "format": "time"},
            slept={"type": "string", "format": "duration"},
            tags={"type": "array", "items": STRING},
            marks={"type": "array", "items": INTEGER, "minItems": 2},
            parts={"type": "array", "items": obj(x={"anyOf": [INTEGER, NULL]})},
            more={"type": "object", "additionalProperties": STRING},
            any={},
        ),
        "schema",
    )
    filling = repaired(schema, lambda _: "a fox")
    document = json.loads(filling.document)
    assert not schema.faults(document)
    assert document["name"] == document["any"] == document["nick"] == "a fox"
    assert document["tags"] == ["a fox"]
    assert document["born"] == "2010-01-01"
    assert document["seen"] == "2010-01-01T00:00:00Z"
    assert document["woken"] == "00:00:00"
    assert document["slept"] == "PT00H00M"
    assert (document["age"], document["size"], document["tone"]) == (0, 0, "calm")
    assert (document["marks"], document["parts"]) == ([0, 0], [{"x": 0}])


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("2026-11-30T02:50:00Z", True),
        ("2026-11-30t02:50:00.25+01:00", True),
        ("2026-11-30T02:50:00", False),
        ("2026-11-30 02:50:00Z", False),
        ("2026-13-30T02:50:00Z", False),
        ("yesterday", False),
    ],
)
def test_a_moment_is_written_by_rfc_3339(text: str, holds: bool) -> None:
    schema = parse_schema({"type": "string", "format": "date-time"}, "schema")
    assert (not schema.faults(text)) is holds
