"""A document's skeleton: what a schema fixes, and slots for what is free. Pure.

The skeleton becomes a template. Its texts are pinned, so they cannot break, and the model fills the
slots. Of an object with named properties the keys are fixed, also those that are optional, as many
as it may have. Of a list whose length is free the brackets are fixed. The quotes around a string
are fixed too. A short string ends with an end-of-text token. What follows that token in the hole is
left out, so the quote follows the string at once.

A slot's value is read from its start. If the model closed the string or the list by itself and went
on with the document, what it wrote behind that is dropped, because the skeleton has it already.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from piecework.base.jsons import loads
from piecework.client.gateway.formats.common import bad
from piecework.client.gateway.formats.schema import MAX_SCHEMA_DEPTH, NOTES, JsonSchema, Path
from piecework_protocol.limits import MAX_CONTENT_BYTES, MAX_LABELS

MAX_FIXED_ITEMS: Final = 64
"""A list of a fixed length up to this has a slot for each item."""
MAX_PARTS: Final = 4096
"""Values of a document that have a place of their own."""
MAX_VALUE_DEPTH: Final = 32
TEXT_TOKENS: Final = 48
"""Room for a string at first. One that fills it goes on in a larger hole."""
CHARACTERS_PER_TOKEN: Final = 3
"""Of prose, in a short string."""
MAX_TOKEN_BYTES: Final = 16
"""Of nearly every token in a document."""
NUMBER_TOKENS: Final = 16
VALUE_TOKENS: Final = 128
LIST_TOKENS: Final = 192
LEAST_TOKENS: Final = 8
MAX_SLOT_TOKENS: Final = 4096
_FEW: Final[dict[str, tuple[Any, ...]]] = {"boolean": (True, False), "null": (None,)}
"""Types with few values."""
_ALTERNATIVES = ("anyOf", "oneOf", "not", "if", "dependentSchemas")
# What may follow a value that the model closed by itself: the document goes on.
_GOES_ON = re.compile(r"\s*+(?:[}\]]|,\s*+[\"{\[\]}]|,?\s*+$)")
_CONTROL = re.compile(r"[\x00-\x1f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# A character that broke off: an escape, half of a pair of escapes, or bytes of a character.
_BROKEN_OFF = re.compile(
    r"(?<!\\)(?:\\\\)*+((?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?|\ufffd+)$"
)
_WORDS = re.compile(r"[A-Za-z]+")
_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(r"[^\s,}\]]+")
_QUOTED = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# A string without an end is skipped whole: no text is read twice.
_STEP = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


class SlotKind(enum.Enum):
    """What stands in a slot."""

    TEXT = "the characters of a string, without its quotes"
    VALUE = "a whole JSON value"
    ITEMS = "the items of a list, without its brackets"
    MEMBERS = "the members of an object, without its braces"


@dataclass(frozen=True, slots=True)
class Slot:
    """A free part of a document.

    path: where its value stands. tokens: positions in the template. given: items of a list,
    members of an object, or a string's first characters, that are pinned in front. options: what
    it can hold, as JSON that goes into its place, if that is one of a few values. full: whether the
    last job filled its hole before the value had an end.
    """

    kind: SlotKind
    path: Path
    tokens: int
    given: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    full: bool = False

    @property
    def is_sequence(self) -> bool:
        """Whether it holds items, or members, that can be pinned one by one."""
        return self.kind in (SlotKind.ITEMS, SlotKind.MEMBERS)

    @property
    def front(self) -> str:
        """The text that is pinned in front of the slot."""
        if self.kind is SlotKind.TEXT:
            return "".join(self.given)
        return "".join(f"{one}, " for one in self.given)


def types_of(node: Mapping[str, Any]) -> list[str]:
    """The types that a node names."""
    named = node.get("type", [])
    return [named] if isinstance(named, str) else list(named)


Piece: TypeAlias = str | Slot
Skeleton: TypeAlias = tuple[Piece, ...]


def skeleton(schema: JsonSchema) -> Skeleton:
    """Return the skeleton of a schema's documents. Two texts never follow each other.

    Raises:
        ApiError: The documents have too many parts, or too long ones.
    """
    return merged(bounded(SkeletonBuilder(schema).build(schema.root, (), ())))


def bounded(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Pass the pieces on until their texts are longer than a prompt may be.

    Raises:
        ApiError: They are.
    """
    left = MAX_CONTENT_BYTES
    for piece in pieces:
        left -= len(piece) if isinstance(piece, str) else 0
        if left < 0:
            bad("the schema's documents are too long", None, code="unsupported_schema")
        yield piece


