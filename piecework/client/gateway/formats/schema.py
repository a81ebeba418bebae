"""JSON schemas that an answer must hold: what is accepted, and how a document is judged. Pure.

The rules are those of JSON Schema 2020-12, judged by the jsonschema library. Tuples of older drafts
are written anew. A keyword that is not known here is refused by name, because a rule that nobody
checks would be a false promise. So is a schema that would cost too much to check: a few lines of
nested references can ask for billions of steps.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from threading import Lock
from typing import Any, Final, NoReturn, TypeAlias
from urllib.parse import unquote

import jsonschema
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.base.text import one_line
from piecework.client.gateway.formats.common import bad
from piecework.client.gateway.formats.drafts import modernize
from piecework.client.gateway.formats.patterns import check_pattern, is_found
from piecework.client.gateway.formats.string_formats import FORMATS
from piecework_protocol.limits import MAX_CONTENT_BYTES

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_SCHEMA_DEPTH: Final = 32
MAX_SCHEMA_NODES: Final = 4096
MAX_TYPES: Final = 7
"""JSON has no more."""
MAX_PATTERN_CHARACTERS: Final = 16_384
"""Of all patterns of a schema. To compile one takes up to 25 microseconds a character."""
MAX_CHECKS_PER_VALUE: Final = 4096
"""Schemas that one value of a document is judged by, references followed."""
MAX_REFERENCE_CHAIN: Final = 64
"""Schemas in one another that judge one value. The judge calls itself for each."""
PATTERN_TIMEOUT_S: Final = 0.05
"""For one pattern and one string: some patterns take years."""
JUDGEMENT_TIMEOUT_S: Final = 5.0
"""Of a processor, for all rules of one document. The largest answer that a job can write takes a
second or two."""
MAX_REASON: Final = 200
MAX_KEPT_SCHEMA_CHARACTERS: Final = 2 * 2**20
"""Of accepted schemas that are kept. In memory one has some eight times as many bytes."""

Path: TypeAlias = tuple[str | int, ...]

_IN_PLACE_ONE = ("not", "if", "then", "else")
_ONE_SCHEMA = ("additionalProperties", "items", "contains", "propertyNames", *_IN_PLACE_ONE)
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMA_MAPS = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_IN_PLACE_LISTS = ("anyOf", "oneOf", "allOf")
_RULES = frozenset(
    """
    type required enum const $ref minItems maxItems uniqueItems minContains maxContains minLength
    maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    minProperties maxProperties dependentRequired
    """.split()  # noqa: SIM905 - a page of quotes reads worse
)
NOTES: Final = frozenset(
    """
    title description default examples deprecated readOnly writeOnly $comment $schema
    contentEncoding contentMediaType discriminator
    """.split()  # noqa: SIM905
)
"""Keywords that no document can break."""
_LEAST = ("minLength", "minItems", "minProperties", "minContains")
_KNOWN = _RULES | NOTES | {*_ONE_SCHEMA, *_SCHEMA_LISTS, *_SCHEMA_MAPS}


# When the judgement under way has to end, on the clock of its thread.
_DEADLINE: ContextVar[float] = ContextVar("deadline of a judgement")
_Faults: TypeAlias = Iterable[jsonschema.exceptions.ValidationError] | None
_Rule: TypeAlias = Callable[[Any, Any, Any, Any], _Faults]


class DocumentTooDear(PieceworkError):
    """The document, or a pattern on one of its strings, took too long to judge."""


def _bounded(rule: _Rule) -> _Rule:
    """Return a rule that is not applied any more when the document's time is over."""

    def bounded(validator: Any, value: Any, instance: Any, schema: Any) -> _Faults:
        if time.thread_time() > _DEADLINE.get():
            raise DocumentTooDear("the document takes too long to judge by this schema")
        return rule(validator, value, instance, schema)

    return bounded


