"""What a slot becomes that no job could fill: a narrower one. Pure.

A slot in which many values may stand leaves the choice to the model. A model that twice wrote
nothing valid there gets less to choose. One that filled the hole with JSON and lacked room gets
more room first.

- a list or an object of free length ends behind what was read, or has a slot for each item that it
  lacks
- of several kinds of values the first is left, null comes last
- a value of any kind becomes a string
- a number, or a date, a time or a duration by its format, becomes one of a few after one more try,
  and a read job decides which
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, TypeAlias

from piecework.client.gateway.formats.schema import JsonSchema, Path
from piecework.client.gateway.formats.skeleton import (
    MAX_FIXED_ITEMS,
    Piece,
    Skeleton,
    SkeletonBuilder,
    Slot,
    SlotKind,
    bounded,
    merged,
    types_of,
)

NUMBERS: Final = (*range(11), 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)
"""What a number without bounds is chosen from. A bound shifts them."""
FAR: Final = 10**15
"""A bound beyond is none."""
DECIMALS: Final = 20
"""Steps between the bounds of a number that need not be whole."""
MAX_GROWING_TOKENS: Final = 2048
"""Of a hole that the model filled and may fill again. One that would be larger becomes narrower."""
MAX_MERGES: Final = 64
"""Alternatives in one another that are followed."""

_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_DATE: Final = (
    ("year", tuple(map(str, range(2010, 2031)))),
    "-",
    ("month", tuple(f"{n:02}" for n in range(1, 13))),
    "-",
    ("day", tuple(f"{n:02}" for n in range(1, 29))),
)
_TIME: Final = (
    ("hour", tuple(f"{n:02}" for n in range(24))),
    ":",
    ("minute", tuple(f"{n:02}" for n in range(0, 60, 5))),
    ":00",
)
_FORMS: Final[dict[Any, tuple[str | tuple[str, tuple[str, ...]], ...]]] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": (*_DATE, "T", *_TIME, "Z"),
    "duration": ("PT", _TIME[0], "H", _TIME[2], "M"),
}
"""Strings of these formats in parts, with what each part is chosen from."""
_Above: TypeAlias = tuple[int, ...]


def narrowed(
    schema: JsonSchema, pieces: Skeleton, *, few_numbers: bool, grows: bool = True
) -> Skeleton:
    """Return a skeleton with narrower slots. A slot that cannot be narrower stays as it is.

    few_numbers: whether numbers become one of a few. grows: whether a slot that lacked room stays
    as it is.

    Raises:
        ApiError: The documents have too many parts, or too long ones.
    """
    narrow = _Narrower(schema, few_numbers=few_numbers, grows=grows)
    return merged(
        bounded(
            one
            for piece in pieces
            for one in ((piece,) if isinstance(piece, str) else narrow.slot(piece))
        )
    )


class _Narrower:
    def __init__(self, schema: JsonSchema, *, few_numbers: bool, grows: bool) -> None:
        self._schema, self._builder = schema, SkeletonBuilder(schema)
        self._few_numbers, self._grows = few_numbers, grows
        self._made: list[Mapping[str, Any]] = []
        """Nodes put together. They stay, as nodes are told apart by their identity."""
        self._found: dict[Path, tuple[Mapping[str, Any], _Above]] = {}
        """What stands around many slots is put together once."""

    def slot(self, slot: Slot) -> Iterator[Piece]:
        if slot.options or self._goes_on(slot):
            yield slot
            return
        node, above = self._at(slot.path)
        if slot.kind is SlotKind.TEXT:
            form = _FORMS.get(node.get("format"), ()) if self._few_numbers else ()
            yield from _parts(form, slot.path) if form and not slot.given else (slot,)
        elif slot.kind is SlotKind.ITEMS:
            yield from self._items(slot, node, above)
        elif slot.kind is SlotKind.MEMBERS:
            least = node.get("minProperties", 0)
            yield ", ".join(slot.given) if len(slot.given) >= least else slot
        else:
            yield from self._value(slot, node, above)

    def _goes_on(self, slot: Slot) -> bool:
        """Whether a slot lacked room alone, and gets more.

        A value begins again with each job, so it waits no longer than a number does.
        """
        if not slot.full or not self._grows or slot.tokens > MAX_GROWING_TOKENS:
            return False
        return slot.is_sequence or not self._few_numbers

    def _items(self, slot: Slot, node: Mapping[str, Any], above: _Above) -> Iterator[Piece]:
        """A list that has none gets an item if it may. The model can fill that at least.

        One whose items begin the list's own object again has no end, so it gets none.
        """
        count = len(slot.given)
        least = node.get("minItems", 0)
        if id(self._schema.resolved(_inner(node, 0))) not in above:
            least = max(least, min(1, node.get("maxItems", 1)))
        if least > MAX_FIXED_ITEMS:
            yield slot
            return
        yield ", ".join(slot.given)
        for i in range(count, least):
            yield ", " if i else ""
            yield from self._builder.build(_inner(node, i), (*slot.path, i), above)

    def _value(self, slot: Slot, node: Mapping[str, Any], above: _Above) -> Iterator[Piece]:
        kinds = types_of(node)
        if "const" in node or "enum" in node:
            yield from self._builder.build(node, slot.path, above[:-1])
        elif self._few_numbers and kinds and kinds[0] in ("integer", "number"):
            options = tuple(map(json.dumps, numbers(node)))
            yield replace(slot, options=options) if len(options) > 1 else "".join(options) or slot
        elif kinds or "properties" in node:
            yield from self._builder.typed(node, slot.path, above)
        else:
            yield from self._builder.typed({**node, "type": "string"}, slot.path, above)

    # --- nodes

    def _at(self, path: Path) -> tuple[Mapping[str, Any], _Above]:
        """The node of a place without alternatives, and the nodes around it with itself."""
        if path not in self._found:
            if path:
                around, above = self._at(path[:-1])
                self._found[path] = self._plain(_inner(around, path[-1]), above)
            else:
                self._found[path] = self._plain(self._schema.root, ())
        return self._found[path]

    def _plain(self, raw: Any, above: _Above) -> tuple[Mapping[str, Any], _Above]:
        """Put a node and its first alternatives together."""
        node = self._schema.resolved(raw)
        seen = [id(node)]
        for _ in range(MAX_MERGES):
            name = next((n for n in ("$ref", "allOf", "anyOf", "oneOf") if _has(node, n)), None)
            if name is None:
                break
            rest = {k: v for k, v in node.items() if k != name}
            if name == "$ref":
                parts = [self._schema.resolved({"$ref": node["$ref"]})]
            elif name == "allOf":
                parts = [self._schema.resolved(one) for one in node["allOf"]]
            else:
                parts = [self._first(node[name], (*above, *seen))]
            seen += map(id, parts)
            node = self._merged([rest, *parts])
        if not isinstance(node, dict):
            node = self._merged([])
        kinds = types_of(node)
        if len(kinds) > 1:
            node = self._merged([node, {"type": next(k for k in kinds if k != "null")}])
        return node, (*above, *seen, id(node))

    def _first(self, branches: list[Any], above: _Above) -> Any:
        """The first branch that is neither null nor endless. Else null, if that is one of them."""
        found = [self._schema.resolved(branch) for branch in branches]
        ends = [one for one in found if one is not False and id(one) not in above]
        wanted = [one for one in ends if not isinstance(one, dict) or one.get("type") != "null"]
        return (wanted or ends or found)[0]

    def _merged(self, nodes: list[Any]) -> Mapping[str, Any]:
        """One node with the rules of several. Of two rules of one name the last one counts."""
        whole: dict[str, Any] = {}
        for node in nodes:
            if not isinstance(node, dict):
                continue
            properties = {**whole.get("properties", {}), **node.get("properties", {})}
            required = list(dict.fromkeys((*whole.get("required", ()), *node.get("required", ()))))
            whole = {**whole, **node}
            whole |= {"properties": properties} if properties else {}
            whole |= {"required": required} if required else {}
        self._made.append(whole)
        return whole


def _parts(form: tuple[str | tuple[str, tuple[str, ...]], ...], path: Path) -> Iterator[Piece]:
    """A string in parts. Each part that is open has a place of its own inside the string's."""
    for part in form:
        if isinstance(part, str):
            yield part
        else:
            name, options = part
            yield Slot(SlotKind.TEXT, (*path, name), len(options[0]), options=options)