def expanded(pieces: Skeleton) -> Skeleton:
    """Return the pieces with the texts that are pinned in front of slots."""
    return merged(one for piece in pieces for one in _with_front(piece))


def _with_front(piece: Piece) -> tuple[Piece, ...]:
    return (piece,) if isinstance(piece, str) else (piece.front, piece)


def merged(pieces: Iterable[Piece]) -> Skeleton:
    """Put texts together that follow each other."""
    found: list[Piece] = []
    texts: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            texts.append(piece)
            continue
        found += [text] if (text := "".join(texts)) else []
        texts.clear()
        found.append(piece)
    found += [text] if (text := "".join(texts)) else []
    return tuple(found)


class SkeletonBuilder:
    """Makes the pieces of a schema's documents."""

    def __init__(self, schema: JsonSchema) -> None:
        self._schema = schema
        self._built = 0
        self._choices: dict[int, Skeleton] = {}  # by node: many places may refer to one
        self._values: dict[int, list[Any] | None] = {}  # so too

    def build(self, raw: Any, path: Path, above: tuple[int, ...]) -> Iterator[Piece]:
        """Yield the pieces of a node's documents. `above`: the nodes that it stands in."""
        self._built += 1
        if self._built > MAX_PARTS:
            bad("the schema's documents have too many parts", None, code="unsupported_schema")
        node = self._inlined(raw)
        if not isinstance(node, dict) or id(node) in above or len(above) > MAX_SCHEMA_DEPTH:
            yield Slot(SlotKind.VALUE, path, VALUE_TOKENS)
        elif (found := self._choice_of(node)) is not None:
            for piece in found:
                yield piece if isinstance(piece, str) else replace(piece, path=path)
        elif any(name in node for name in (*_ALTERNATIVES, "allOf", "$ref")):
            yield Slot(SlotKind.VALUE, path, VALUE_TOKENS)
        else:
            yield from self.typed(node, path, (*above, id(node)))

    def _choice_of(self, node: Mapping[str, Any]) -> Skeleton | None:
        """The pieces of a node whose values are few. None if they are not."""
        if id(node) not in self._choices:
            values = self._few(node)
            if values is None:
                return None
            self._choices[id(node)] = tuple(_choice(values))
        return self._choices[id(node)]

    def _few(self, raw: Any, depth: int = 0) -> list[Any] | None:
        """The values of a node of which each is known. None if there are others, or many."""
        node = self._inlined(raw)
        if not isinstance(node, dict) or depth > MAX_SCHEMA_DEPTH:
            return None
        if id(node) not in self._values:
            self._values[id(node)] = self._listed(node, depth)
        return self._values[id(node)]

    def _listed(self, node: Mapping[str, Any], depth: int) -> list[Any] | None:
        if "const" in node:
            return [node["const"]]
        if "enum" in node:
            return list(node["enum"])
        rules = node.keys() - NOTES
        for name in ("anyOf", "oneOf"):
            if rules == {name}:
                return self._together(node[name], depth)
        if not rules.intersection((*_ALTERNATIVES, "allOf", "$ref")):
            kinds = types_of(node)
            if kinds and all(kind in _FEW for kind in kinds):
                return [value for kind in kinds for value in _FEW[kind]]
        return None

    def _together(self, branches: Iterable[Any], depth: int) -> list[Any] | None:
        """The values of all branches. Each may refer to one long list, so their sum is bounded."""
        found: list[Any] = []
        for branch in branches:
            values = self._few(branch, depth + 1)
            if values is None or len(found) + len(values) > MAX_LABELS:
                return None
            found += values
        return found

    def _inlined(self, raw: Any) -> Any:
        """Follow references, and an `allOf` of one that stands alone."""
        node = self._schema.resolved(raw)
        for _ in range(MAX_SCHEMA_DEPTH):
            if not isinstance(node, dict) or len(node.get("allOf", ())) != 1:
                return node
            if node.keys() - NOTES != {"allOf"}:
                return node
            node = self._schema.resolved(node["allOf"][0])
        return node

    def typed(self, node: Mapping[str, Any], path: Path, above: tuple[int, ...]) -> Iterator[Piece]:
        """Yield the pieces of a node without alternatives. `above` ends with the node itself."""
        kinds = types_of(node)
        kind = kinds[0] if len(kinds) == 1 else None
        if not kinds and "properties" in node:
            kind = "object"
        if kind == "object":
            yield from self._object(node, path, above)
        elif kind == "array":
            yield from self._array(node, path, above)
        elif kind == "string":
            yield from ('"', Slot(SlotKind.TEXT, path, _text_tokens(node)), '"')
        elif kind == "null":
            yield "null"
        elif kind in ("integer", "number"):
            yield Slot(SlotKind.VALUE, path, NUMBER_TOKENS)
        else:
            yield Slot(SlotKind.VALUE, path, VALUE_TOKENS)

    def _object(
        self, node: Mapping[str, Any], path: Path, above: tuple[int, ...]
    ) -> Iterator[Piece]:
        properties = dict(node.get("properties", {}))
        others = node.get("additionalProperties", True)
        for name in node.get("required", ()):
            properties.setdefault(name, others)
        if not properties:
            if others is False:
                yield "{}"
            else:
                yield from ("{", Slot(SlotKind.MEMBERS, path, LIST_TOKENS), "}")
            return
        required = node.get("required", ())
        spare = node.get("maxProperties", len(properties) + len(required)) - len(set(required))
        wanted = {}
        for name, inner in properties.items():
            if name not in required:
                if spare < 1 or self._is_optional_and_endless(inner, above):
                    continue
                spare -= 1
            wanted[name] = inner
        yield "{"
        for i, (name, inner) in enumerate(wanted.items()):
            yield (", " if i else "") + json.dumps(name, ensure_ascii=False) + ": "
            yield from self.build(inner, (*path, name), above)
        yield "}"

    def _is_optional_and_endless(self, inner: Any, above: tuple[int, ...]) -> bool:
        """An optional property that is forbidden, or begins its own object again, is left out."""
        node = self._inlined(inner)
        return node is False or id(node) in above

    def _array(
        self, node: Mapping[str, Any], path: Path, above: tuple[int, ...]
    ) -> Iterator[Piece]:
        first = list(node.get("prefixItems", ()))
        others = node.get("items", True)
        most = len(first) if others is False else node.get("maxItems")
        least = node.get("minItems", len(first) if others is False else 0)
        if most is None or most != least or most > MAX_FIXED_ITEMS:
            yield from ("[", Slot(SlotKind.ITEMS, path, LIST_TOKENS), "]")
            return
        yield "["
        for i in range(int(most)):
            yield ", " if i else ""
            yield from self.build(first[i] if i < len(first) else others, (*path, i), above)
        yield "]"