def _pattern(
    _: Any, pattern: str, instance: Any, __: Any
) -> Iterator[jsonschema.exceptions.ValidationError]:
    """Judge a string by a pattern, for a bounded time."""
    if not isinstance(instance, str):
        return
    try:
        found = is_found(pattern, instance, PATTERN_TIMEOUT_S)
    except TimeoutError:
        raise DocumentTooDear(f"the pattern {pattern[:60]!r} takes too long") from None
    if not found:
        yield jsonschema.exceptions.ValidationError(f"{instance!r} does not match {pattern!r}")


def _multiple_of(
    validator: Any, step: float, instance: Any, _: Any
) -> Iterator[jsonschema.exceptions.ValidationError]:
    """Judge a number by its decimals. As floats, 19.99 is not a multiple of 0.01."""
    if not validator.is_type(instance, "number"):
        return
    if isinstance(instance, float) or isinstance(step, float):
        float(instance)  # a number that no float can hold is not judged
        rest: Any = Fraction(repr(instance)) % Fraction(repr(step))
    else:
        rest = instance % step
    if rest:
        yield jsonschema.exceptions.ValidationError(f"{instance!r} is not a multiple of {step!r}")


def identity(value: Any) -> Any:
    """Return something hashable that is equal where two values of JSON are: 1 and 1.0 are."""
    if isinstance(value, list):
        return list, tuple(map(identity, value))
    if isinstance(value, dict):
        return dict, frozenset((name, identity(one)) for name, one in value.items())
    return isinstance(value, bool), value


def _unique_items(
    validator: Any, unique: bool, instance: Any, _: Any
) -> Iterator[jsonschema.exceptions.ValidationError]:
    """Judge whether items are unlike. The library compares objects in pairs, this looks once."""
    if not unique or not validator.is_type(instance, "array"):
        return
    if len(set(map(identity, instance))) < len(instance):
        yield jsonschema.exceptions.ValidationError(f"{instance!r} has non-unique elements")


_VALIDATOR_RULES: Final = {
    **Draft202012Validator.VALIDATORS,
    "pattern": _pattern,
    "multipleOf": _multiple_of,
    "uniqueItems": _unique_items,
}
_Validator: Any = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator, {name: _bounded(rule) for name, rule in _VALIDATOR_RULES.items()}
)
_SCHEMA_FORMATS = FormatChecker(())
"""Of the strings in a schema itself."""


@_SCHEMA_FORMATS.checks("regex", raises=ValueError)
def _is_pattern(value: object) -> bool:
    """Whether a string is a pattern. The library takes Python's for one, and no other."""
    if isinstance(value, str):
        check_pattern(value)
    return True


@dataclass(frozen=True, slots=True)
class SchemaFault:
    """Where a document breaks its schema, and why. `rule` is the keyword, `value` what it says."""

    path: Path
    reason: str
    rule: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A schema that was accepted. `root` is never changed."""

    root: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The schema on one line, as the model reads it."""
        return json.dumps(self.root, ensure_ascii=False)

    def resolved(self, node: Any) -> Any:
        """Follow the local references of a node until it is none."""
        seen: set[str] = set()
        beside = NOTES | {"$defs", "definitions"}
        while isinstance(node, dict) and set(node) - beside == {"$ref"}:
            reference = node["$ref"]
            if reference in seen:
                break
            seen.add(reference)
            node = _at(self.root, reference)
        return node

    def faults(self, document: Any, *, most_s: float = JUDGEMENT_TIMEOUT_S) -> list[SchemaFault]:
        """Return where the document breaks the schema. An empty list: it holds.

        most_s: seconds of a processor that it may take.

        Raises:
            DocumentTooDear: It takes longer, or a pattern takes too long on it.
        """
        checker = _Validator(dict(self.root), format_checker=FORMATS)
        before = _DEADLINE.set(time.thread_time() + most_s)
        try:
            found = list(checker.iter_errors(document))
        except OverflowError:  # a number of thousands of digits against `multipleOf`
            return [SchemaFault((), "a number is too large to be judged", "multipleOf")]
        finally:
            _DEADLINE.reset(before)
        return [
            SchemaFault(
                tuple(e.absolute_path),
                one_line(e.message, MAX_REASON),
                str(e.validator),
                e.validator_value,
            )
            for e in found
        ]


ANY_OBJECT: Final = JsonSchema({"type": "object"})
"""What `json_object` asks for."""


