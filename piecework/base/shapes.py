"""What the annotation of a setting accepts, in plain words: "a whole number from 1 to 256"."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_LISTS: Final = (tuple, list, set, frozenset)
_NAMES: Final[dict[object, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
}
_MANY: Final[dict[object, str]] = {
    int: "whole numbers",
    float: "numbers",
    str: "texts",
    Path: "paths",
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a value is, in words of its own. Stands in the metadata of an annotation."""

    text: str


def expected(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return what a value of this annotation is, with its bounds."""
    bounds = _bounds(metadata)
    inner = [part for part in _alternatives(annotation) if part is not type(None)]
    if len(inner) != 1:
        return " or ".join(dict.fromkeys(expected(part, metadata) for part in inner))
    kind = inner[0]
    if get_origin(kind) is Annotated:
        base, *more = get_args(kind)
        return expected(base, [*metadata, *more])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(str(choice.value) for choice in kind)
    if get_origin(kind) in _LISTS:
        element = next((a for a in get_args(kind) if a is not Ellipsis), str)
        return f"a list of {_plural(element)}{_length(bounds, 'of them')}"
    name = _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
    name = next((item.text for item in metadata if isinstance(item, Words)), name)
    return name + (_length(bounds, "characters") if kind in (str, Path) else _range(bounds))


def is_list(annotation: Any) -> bool:
    """Whether a setting takes several values, which the environment separates by commas."""
    return any(get_origin(part) in _LISTS for part in _bare(annotation))


def is_wrong_number(value: Any, annotation: Any) -> bool:
    """Whether pydantic would take for a number what a person did not mean as one.

    TOML's `true` would become 1. A float for a whole number would lose its last digits: 1e23
    would become 99999999999999991611392.
    """
    if isinstance(value, list | tuple):
        return any(is_wrong_number(one, annotation) for one in value)
    scalars = set(_scalars(annotation))
    if isinstance(value, bool):
        return bool not in scalars and bool(scalars & {int, float})
    return isinstance(value, float) and int in scalars and float not in scalars


def _alternatives(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _alternatives(part)
    else:
        yield annotation


def _bare(annotation: Any) -> Iterator[Any]:
    """The alternatives without their metadata."""
    for part in _alternatives(annotation):
        if get_origin(part) is Annotated:
            yield from _bare(get_args(part)[0])
        else:
            yield part


def _scalars(annotation: Any) -> Iterator[Any]:
    for part in _bare(annotation):
        if get_origin(part) in _LISTS:
            for element in get_args(part):
                yield from _scalars(element)
        elif get_origin(part) is Literal:
            yield from {type(choice) for choice in get_args(part)}
        else:
            yield part


def _plural(element: Any) -> str:
    bare = next(_bare(element))
    return _MANY.get(bare) or expected(element).removeprefix("a ")


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    """Bounds by their names: ge, gt, le, lt, multiple_of, min_length, max_length."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _bounds(item.metadata)
        for name in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"):
            if getattr(item, name, None) is not None:
                found[name] = getattr(item, name)
    return found


def _range(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        parts = [f"from {_number(low)} to {_number(high)}"]
    else:
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        parts = [f"{words[n]} {_number(v)}" for n, v in bounds.items() if n in words]
    if "multiple_of" in bounds:
        parts.append(f"a multiple of {_number(bounds['multiple_of'])}")
    return f" {' and '.join(parts)}" if parts else ""


def _length(bounds: dict[str, Any], what: str) -> str:
    low, high = bounds.get("min_length"), bounds.get("max_length")
    if low is not None and high is not None:
        return f" ({low} to {high} {what})"
    if low is not None:
        return f" (at least {low} {what})"
    return f" (at most {high} {what})" if high is not None else ""


def _number(value: Any) -> str:
    """A bound. Nobody counts the digits of a power of two."""
    if isinstance(value, int) and value >= 2**40:
        for number, suffix in ((value, ""), (value + 1, "-1")):
            if number & (number - 1) == 0:
                return f"2^{number.bit_length() - 1}{suffix}"
    return str(value)