def _text_tokens(node: Mapping[str, Any]) -> int:
    """Room for a string. One that may be longer than its rule is cut, so it gets no more."""
    least = min(MAX_SLOT_TOKENS, int(node.get("minLength", 0)))
    most = node.get("maxLength")
    if most is None:
        return max(TEXT_TOKENS, least)
    return max(1, min(MAX_SLOT_TOKENS, TEXT_TOKENS, -(-int(most) // CHARACTERS_PER_TOKEN)), least)


def _choice(values: Sequence[Any]) -> Iterator[Piece]:
    """One of several values, at no place yet. No token is shorter than a byte, so bytes are
    enough. A value that the schema names twice is one.
    """
    written = tuple(dict.fromkeys(json.dumps(value, ensure_ascii=False) for value in values))
    if len(written) == 1:
        yield written[0]
    elif all(isinstance(value, str) for value in values):
        inside = tuple(text[1:-1] for text in written)
        yield from ('"', Slot(SlotKind.TEXT, (), _longest(inside), options=inside), '"')
    else:
        yield Slot(SlotKind.VALUE, (), _longest(written), options=written)


def _longest(texts: Sequence[str]) -> int:
    return max(1, min(MAX_SLOT_TOKENS, max(len(text.encode()) for text in texts)))


# --- from a text back to values


@dataclass(frozen=True, slots=True)
class Content:
    """What a slot holds.

    text: the JSON that goes into its place. None if it is not valid JSON of its kind.
    done: values of a list, or members of an object, that were read before a broken one. Of a
        string that goes on: its first characters.
    closed: whether the model itself ended a string, with a quote.
    full: whether JSON fills the hole and has no end there.
    """

    text: str | None
    done: tuple[str, ...] = ()
    closed: bool = False
    full: bool = False


def contents(pieces: Skeleton, text: str) -> list[str]:
    """Cut a filled skeleton into what its slots hold. A slot that cannot be found is empty."""
    found: list[str] = []
    at = 0
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            at += len(piece) if text.startswith(piece, at) else 0
            continue
        follows = next((p for p in pieces[i + 1 :] if isinstance(p, str)), None)
        last = follows is not None and i + 2 == len(pieces)
        end = -1 if follows is None else (text.rfind if last else text.find)(follows, at)
        end = len(text) if end < 0 else end
        found.append(text[at:end])
        at = end
    return found


def read_slot(slot: Slot, text: str) -> Content:
    """Read a slot's content."""
    if slot.kind is SlotKind.TEXT:
        return _read_text(text)
    if slot.kind is SlotKind.VALUE:
        start = _space(text, 0)
        end = _value_end(text, start)
        if end is None or not _GOES_ON.match(text, end) or _parsed(text[start:end]) is None:
            return Content(None, full=_is_full(slot, text, start))
        return Content(text[start:end])
    done, broken = _read_sequence(text, members=slot.kind is SlotKind.MEMBERS)
    if broken is None:
        return Content(", ".join(done), done)
    return Content(None, done, full=_is_full(slot, text, broken))


def _is_full(slot: Slot, text: str, at: int) -> bool:
    """Whether a text fills its hole, and the JSON that begins at `at` has no end in it."""
    if token_estimate(text) < slot.tokens:
        return False
    depth, is_open = 0, False
    for step in _STEP.finditer(text, at):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(step[0], 0)
        if depth < 0:
            return False
        is_open = step.end() == len(text) and _QUOTED.fullmatch(step[0]) is None
    return depth > 0 or is_open or text[at:].rstrip()[-1:] in ("", ",", ":")


def written_in(slot: Slot, value: Any) -> Content:
    """Return what a slot holds if `value` is the document. A value that has no such part holds
    nothing there, and neither does one of another kind.
    """
    for step in slot.path:
        inside = isinstance(value, dict) if isinstance(step, str) else isinstance(value, list)
        if not inside or (step not in value if isinstance(step, str) else step >= len(value)):
            return Content(None)
        value = value[step]
    if slot.kind is SlotKind.VALUE:
        return Content(_written(value))
    if slot.kind is SlotKind.TEXT:
        return Content(_written(value)[1:-1] if isinstance(value, str) else None)
    if slot.kind is SlotKind.ITEMS:
        parts = tuple(map(_written, value)) if isinstance(value, list) else None
    else:
        whole = isinstance(value, dict)
        parts = tuple(f"{_written(k)}: {_written(v)}" for k, v in value.items()) if whole else None
    return Content(None) if parts is None else Content(", ".join(parts), parts)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _read_text(text: str) -> Content:
    """Read a string's characters: as JSON has them, or as they are if that is not JSON.

    A quote that no document goes on behind is a quote of the prose.
    """
    end = _QUOTED.match('"' + text + '"')
    if end is not None:
        rest, closed = text[end.end() - 1 :], end.end() <= len(text) + 1
        # Line breaks are not JSON inside a string, and their meaning is clear.
        value = _parsed(_CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], end[0]))
        whole = value is not None and not _SURROGATE.search(value[0])
        if value is not None and whole and (not rest or _GOES_ON.match(rest)):
            return Content(json.dumps(value[0], ensure_ascii=False)[1:-1], closed=closed)
    return Content(json.dumps(text, ensure_ascii=False)[1:-1])


def goes_on(slot: Slot, text: str, charged: int | None, likely: int = 0) -> Content | None:
    """Return what a string has so far if its hole may have come back full. None if it has an end.

    charged: tokens that the hole can have had at most, or None. likely: tokens that it has by the
    measure of the whole document. Nobody here has the tokenizer. A string that is taken for
    unfinished by mistake ends at once in the next hole.
    """
    if slot.kind is not SlotKind.TEXT or slot.options:
        return None
    if max(likely, token_estimate(text)) < slot.tokens:
        return None
    if (charged is not None and charged < slot.tokens) or _read_text(text).closed:
        return None
    broken = _BROKEN_OFF.search(text)
    whole = text if broken is None else text[: broken.start(1)]
    return Content(None, tuple(filter(None, (_read_text(whole).text,))))


def token_estimate(text: str) -> int:
    """Tokens of a text for a large vocabulary, rather too many. Two letters are a token at least.

    A single space belongs to the word behind it. Any other byte is a token.
    """
    words = sum(len(word) - -(-len(word) // 2) for word in _WORDS.findall(text))
    return len(text.encode()) - words - len(re.findall(r" (?=[A-Za-z])", text))


def token_floor(text: str) -> int:
    """Tokens that a text has at least."""
    return len(text.encode()) // MAX_TOKEN_BYTES


def _read_sequence(text: str, *, members: bool) -> tuple[tuple[str, ...], int | None]:
    """Read items, or members, one behind the other.

    Returns:
        Those before the first broken one, and where that begins. None if all are whole.
    """
    done: list[str] = []
    at = _space(text, 0)
    while at < len(text) and text[at] not in "]}":
        end = _member_end(text, at) if members else _value_end(text, at)
        written = "" if end is None else text[at:end]
        if end is None or _parsed(f"{{{written}}}" if members else written) is None:
            return tuple(done), at
        done.append(written)
        at = _space(text, end)
        if at >= len(text) or text[at] in "]}":
            break
        if text[at] != ",":
            return tuple(done), at
        at = _space(text, at + 1)
        if at >= len(text):
            return tuple(done), at
    return tuple(done), None


def _member_end(text: str, at: int) -> int | None:
    name = _QUOTED.match(text, at)
    if name is None:
        return None
    colon = _space(text, name.end())
    if not text.startswith(":", colon):
        return None
    return _value_end(text, _space(text, colon + 1))


def _value_end(text: str, at: int) -> int | None:
    """Where the JSON value that starts here ends. None if it does not end."""
    if text.startswith(('"', "{", "["), at):
        depth = 0
        for step in _STEP.finditer(text, at):
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(step[0], 0)
            if depth == 0:
                return step.end() if step.start() == at or step[0] in "]}" else None
        return None
    scalar = _SCALAR.match(text, at)
    return None if scalar is None else scalar.end()


def _parsed(text: str) -> tuple[Any] | None:
    """The value in a tuple, as None is a value too."""
    try:
        return (loads(text, max_depth=MAX_VALUE_DEPTH),)
    except ValueError:
        return None


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def scaled(pieces: Skeleton, most: int) -> Skeleton | None:
    """Shrink the slots so that all have at most `most` tokens together. None if they cannot."""
    slots = [piece for piece in pieces if isinstance(piece, Slot)]
    total = sum(slot.tokens for slot in slots)
    if total <= most:
        return pieces
    least = sum(min(slot.tokens, LEAST_TOKENS) for slot in slots)
    if least > most:
        return None
    share = (most - least) / (total - least)
    return tuple(
        piece if isinstance(piece, str) else replace(piece, tokens=_shrunk(piece.tokens, share))
        for piece in pieces
    )


def _shrunk(tokens: int, share: float) -> int:
    kept = min(tokens, LEAST_TOKENS)
    return kept + int((tokens - kept) * share)