def parse_schema(raw: Any, where: str) -> JsonSchema:
    """Accept a JSON schema.

    Raises:
        ApiError: It is not a schema, has a keyword that is not supported, or would cost too much
            to check. It names the keyword.
    """
    if not isinstance(raw, dict):
        bad("a schema is a JSON object", where)
    text = _written(raw, where)
    known = _ACCEPTED.get(text)
    if known is None:
        known = _accepted(text, where)
        _ACCEPTED.put(text, known)
    return known


class _Accepted:
    """Schemas that were accepted lately, by their text.

    An agent sends its tools with every request, and to check one takes up to a second.
    """

    def __init__(self, most: int) -> None:
        """most: characters of all texts together."""
        self._most, self._size = most, 0
        self._schemas: OrderedDict[str, JsonSchema] = OrderedDict()
        self._lock = Lock()  # requests are read in threads

    def get(self, text: str) -> JsonSchema | None:
        with self._lock:
            known = self._schemas.get(text)
            if known is not None:
                self._schemas.move_to_end(text)
            return known

    def put(self, text: str, schema: JsonSchema) -> None:
        with self._lock:
            if text not in self._schemas:
                self._size += len(text)
            self._schemas[text] = schema
            while self._size > self._most:
                oldest, _ = self._schemas.popitem(last=False)
                self._size -= len(oldest)


_ACCEPTED: Final = _Accepted(MAX_KEPT_SCHEMA_CHARACTERS)


def _accepted(text: str, where: str) -> JsonSchema:
    """Accept the schema of a text."""
    try:
        root: dict[str, Any] = loads(text, max_depth=2 * MAX_SCHEMA_DEPTH)
    except ValueError:
        bad(f"a schema nests at most {MAX_SCHEMA_DEPTH} deep", where)
    modernize(_nodes(root))
    _check_bounds(root, where)
    try:
        _Validator.check_schema(root, format_checker=_SCHEMA_FORMATS)
    except SchemaError as error:
        bad(f"not a schema: {one_line(error.message, MAX_REASON)}", where)
    nodes = list(_nodes(root))
    judged = {id(node) for node in nodes}
    for node in nodes:
        _check_node(root, node, judged, where)
    costs = _Costs(root, where)
    for node in nodes:
        costs.of(node)
    return JsonSchema(root)


def _written(raw: Mapping[str, Any], where: str) -> str:
    """Return the text of a schema of an acceptable size."""
    try:
        text = json.dumps(raw)
    except (ValueError, RecursionError):
        bad(f"a schema nests at most {MAX_SCHEMA_DEPTH} deep", where)
    if len(text) > MAX_SCHEMA_BYTES:
        bad(f"a schema is at most {MAX_SCHEMA_BYTES} bytes", where)
    return text


def _check_bounds(raw: Mapping[str, Any], where: str) -> None:
    """Refuse what would take long to judge, before the library judges it.

    It takes 0.2 ms for a part, compares all entries of a list of types with each other, and
    compiles each pattern.
    """
    patterns = 0
    for count, node in enumerate(_nodes(raw), 1):
        if count > MAX_SCHEMA_NODES:
            bad(f"a schema has at most {MAX_SCHEMA_NODES} parts", where)
        kinds, pattern = node.get("type"), node.get("pattern")
        if isinstance(kinds, list) and len(kinds) > MAX_TYPES:
            bad(f"not a schema: a list of types has at most {MAX_TYPES}", where)
        patterns += len(pattern) if isinstance(pattern, str) else 0
        if patterns > MAX_PATTERN_CHARACTERS:
            most = f"{MAX_PATTERN_CHARACTERS} characters"
            bad(f"the patterns of a schema have at most {most} together", where)
        _check_keywords(node, where)


