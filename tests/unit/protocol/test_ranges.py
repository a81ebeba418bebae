"""Every number of a peer has a range, and the wire refuses what lies outside."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from piecework_protocol import frames, objects, wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.ranges import RANGES, Range, check
from piecework_protocol.types import Amount
from tests.vectors import generate

MEMBER = tuple[type, str]


def integers() -> Iterator[MEMBER]:
    """Every integer member of every signed object and of every frame."""
    for module in (objects, frames):
        for kind in vars(module).values():
            if not isinstance(kind, type) or not dataclasses.is_dataclass(kind) or kind is Domain:
                continue
            hints = typing.get_type_hints(kind)
            for member in dataclasses.fields(kind):
                if wire.is_integer(hints[member.name]):
                    yield kind, member.name


def values() -> Iterator[tuple[Any, Any]]:
    """Every recorded value that travels, with its codec."""
    client = (wire.encode_client_frame, wire.decode_client_frame)
    worker = (wire.encode_worker_frame, wire.decode_worker_frame)
    offer = (wire.encode_offer, wire.decode_offer)
    for group, codec in (
        (generate.client_frames(), client),
        (generate.worker_frames(), worker),
        (generate.offers(), offer),
    ):
        for value in group.values():
            yield value, codec
    for call in generate.calls().values():
        yield call, (wire.encode_call, partial(wire.decode_call, type(call)))


def parts(value: Any) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """Every dataclass in a value, with what puts another in its place."""
    yield value, lambda other: other
    for member in dataclasses.fields(value):
        inner = getattr(value, member.name)
        items = inner if isinstance(inner, tuple) else (inner,)
        for index, item in enumerate(items):
            if not dataclasses.is_dataclass(item) or isinstance(item, type):
                continue
            for part, put in parts(item):

                def place(
                    other: Any, name: str = member.name, at: int = index, put: Any = put
                ) -> Any:
                    now = getattr(value, name)
                    new = put(other)
                    whole = (*now[:at], new, *now[at + 1 :]) if isinstance(now, tuple) else new
                    return replaced(value, name, whole)

                yield part, place


def replaced(value: Any, name: str, other: Any) -> Any:
    return dataclasses.replace(value, **{name: other})


def test_no_integer_member_lacks_a_range() -> None:
    assert set(integers()) == set(RANGES)


@pytest.mark.parametrize(("kind", "name"), sorted(RANGES, key=str))
def test_a_range_fits_its_type_and_a_signed_64_bit_column_or_an_amount(
    kind: type, name: str
) -> None:
    span = RANGES[kind, name]
    hint = typing.get_type_hints(kind)[name]
    assert 0 <= span.least <= span.greatest
    if hint is Amount:
        assert span.greatest < 2**96
    elif name != "seed":
        assert span.greatest < 2**63


def test_every_travelling_integer_member_is_refused_outside_of_its_range() -> None:
    seen: set[MEMBER] = set()
    for value, (encode, decode) in values():
        for part, put in parts(value):
            for kind, name in RANGES:
                if kind is not type(part) or (kind, name) in seen:
                    continue
                seen.add((kind, name))
                for outside in beyond(kind, name):
                    broken = put(replaced(part, name, outside))
                    with pytest.raises(MalformedInput, match="outside of"):
                        decode(encode(broken))
    local = {
        objects.Acceptance,
        objects.CancelWithdrawal,
        objects.RequestWithdrawal,
        objects.WithdrawPooled,
        objects.Registration,
        objects.AuditReport,
        objects.Verdict,
    }
    assert {kind for kind, _ in set(RANGES) - seen} == local


def beyond(kind: type, name: str) -> list[Any]:
    """The nearest values outside of a range that the member's type can hold."""
    hint, span = typing.get_type_hints(kind)[name], RANGES[kind, name]
    if isinstance(hint, type) and not issubclass(hint, int):
        return []
    if isinstance(hint, type) and hint is not int:
        return [member for member in hint if member > span.greatest]  # type: ignore[attr-defined]
    bits = {"Uint8": 8, "Uint16": 16, "Uint32": 32, "Micros": 32}.get(
        getattr(hint, "__name__", ""), 64
    )
    most = 2**128 - 1 if hint is Amount else 2**bits - 1
    if kind in vars(frames).values() and hint is int:
        most = 2**32 - 1 if span.greatest < 2**32 else 2**64 - 1
    low = [span.least - 1] if span.least > 0 else []
    return low + ([span.greatest + 1, most] if span.greatest < most else [])


def test_a_range_says_both_of_its_bounds() -> None:
    with pytest.raises(ValueError, match="7 is outside of 1 to 6"):
        Range(1, 6).check(7)


def test_an_object_that_never_travels_can_be_held_to_the_table() -> None:
    request = next(o for o in generate._objects() if isinstance(o, objects.RequestWithdrawal))
    check(request, "amount", "nonce", "deadline")
    with pytest.raises(ValueError, match=r"RequestWithdrawal\.nonce"):
        check(request.replace(nonce=2**24), "nonce")
