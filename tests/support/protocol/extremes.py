"""Every integer inside a value, and the value with one of them changed."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
EXTREMES = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**96, 2**128 - 1)


def integers(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where the integers of a value are: members of dataclasses, places in tuples."""
    if isinstance(value, enum.Enum):
        if isinstance(value, int):
            yield path
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.init:
                yield from integers(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, tuple):
        for place, part in enumerate(value):
            yield from integers(part, (*path, place))


def changed(value: Any, path: Path, number: int) -> Any:
    """The value with another integer at a path.

    Raises:
        ValueError: a class on the way does not take it.
    """
    if not path:
        return number
    step, *rest = path
    if isinstance(step, int):
        parts = list(value)
        parts[step] = changed(parts[step], tuple(rest), number)
        return tuple(parts)
    return dataclasses.replace(value, **{step: changed(getattr(value, step), tuple(rest), number)})


def name(path: Path) -> str:
    """A path as a test shows it."""
    return ".".join(str(step) for step in path)
