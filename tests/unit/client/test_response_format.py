"""Requests of the Responses API to what is asked of a worker."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.client.gateway.formats.asks import Ask
from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.responses import parse_response
from piecework_protocol.conversation import Message


def parsed(*items: Any, **fields: Any) -> Ask:
    return parse_response({"model": "tale-1", "input": list(items) or "hi", **fields})


def refused(*items: Any, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parsed(*items, **fields)
    return caught.value


@pytest.mark.parametrize("kind", [[], {}, ["message"], {"a": 1}, 5, "web_search_call"])
def test_an_item_of_no_known_type_is_named(kind: Any) -> None:
    error = refused({"type": kind, "role": "user", "content": "x"})
    assert (error.status, error.param) == (400, "input[0]")
    assert error.code == "unsupported_parameter"


def test_a_type_that_is_null_is_one_that_is_not_said() -> None:
    ask = parsed({"type": None, "role": "user", "content": "x"})
    assert ask.conversations[0].messages == (Message("user", "x"),)


@pytest.mark.parametrize("form", [{}, {"schema": {"type": "text"}}, {"schema": {"nope": 1}}])
def test_a_schema_is_named_where_this_format_has_it(form: dict[str, Any]) -> None:
    error = refused(text={"format": {"type": "json_schema", "name": "x", **form}})
    assert (error.status, error.param) == (400, "text.format.schema")