def _has(node: Any, name: str) -> bool:
    return isinstance(node, dict) and name in node


def _inner(node: Mapping[str, Any], step: str | int) -> Any:
    """The node of a member or of an item."""
    if isinstance(step, str):
        return node.get("properties", {}).get(step, node.get("additionalProperties", True))
    first = node.get("prefixItems", ())
    return first[step] if step < len(first) else node.get("items", True)


def numbers(node: Mapping[str, Any]) -> list[float]:
    """Numbers that hold a node's bounds, as many as a question may have. Maybe none."""
    low, high = _bound(node, "inimum"), _bound(node, "aximum")
    whole = "multipleOf" in node or types_of(node)[0] == "integer"
    step = Fraction(str(node.get("multipleOf", 1))).numerator if whole else 1
    found: list[float]
    if low is not None and high is not None:
        if not whole:
            found = _decimals(low, high)
        else:
            found = [step * n for n in _spread(math.ceil(low / step), math.floor(high / step))]
    elif high is not None:
        found = sorted(step * (math.floor(high / step) - n) for n in NUMBERS)
    else:
        found = [step * (math.ceil((low or Fraction()) / step) + n) for n in NUMBERS]
    bounds = JsonSchema({name: node[name] for name in _BOUNDS if name in node})
    return [n for n in found if not bounds.faults(n)]


def _bound(node: Mapping[str, Any], name: str) -> Fraction | None:
    """The least or the greatest number, or one that is excluded."""
    bounds = [node[word] for word in (f"m{name}", f"exclusiveM{name}") if word in node]
    near = [Fraction(bound) for bound in bounds if abs(bound) < FAR]
    return None if not near else max(near) if name == "inimum" else min(near)


def _spread(first: int, last: int) -> list[int]:
    """Whole numbers between two, both included: all of them, or both and round ones between."""
    step = next(
        unit * 10**power
        for power in range(20)
        for unit in (1, 2, 5)
        if last - first < len(NUMBERS) * unit * 10**power
    )
    between = range(step * (first // step + 1), last, step)
    return list(dict.fromkeys((first, *between, last))) if first <= last else []


def _decimals(low: Fraction, high: Fraction) -> list[float]:
    """Numbers at even distances between two, with as few digits as tell them apart."""
    digits = 2 - math.floor(math.log10(high - low)) if high > low else 15
    found = (round(float(low + (high - low) * i / DECIMALS), digits) for i in range(DECIMALS + 1))
    return [int(n) if n.is_integer() else n for n in dict.fromkeys(found)]