def _check_keywords(node: Mapping[str, Any], where: str) -> None:
    for name, value in node.items():
        known = name in _KNOWN or name.startswith("x-")
        if not known or (name == "patternProperties" and value):
            bad(
                f"the keyword {name[:60]!r} of JSON Schema is not supported here",
                where,
                code="unsupported_schema",
            )


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield a schema and all that it holds, also of a value that is not a schema yet."""
    if isinstance(node, dict):
        yield node
        for child in _children(node):
            yield from _nodes(child)


def _children(node: Mapping[str, Any]) -> Iterable[Any]:
    for name in _ONE_SCHEMA:
        if name in node:
            yield node[name]
    for name in _SCHEMA_LISTS:
        listed = node.get(name)
        yield from listed if isinstance(listed, list) else ()
    for name in _SCHEMA_MAPS:
        named = node.get(name)
        yield from named.values() if isinstance(named, dict) else ()


def _check_node(
    root: Mapping[str, Any], node: Mapping[str, Any], judged: set[int], where: str
) -> None:
    """Refuse what the library does not judge. `judged`: the ids of all schemas that it does."""
    if node.get("enum") == []:
        bad("an enum has at least one value", where)
    for name in _LEAST:
        if node.get(name, 0) > MAX_CONTENT_BYTES:
            bad(f"{name} asks for more than an answer can have", where, code="unsupported_schema")
    if "$ref" in node:
        target, shown = _at(root, node["$ref"]), f"the reference {node['$ref'][:60]!r}"
        if target is None:
            bad(f"{shown} leads nowhere in this schema", where)
        # A default or a constant can hold anything. Nobody has looked at it as at a schema.
        if isinstance(target, dict) and id(target) not in judged:
            bad(f"{shown} leads to a value that is not a schema", where)


class _Costs:
    """How many schemas judge one value: those in the same place, references followed.

    Each node is counted once. The walk keeps its own stack, so a long chain breaks nothing.
    """

    def __init__(self, root: Mapping[str, Any], where: str) -> None:
        self._root, self._where = root, where
        self._known: dict[int, int] = {}
        self._chains: dict[int, int] = {}

    def of(self, start: Mapping[str, Any]) -> None:
        """Refuse a node that costs too much, or whose references lead back or on and on.

        Raises:
            ApiError: It does.
        """
        waiting: list[tuple[Any, bool]] = [(start, False)]
        entered: set[int] = set()
        while waiting:
            node, left = waiting.pop()
            if not isinstance(node, dict) or id(node) in self._known:
                continue
            inner = list(self._in_place(node))
            if left:
                entered.discard(id(node))
                self._count(node, inner)
            elif id(node) in entered:
                self._refuse(f"the reference {str(node.get('$ref'))[:60]!r} leads back to itself")
            else:
                entered.add(id(node))
                waiting.append((node, True))
                waiting += [(one, False) for one in inner]

    def _in_place(self, node: Mapping[str, Any]) -> Iterator[Any]:
        yield from (node[name] for name in _IN_PLACE_ONE if name in node)
        for name in _IN_PLACE_LISTS:
            yield from node.get(name, ())
        yield from node.get("dependentSchemas", {}).values()
        if "$ref" in node:
            yield _at(self._root, node["$ref"])

    def _count(self, node: Mapping[str, Any], inner: Iterable[Any]) -> None:
        count = chain = 1
        for one in inner:
            count += self._known.get(id(one), 1)
            chain = max(chain, 1 + self._chains.get(id(one), 0))
        if count > MAX_CHECKS_PER_VALUE:
            self._refuse("the schema would cost too much to check", code="unsupported_schema")
        if chain > MAX_REFERENCE_CHAIN:
            reason = f"references and rules of one value nest at most {MAX_REFERENCE_CHAIN} deep"
            self._refuse(reason, code="unsupported_schema")
        self._known[id(node)], self._chains[id(node)] = count, chain

    def _refuse(self, reason: str, code: str = "invalid_value") -> NoReturn:
        bad(reason, self._where, code=code)


def _at(root: Mapping[str, Any], reference: Any) -> Any:
    """What a reference such as `#/$defs/Person` points at. None if there is nothing.

    It is a part of an address, so "%20" is a space there, as the library has it too.
    """
    if reference == "#":
        return root
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    node: Any = root
    for step in unquote(reference[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        elif isinstance(node, dict) and name in node:
            node = node[name]
        else:
            return None
    return node if isinstance(node, dict | bool) else None
