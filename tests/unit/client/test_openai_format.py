"""OpenAI's format to and from ours."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.client.gateway.openai_format import ApiError, StopCutter, parse_chat
from piecework_protocol.conversation import Message

BASE: dict[str, Any] = {"model": "tale-1", "messages": [{"role": "user", "content": "hi"}]}


def parsed(**fields: Any) -> Any:
    return parse_chat({**BASE, **fields})


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parsed(**fields)
    return caught.value


def test_fields_that_ask_for_nothing_special_are_accepted() -> None:
    neutral = {
        "n": 1,
        "top_p": 1.0,
        "presence_penalty": 0,
        "logprobs": False,
        "tools": [],
        "store": False,
    }
    none = dict.fromkeys(
        ("stop", "seed", "temperature", "max_tokens", "functions", "stream_options")
    )
    request = parsed(
        **neutral, **none, user="me", response_format={"type": "text"}, tool_choice="auto"
    )
    assert request.request.messages == (Message("user", "hi"),)
    assert request.request.generation.seed is None


@pytest.mark.parametrize("value", [0, 2, True, "1"])
def test_only_one_choice_can_be_asked_for(value: Any) -> None:
    assert refused(n=value).param == "n"


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_tokens": -1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.0}, None),
        ({"max_tokens": 8.0, "top_k": 0}, 8),
        ({"messages": [{"role": "user", "name": "bob", "content": "x"}]}, None),
    ],
)
def test_neutral_values_of_other_servers_samplers_pass(
    fields: dict[str, Any], tokens: int | None
) -> None:
    assert parsed(**fields).request.generation.max_tokens == tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 40), ("min_p", 0.1), ("repetition_penalty", 1.1), ("max_tokens", 8.5)],
)
def test_other_values_of_them_are_refused_by_name(name: str, value: float) -> None:
    assert refused(**{name: value}).param == name


def test_an_unknown_field_is_named() -> None:
    error = refused(colour="red")
    assert (error.param, error.code) == ("colour", "unknown_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 1 << 64}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 7}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"piecework": {"speed": 1}}, "piecework"),
        ({"piecework": {"max_steps": 0}}, "max_steps"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)


def test_roles_and_parts_are_mapped() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert parsed(messages=messages).request.messages == (
        Message("system", "be brief"),
        Message("user", "ab"),
    )


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [(None, None, None), (0, 800_000, 0), (0.7, 800_000, 700_000), (1.5,) * 3],
)
def test_temperature_is_the_last_steps(
    given: float | None, start: float | None, end: float | None
) -> None:
    generation = parsed(temperature=given).request.generation
    if given == 1.5:
        start = end = 1_500_000
    assert (generation.temperature_start, generation.temperature_end) == (start, end)


def test_a_negative_seed_is_its_two_complement() -> None:
    assert parsed(seed=-1).request.generation.seed == (1 << 64) - 1


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"seed": 0}, "seed"),
        ({"temperature": 0.4}, "temperature_end"),
        ({"piecework": {"max_steps": 48}}, "max_steps"),
        ({"piecework": {"entropy_bound": 0.1}}, "entropy_bound"),
        ({"piecework": {"temperature_start": 0.8}}, "temperature_start"),
    ],
)
def test_what_best_effort_cannot_honour_is_named_even_at_its_default(
    fields: dict[str, Any], name: str
) -> None:
    assert name in parsed(**fields).request.generation.replayable_only
    assert parsed(max_tokens=5).request.generation.replayable_only == ()


def test_best_effort_is_let_in_by_the_request_or_by_the_gateways_default() -> None:
    assert not parsed().request.best_effort
    assert parsed(piecework={"best_effort": True}).request.best_effort
    assert parse_chat(BASE, best_effort=True).request.best_effort
    declined = {**BASE, "piecework": {"best_effort": False}}
    assert not parse_chat(declined, best_effort=True).request.best_effort
    assert refused(piecework={"best_effort": 1}).param == "best_effort"


def test_any_model_will_do_when_asked_for_any() -> None:
    assert parsed(model="any").request.model is None


def test_a_stop_string_is_found_across_pieces_and_nothing_of_it_is_shown() -> None:
    cutter = StopCutter(("STOP",))
    assert cutter.feed("one ST", last=False) == "one"
    assert cutter.feed("OP two", last=False) == " "
    assert cutter.stopped
    assert cutter.feed("three", last=True) == ""


def test_the_first_of_several_stops_wins() -> None:
    cutter = StopCutter(("yy", "x"))
    assert cutter.feed("abxyy", last=True) == "ab"


def test_what_was_held_back_comes_at_the_end() -> None:
    cutter = StopCutter(("....",))
    assert cutter.feed("ab..", last=False) == "a"
    assert cutter.feed("", last=True) == "b.."
    assert not cutter.stopped
