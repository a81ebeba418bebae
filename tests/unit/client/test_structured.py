"""Schemas, their skeletons, and answers that grow valid."""

from __future__ import annotations

import json
from typing import Any

import pytest

from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.schema import JsonSchema, parse_schema
from piecework.client.gateway.formats.skeleton import Slot, SlotKind, read_slot, skeleton
from piecework.client.gateway.formats.structured import MAX_REPAIRS, Filling
from piecework_protocol.kinds.text import Fixed, Hole

TEXT = Slot(SlotKind.TEXT, ("a",), 8)
VALUE = Slot(SlotKind.VALUE, ("a",), 8)
ITEMS = Slot(SlotKind.ITEMS, ("a",), 8)
MEMBERS = Slot(SlotKind.MEMBERS, ("a",), 8)


def obj(**properties: Any) -> dict[str, Any]:
    """A strict object."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def begun(schema: dict[str, Any], most: int | None = None) -> Filling:
    """An empty document of a schema."""
    filling = Filling.of(parse_schema(schema, "schema"), most)
    assert filling is not None
    return filling


def shape(schema: dict[str, Any]) -> str:
    """A skeleton with its slots as <kind>."""
    pieces = skeleton(parse_schema(schema, "schema"))
    return "".join(p if isinstance(p, str) else f"<{p.kind.name}>" for p in pieces)


STRING: Any = {"type": "string"}
INTEGER: Any = {"type": "integer"}
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (obj(a=STRING, b=INTEGER), '{"a": "<TEXT>", "b": <VALUE>}'),
        (obj(a={"const": "x"}, b={"enum": ["y"]}, c=STRING), '{"a": "x", "b": "y", "c": "<TEXT>"}'),
        (obj(a={"enum": ["x", "y"]}), '{"a": "<TEXT>"}'),
        (obj(a={"enum": ["x", 1]}), '{"a": <VALUE>}'),
        (obj(a={"enum": ["x", "x"]}, b={"enum": [1, 1]}), '{"a": "x", "b": 1}'),
        (obj(a={"type": "null"}, b={"type": "boolean"}), '{"a": null, "b": <VALUE>}'),
        (obj(a={"anyOf": [STRING, {"type": "null"}]}), '{"a": <VALUE>}'),
        (obj(a={"type": "array", "items": STRING}), '{"a": [<ITEMS>]}'),
        (
            obj(a={"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 2}),
            '{"a": [<VALUE>, <VALUE>]}',
        ),
        (
            {"type": "array", "prefixItems": [STRING, INTEGER], "items": False},
            '["<TEXT>", <VALUE>]',
        ),
        ({"type": "object"}, "{<MEMBERS>}"),
        ({"type": "object", "additionalProperties": False}, "{}"),
        ({"type": "object", "properties": {"a": STRING}}, '{"a": "<TEXT>"}'),
        ({"type": "object", "required": ["a"]}, '{"a": <VALUE>}'),
        ({**obj(a=INTEGER, b=STRING), "required": ["b"], "maxProperties": 1}, '{"b": "<TEXT>"}'),
        ({"properties": {"a": INTEGER, "b": STRING}, "maxProperties": 1}, '{"a": <VALUE>}'),
        ({"type": "object", "properties": {"a": False, "b": STRING}}, '{"b": "<TEXT>"}'),
        (obj(a=obj(b=STRING)), '{"a": {"b": "<TEXT>"}}'),
        (
            {"$defs": {"P": obj(n=STRING)}, **obj(p={"$ref": "#/$defs/P", "title": "A"})},
            '{"p": {"n": "<TEXT>"}}',
        ),
        ({"allOf": [obj(n=STRING)], "title": "T"}, '{"n": "<TEXT>"}'),
        (obj(**{'ä"': STRING}), '{"ä\\"": "<TEXT>"}'),
        (True, None),
        ({}, "<VALUE>"),
    ],
)
def test_a_skeleton_has_what_the_schema_fixes(schema: Any, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ApiError, match="a schema is a JSON object"):
            parse_schema(schema, "schema")
    else:
        assert shape(schema) == expected


def test_an_object_that_holds_itself_ends_in_a_free_value() -> None:
    tree = {
        "$defs": {
            "T": {
                "type": "object",
                "properties": {"v": STRING, "next": {"$ref": "#/$defs/T"}},
                "required": ["v"],
            }
        },
        "$ref": "#/$defs/T",
    }
    assert shape(tree) == '{"v": "<TEXT>"}'
    tree["$defs"]["T"]["required"].append("next")  # type: ignore[index]
    assert shape(tree) == '{"v": "<TEXT>", "next": <VALUE>}'


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ([], "a schema is a JSON object"),
        ({"type": "text"}, "not a schema"),
        ({"foo": 1}, "'foo'"),
        ({"properties": {"a": {"$dynamicRef": "#x"}}}, r"\$dynamicRef"),
        ({"patternProperties": {"^a": {}}}, "patternProperties"),
        ({"$ref": "https://example.com/schema"}, "leads nowhere"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "back to itself"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}, "back to itself"),
        ({"properties": {"a": {"default": {}, "$ref": "#/properties/a/default"}}}, "not a schema"),
        ({"$defs": {"a": {"const": {"type": 5}}}, "$ref": "#/$defs/a/const"}, "not a schema"),
        ({"x-a": {"$schema": DRAFT_7}, "$ref": "#/x-a"}, "not a schema"),
        ({"pattern": "("}, "not a 'regex'"),
        ({"pattern": "(?P<a>x)(?P<a>y)"}, "not a"),
    ],
)
def test_a_schema_that_nobody_can_check_is_refused_with_its_reason(schema: Any, why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        parse_schema(schema, "response_format.json_schema.schema")
    assert caught.value.status == 400
    assert caught.value.param == "response_format.json_schema.schema"


def test_a_schema_of_doubling_references_is_refused_before_it_is_checked() -> None:
    twice = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    with pytest.raises(ApiError, match="cost too much"):
        parse_schema({"$defs": {**twice, "d30": {}}, "$ref": "#/$defs/d0"}, "schema")


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(ApiError, match="deep"):
        parse_schema(schema, "schema")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"anyOf": [{}] * 5000}, "at most 4096 parts"),
        ({"properties": {str(i): {} for i in range(5000)}}, "at most 4096 parts"),
        ({"items": {"type": ["string"] * 8}}, "a list of types has at most 7"),
        ({"pattern": "a" * 20_000}, "at most 16384 characters together"),
        ({"allOf": [{"pattern": "a" * 9000}] * 2}, "at most 16384 characters together"),
        ({"unevaluatedItems": {"anyOf": [{}] * 5000}}, "'unevaluatedItems'"),
        ({"default": ["x"] * 100_000}, "at most 262144 bytes"),
    ],
)
def test_a_schema_that_takes_long_to_judge_is_refused_before_it_is_judged(
    schema: Any, why: str
) -> None:
    with pytest.raises(ApiError, match=why):
        parse_schema({**schema, "maximum": "what the judge would name first"}, "schema")


def test_the_values_of_a_choice_are_written_once_for_all_that_refer_to_it() -> None:
    places = {f"p{i}": {"$ref": "#/$defs/E"} for i in range(3)}
    pieces = skeleton(parse_schema({"$defs": {"E": {"enum": ["a", 1]}}, **obj(**places)}, "schema"))
    slots = [piece for piece in pieces if isinstance(piece, Slot)]
    assert [slot.path for slot in slots] == [("p0",), ("p1",), ("p2",)]
    assert len({id(slot.options) for slot in slots}) == 1


def test_alternatives_that_refer_to_long_lists_are_no_choice() -> None:
    long = {"enum": list(range(200))}
    twice = {"anyOf": [{"$ref": "#/$defs/long"}, {"$ref": "#/$defs/long"}]}
    (slot,) = skeleton(parse_schema({"$defs": {"long": long}, **obj(a=twice)}, "schema"))[1:2]
    assert isinstance(slot, Slot)
    assert slot.options == ()


class Counting(JsonSchema):
    """Counts how often a reference is followed."""

    followed = 0

    def resolved(self, node: Any) -> Any:
        Counting.followed += 1
        return super().resolved(node)


def test_alternatives_are_looked_at_once_for_all_that_refer_to_them() -> None:
    either = {"anyOf": [*({"const": n} for n in range(200)), {"type": "string"}]}
    some = {"type": "array", "minItems": 50, "maxItems": 50, "items": {"$ref": "#/$defs/either"}}
    schema = parse_schema({"$defs": {"either": either}, **obj(a=some)}, "schema")
    assert len(skeleton(Counting(schema.root))) == 2 * 50 + 1
    assert Counting.followed < 1000


def test_a_document_longer_than_a_prompt_is_refused_while_it_is_written() -> None:
    places = {f"p{i}": {"$ref": "#/$defs/C"} for i in range(4000)}
    schema = {"$defs": {"C": {"const": "x" * 100_000}}, **obj(**places)}
    with pytest.raises(ApiError, match="documents are too long"):
        skeleton(parse_schema(schema, "schema"))


@pytest.mark.parametrize(
    ("slot", "text", "value"),
    [
        (TEXT, "Oslo", "Oslo"),
        (TEXT, "", ""),
        (TEXT, 'a \\"b\\" c', 'a "b" c'),
        (TEXT, "two\nlines", "two\nlines"),
        (TEXT, 'Oslo", "b": 3', "Oslo"),
        (TEXT, 'Oslo"', "Oslo"),
        (TEXT, 'he said "no" to it', 'he said "no" to it'),
        (TEXT, '"No," he said.', '"No," he said.'),
        (TEXT, "ends with \\", "ends with \\"),
        (TEXT, "C:\\x", "C:\\x"),
        (TEXT, "half \\ud83d", "half \\ud83d"),
        (TEXT, "whole \\ud83d\\ude00", "whole \U0001f600"),
        (VALUE, " 12 ", 12),
        (VALUE, '-1.5e3, "b": 1', -1500.0),
        (VALUE, "1,000", None),
        (VALUE, "12 apples", None),
        (VALUE, "NaN", None),
        (VALUE, "true}", True),
        (VALUE, '{"a": "}"} ]', {"a": "}"}),
        (VALUE, '{"a": ', None),
        (VALUE, "", None),
        (VALUE, "[" * 200, None),
        (VALUE, "[" * 100 + "]" * 100, None),
    ],
)
def test_a_slots_value_is_read_from_its_start(slot: Slot, text: str, value: Any) -> None:
    content = read_slot(slot, text).text
    if value is None:
        assert content is None
    else:
        assert content is not None
        assert json.loads(f'"{content}"' if slot is TEXT else content) == value


@pytest.mark.parametrize(
    ("slot", "text", "content", "done"),
    [
        (ITEMS, "", "", ()),
        (ITEMS, '"a", {"b": 1}', '"a", {"b": 1}', ('"a"', '{"b": 1}')),
        (ITEMS, '1, 2], "c": 3', "1, 2", ("1", "2")),
        (ITEMS, "1, 2, 3.x", None, ("1", "2")),
        (ITEMS, "1 2", None, ("1",)),
        (ITEMS, '"a", "b', None, ('"a"',)),
        (ITEMS, "1, ", None, ("1",)),
        (MEMBERS, '"a": 1, "b" : [2]}', '"a": 1, "b" : [2]', ('"a": 1', '"b" : [2]')),
        (MEMBERS, '"a": 1, b: 2', None, ('"a": 1',)),
    ],
)
def test_a_list_keeps_its_items_before_the_first_broken_one(
    slot: Slot, text: str, content: str | None, done: tuple[str, ...]
) -> None:
    found = read_slot(slot, text)
    assert (found.text, found.done) == (content, done)


def test_a_valid_document_is_done_at_once() -> None:
    filling = begun(obj(name=STRING, age=INTEGER))
    assert filling.template == (
        Fixed('{"name": "'),
        Hole(48),
        Fixed('", "age": '),
        Hole(16),
        Fixed("}"),
    )
    done = filling.take('{"name": "Ann", "age": 7}')
    assert done.done
    assert json.loads(done.document) == {"name": "Ann", "age": 7}


def test_what_is_valid_is_pinned_and_the_rest_gets_more_room() -> None:
    filling = begun(obj(name=STRING, age={"type": "integer", "maximum": 9}))
    open_still = filling.take('{"name": "Ann", "age": 70}')
    assert open_still.template == (Fixed('{"name": "Ann", "age": '), Hole(16), Fixed("}"))
    assert open_still.why == "/age: 70 is greater than the maximum of 9"
    assert json.loads(open_still.take('{"name": "Ann", "age": 7}').document)["age"] == 7


def test_a_list_goes_on_behind_its_valid_items() -> None:
    filling = begun(obj(tags={"type": "array", "items": obj(n=INTEGER), "minItems": 2}))
    filling = filling.take('{"tags": [{"n": 1}, {"n": "x"}, {"n": 3}]}')
    assert filling.template[0] == Fixed('{"tags": [{"n": 1}, ')
    filling = filling.take('{"tags": [{"n": 1}, {"n": 2}]}')
    assert json.loads(filling.document) == {"tags": [{"n": 1}, {"n": 2}]}


def test_a_list_that_is_too_short_is_continued_and_one_too_long_is_cut() -> None:
    schema = obj(tags={"type": "array", "items": STRING, "minItems": 2, "maxItems": 3})
    short = begun(schema).take('{"tags": ["a"]}')
    assert short.template[0] == Fixed('{"tags": ["a", ')
    assert json.loads(short.take('{"tags": ["a", "b"]}').document) == {"tags": ["a", "b"]}
    long = begun(schema).take('{"tags": ["a", "b", "c", "d", "e"]}')
    assert json.loads(long.document) == {"tags": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('"a", "b", "a"', ["a", "b"]),
        ('1, 1.0, true, "1", null, null', [1, True, "1", None]),
        ('[1, {"a": 2, "b": 3}], [1.0, {"b": 3, "a": 2}], [{"a": 2, "b": 3}, 1]', 2),
    ],
)
def test_a_list_that_repeats_itself_keeps_each_item_once(written: str, kept: Any) -> None:
    """As a set of pydantic asks for it. Items are equal as JSON Schema has it."""
    filling = begun(obj(a={"type": "array", "uniqueItems": True}))
    items = json.loads(filling.take(f'{{"a": [{written}]}}').document)["a"]
    assert (items if isinstance(kept, list) else len(items)) == kept


def test_a_long_list_of_objects_is_looked_at_once() -> None:
    """In pairs it took 13 seconds of a core, and was given up."""
    items = [{"name": str(n), "parts": [n]} for n in range(1500)]
    filling = begun(obj(a={"type": "array", "uniqueItems": True}))
    document = filling.take(json.dumps({"a": [*items, items[0]]})).document
    assert json.loads(document)["a"] == items


def test_a_list_that_is_too_short_without_its_repetitions_goes_on() -> None:
    schema = obj(a={"type": "array", "items": STRING, "uniqueItems": True, "minItems": 3})
    filling = begun(schema).take('{"a": ["x", "y", "x"]}')
    assert not filling.done
    assert json.loads(filling.take('{"a": ["x", "y", "y", "z"]}').document)["a"] == ["x", "y", "z"]


def test_a_list_is_cut_whatever_stands_beside_it() -> None:
    """Its good items stay where another value is broken, or another list too short."""
    unique = {"type": "array", "items": STRING, "uniqueItems": True}
    short = {"type": "array", "items": STRING, "maxItems": 2}
    number = {"type": "integer", "minimum": 5}
    filling = begun(obj(a=unique, b=short, c=number))
    filling = filling.take('{"a": ["x", "y", "x"], "b": ["p", "q", "r"], "c": 1}')
    assert filling.template[0] == Fixed('{"a": ["x", "y"], "b": ["p", "q"], "c": ')
    filling = begun(obj(a={**unique, "minItems": 3}, b=unique))
    filling = filling.take('{"a": ["x", "y", "x"], "b": ["p", "q", "p"]}')
    assert filling.template[0] == Fixed('{"a": ["x", "y", ')
    assert filling.template[2] == Fixed('], "b": ["p", "q"]}')


def test_items_before_the_first_broken_one_are_kept_once() -> None:
    schema = obj(a={"type": "array", "items": STRING, "uniqueItems": True})
    filling = begun(schema).take('{"a": ["x", "x", "y", 4]}')
    assert not filling.done
    assert json.loads(filling.take('{"a": ["x", "y", "z"]}').document)["a"] == ["x", "y", "z"]


def test_a_string_that_is_too_long_is_cut_behind_a_word() -> None:
    short = begun(obj(title={"type": "string", "maxLength": 12}))
    assert short.template[1] == Hole(4)
    assert short.take('{"title": "The owl and the map"}').document == '{"title": "The owl and"}'
    assert short.take('{"title": "Donaudampfschiff"}').document == '{"title": "Donaudampfsc"}'


def test_what_breaks_another_rule_once_it_is_cut_stays_open() -> None:
    rules = {"type": "string", "maxLength": 4, "pattern": "g$"}
    assert not begun(obj(title=rules)).take('{"title": "abcdefg"}').done
    fourth = {"type": "array", "maxItems": 3, "contains": {"const": 4}}
    assert not begun(obj(n=fourth)).take('{"n": [1, 2, 3, 4]}').done


def test_what_was_pinned_is_opened_again_if_it_breaks_a_rule_with_what_came_later() -> None:
    rule = {
        "if": {"properties": {"b": {"const": 2}}},
        "then": {"properties": {"a": {"const": 2}}},
    }
    schema = parse_schema({**obj(a=INTEGER, b={"type": "integer", "minimum": 2}), **rule}, "schema")
    filling = Filling(
        schema,
        (
            '{"a": ',
            Slot(SlotKind.VALUE, ("a",), 8),
            ', "b": ',
            Slot(SlotKind.VALUE, ("b",), 8),
            "}",
        ),
    )
    first = filling.take('{"a": 1, "b": 1}')
    assert not first.done
    second = first.take('{"a": 1, "b": 2}')
    assert not second.done
    third = second.take('{"a": 2, "b": 2}')
    assert not third.done or schema.faults(json.loads(third.document)) == []


def test_one_of_a_few_values_can_be_decided() -> None:
    filling = begun(obj(sky={"enum": ["clear", "cloudy"]}, wet={"type": "boolean"}, n=STRING))
    (sky, question), (wet, other) = filling.questions
    assert [label.name for label in question.labels] == ["clear", "cloudy"]
    assert [label.name for label in other.labels] == ["true", "false"]
    assert "/sky" in question.instructions
    decided = filling.decided({sky: 1, wet: 0})
    assert decided.template == (
        Fixed('{"sky": "cloudy", "wet": true, "n": "'),
        Hole(48),
        Fixed('"}'),
    )


def test_what_was_decided_is_named_until_the_document_begins_again() -> None:
    rule = {
        "if": {"properties": {"n": {"const": 2}}},
        "then": {"properties": {"sky": {"const": 1}}},
    }
    schema = parse_schema({**obj(sky={"enum": [1, 2]}, n=INTEGER), **rule}, "schema")
    sky = Slot(SlotKind.VALUE, ("sky",), 1, options=("1", "2"))
    pieces = ('{"sky": ', sky, ', "n": ', Slot(SlotKind.VALUE, ("n",), 8), "}")
    decided = Filling(schema, pieces).decided({("sky",): 1})
    assert decided.decided_places == (("sky",),)
    assert decided.take('{"sky": 2, "n": 1}').decided_places == (("sky",),)
    again = decided.take('{"sky": 2, "n": 2}')
    assert not again.done
    assert again.decided_places == ()


def test_a_choice_that_names_a_value_twice_is_decided_among_its_values() -> None:
    filling = begun(obj(sky={"enum": ["clear", "cloudy", "clear"]}))
    ((sky, question),) = filling.questions
    assert [label.name for label in question.labels] == ["clear", "cloudy"]
    assert filling.decided({sky: 1}).document == '{"sky": "cloudy"}'


def test_a_value_that_broke_off_gets_twice_the_room() -> None:
    filling = begun(obj(tags={"type": "array"})).take('{"tags": ["a", "b')
    assert filling.template == (Fixed('{"tags": ["a", '), Hole(384), Fixed("]}"))


def test_a_rule_around_slots_opens_them_all_again() -> None:
    schema = {**obj(a=INTEGER, b=INTEGER), "not": {"properties": {"a": {"const": 1}}}}
    two = begun({"type": "object", "properties": {"x": schema}}).take('{"x": 1}')
    assert not two.done
    assert two.why.startswith("/x")


def test_slots_shrink_to_the_callers_limit_or_the_request_is_refused() -> None:
    schema = parse_schema(obj(a=STRING, b=STRING), "schema")
    whole, small = Filling.of(schema, None), Filling.of(schema, 60)
    assert whole is not None
    assert small is not None
    assert small.tokens <= 60 < whole.tokens
    assert Filling.of(schema, 30) is None


def test_a_part_that_names_another_dialect_is_judged_by_the_same_rules() -> None:
    """Draft 7 knows no `prefixItems`, and nobody there gives a pattern a time limit."""
    from piecework.client.gateway.formats.schema import DocumentTooDear

    part = {"$schema": DRAFT_7, "prefixItems": [{"type": "string", "pattern": "^(a|aa)+$"}]}
    schema = parse_schema(obj(a=part), "schema")
    assert [fault.rule for fault in schema.faults({"a": [1]})] == ["type"]
    with pytest.raises(DocumentTooDear):
        schema.faults({"a": ["a" * 60 + "b"]})
    kept = parse_schema(obj(**{"$schema": STRING}), "schema")
    assert kept.faults({"$schema": 1})


def test_a_reference_is_written_as_in_an_address() -> None:
    """RFC 6901, section 6."""
    names = {"a b": STRING, "50%": STRING, "x/y~z": STRING}
    schema = parse_schema(
        {
            "$defs": names,
            **obj(
                a={"$ref": "#/$defs/a%20b"},
                b={"$ref": "#/$defs/50%25"},
                c={"$ref": "#/$defs/x~1y~0z"},
                d={"$ref": "#/%24defs/a b"},
            ),
        },
        "schema",
    )
    assert schema.faults(dict.fromkeys("abcd", "text")) == []
    assert len(schema.faults(dict.fromkeys("abcd", 1))) == 4
    assert (
        shape(dict(schema.root)) == '{"a": "<TEXT>", "b": "<TEXT>", "c": "<TEXT>", "d": "<TEXT>"}'
    )
    with pytest.raises(ApiError, match="leads nowhere"):
        parse_schema({"$defs": {"a%20b": STRING}, "$ref": "#/$defs/a%20b"}, "schema")


def test_a_pattern_that_takes_years_is_given_up() -> None:
    from piecework.client.gateway.formats.schema import DocumentTooDear

    schema = parse_schema(obj(a={"type": "string", "pattern": "^(a|aa)+$"}), "schema")
    assert schema.faults({"a": "aaaa"}) == []
    with pytest.raises(DocumentTooDear):
        schema.faults({"a": "a" * 60 + "b"})


def test_the_rules_of_a_document_share_one_time() -> None:
    """4,096 values of 4,096 cheap rules each are two minutes of work, and no pattern is slow."""
    from piecework.client.gateway.formats.schema import DocumentTooDear

    many = parse_schema(
        {
            "$defs": {"many": {"allOf": [INTEGER] * 50}},
            **obj(a={"const": 1, "$ref": "#/$defs/many"}, b=STRING),
        },
        "schema",
    )
    assert many.faults({"a": 1, "b": "x"}) == []
    with pytest.raises(DocumentTooDear, match="takes too long to judge"):
        many.faults({"a": 1, "b": "x"}, most_s=0)


def test_a_huge_number_is_a_fault_and_no_crash() -> None:
    assert JsonSchema({"multipleOf": 0.5}).faults(10**400)


def test_a_string_that_fills_its_hole_goes_on_in_a_larger_one() -> None:
    filling = begun(obj(content=STRING, n=INTEGER), 4000)
    half = "import os\\nfor i in range(10):\\n    print(os.getpid(), i, sep='-')\\n" * 3
    more = filling.take(f'{{"content": "{half}", "n": 5}}')
    assert more.template == (Fixed(f'{{"content": "{half}'), Hole(192), Fixed('", "n": 5}'))
    assert more.is_cut
    assert more.beginning == f'{{"content": "{half}'
    done = more.take(f'{{"content": "{half}exit()", "n": 5}}')
    assert json.loads(done.document) == {"content": json.loads(f'"{half}exit()"'), "n": 5}


def test_a_string_goes_on_before_an_escape_that_broke_off() -> None:
    filling = begun(obj(a=STRING))
    line = "some more words of this text\\n" * 6
    for end in ("\\", "\\u00e", "\\ud83d", "\\ud83d\\ude", "\ufffd"):
        more = filling.take(f'{{"a": "{line}{end}"}}')
        assert more.template[0] == Fixed(f'{{"a": "{line}')
    whole = filling.take(f'{{"a": "{line}\\\\\\\\"}}')
    assert whole.template[0] == Fixed(f'{{"a": "{line}\\\\\\\\')


def test_a_string_that_cannot_have_filled_its_hole_is_done() -> None:
    text = '{"a": "' + "counted words " * 12 + '"}'
    assert not begun(obj(a=STRING)).take(text).done
    assert not begun(obj(a=STRING)).take(text, 60).done
    assert begun(obj(a=STRING)).take(text, 40).done
    assert begun(obj(a=STRING)).take(text[:-2] + '", "b": "x"}').done  # the model closed it


def test_a_string_that_fills_the_callers_limit_is_cut_there() -> None:
    filling = begun(obj(a=STRING), 70)
    cut = filling.take('{"a": "' + "word " * 48 + '"}', 56)
    fitted = cut.fitted()
    assert cut.is_cut
    assert fitted is None or fitted.tokens <= 70


def test_a_string_grows_to_thousands_of_tokens_in_the_rounds_that_there_are() -> None:
    filling, words = begun(obj(a=STRING)), 0
    for _ in range(1 + MAX_REPAIRS):
        hole = filling.template[1]
        assert isinstance(hole, Hole)
        words += hole.tokens
        after = filling.take('{"a": "' + " word" * words + '"}', words + 6).fitted()
        if after is None:
            break
        assert after.tokens <= 4096
        filling = after
    assert filling.is_cut
    assert 3500 < words < 4096


def test_a_documents_fixed_texts_are_estimated_in_tokens() -> None:
    names = ["first_name", "last_name", "street_address", "postal_code", "city_name"]
    names += ["country_code", "phone_number", "email_address", "company_name", "job_description"]
    assert begun(obj(**dict.fromkeys(names, STRING)), 256).tokens <= 256


def chain(links: int) -> dict[str, Any]:
    """A schema of references in a row."""
    rows: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(links)}
    return {"$defs": {**rows, f"a{links}": STRING}, **obj(x={"$ref": "#/$defs/a0"})}


def test_a_long_chain_of_references_is_refused_at_once() -> None:
    assert shape(chain(30)) == '{"x": "<TEXT>"}'
    with pytest.raises(ApiError, match="at most 64 deep") as caught:
        parse_schema(chain(3000), "schema")
    assert caught.value.code == "unsupported_schema"


def test_a_schema_whose_documents_double_at_each_level_is_refused() -> None:
    twice = {
        f"d{i}": obj(a={"$ref": f"#/$defs/d{i + 1}"}, b={"$ref": f"#/$defs/d{i + 1}"})
        for i in range(25)
    }
    schema = parse_schema({"$defs": {**twice, "d25": STRING}, "$ref": "#/$defs/d0"}, "schema")
    with pytest.raises(ApiError, match="too many parts") as caught:
        skeleton(schema)
    assert caught.value.code == "unsupported_schema"


def test_white_space_and_strings_without_end_are_read_in_one_pass() -> None:
    filling = begun(obj(a=INTEGER))
    # In more than one pass each of these would take hours.
    assert not filling.take('{"a": 1' + " " * 500_000 + "x}").done
    assert not filling.take('{"a": 1,' + " " * 500_000 + "x}").done
    assert not filling.take('{"a": {' + '"\\' * 250_000 + "}").done


def test_a_job_has_room_for_a_small_vocabulary_within_the_callers_limit() -> None:
    schema = obj(first_name=STRING)
    fixed = len('{"first_name": ""}')
    assert begun(schema).limit == fixed + 48
    assert begun(schema, 64).limit == 64
    dense = "xy zw vu ts rq " * 3
    text = f'{{"first_name": "{dense}"}}'
    assert begun(schema).take(text, 20).done
    assert not begun(schema).take(text, len(text)).done  # each byte was a token


def test_a_schema_that_comes_again_is_not_checked_again() -> None:
    large = obj(**{f"p{i}": STRING for i in range(300)})
    first = parse_schema(large, "a")
    assert parse_schema(json.loads(json.dumps(large)), "b") is first
    for number in range(20):  # others take its place
        parse_schema(obj(**{"x" * 120_000: {"const": number}}), "c")
    again = parse_schema(large, "a")
    assert again is not first
    assert again == first


def test_a_schema_that_was_refused_is_refused_again_where_it_stands() -> None:
    for where in ("a", "b"):
        with pytest.raises(ApiError) as caught:
            parse_schema({"unevaluatedProperties": False}, where)
        assert str(caught.value.param).startswith(where)


def test_questions_with_many_labels_are_shared_out_over_a_few_reads() -> None:
    def read_sizes(*labels: int) -> list[int]:
        choices = [{"enum": [f"{i} of {n}" for i in range(n)]} for n in labels]
        filling = begun(obj(**{f"a{at}": choice for at, choice in enumerate(choices)}))
        assert [one for read in filling.reads for one in read] == list(filling.questions)
        return [sum(len(question.labels) for _, question in read) for read in filling.reads]

    assert read_sizes(2, 3) == [5]
    assert read_sizes(23, 21, 12, 28) == [44, 40]
    assert read_sizes(60, 2) == [60, 2]
    assert len(read_sizes(*[20] * 40)) == 4
    assert begun(obj(a=STRING)).reads == ()
