"""JSON from outside: as Python reads it, but bounded, and only what RFC 8259 allows."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.base.jsons import MAX_JSON_DEPTH, loads


@given(
    st.recursive(
        st.text('ab[]{}\\"é\0') | st.integers(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_json_is_read_as_python_reads_it(value: Any) -> None:
    padded = [[0]] * MAX_JSON_DEPTH  # enough brackets that the depth is counted
    assert loads(json.dumps([value, padded]).encode()) == [value, padded]


@given(st.text('[]{}"\\a,:1 ', max_size=300))
def test_text_that_is_not_json_is_refused_in_one_way(text: str) -> None:
    for data in (text.encode(), b"[" * 100 + text.encode(), b'"' + text.encode() * 50):
        with contextlib.suppress(ValueError):
            loads(data)


def test_json_may_nest_up_to_the_limit() -> None:
    assert loads(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH)
    for deep in (MAX_JSON_DEPTH + 1, 1_000_000):
        with pytest.raises(ValueError, match="nested"):
            loads(b"[" * deep + b"]" * deep)
        with pytest.raises(ValueError, match="nested"):
            loads(b'{"a":' * deep)
    assert loads(json.dumps(["[" * 100_000, '"\\["' * 1000]).encode())[0] == "[" * 100_000
    with pytest.raises(UnicodeDecodeError):
        loads("[]".encode("utf-16"))


def test_a_caller_may_allow_less() -> None:
    assert loads("[[1]]", max_depth=2) == [[1]]
    with pytest.raises(ValueError, match="deeper than 2"):
        loads("[[[1]]]", max_depth=2)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e999]"])
def test_what_is_not_a_finite_number_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):
        loads(text)


def test_an_object_that_names_a_member_twice_is_refused_where_readers_must_agree() -> None:
    twice = '{"a": [{"b": 1, "c": 2, "b": 3}]}'
    assert loads(twice) == {"a": [{"b": 3, "c": 2}]}
    with pytest.raises(ValueError, match="twice"):
        loads(twice, unique=True)
    assert loads('{"a": [{"b": 1}, {"b": 1}]}', unique=True) == {"a": [{"b": 1}, {"b": 1}]}
