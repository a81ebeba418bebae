"""Chat completions to what is asked of a worker."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.client.gateway.formats.asks import Ask, Called, Free, Structured
from piecework.client.gateway.formats.chat import parse_chat
from piecework.client.gateway.formats.common import ApiError, FormatOptions, StopCutter
from piecework.client.gateway.formats.decisions import parse_systemone
from piecework.client.gateway.formats.surrogates import NAMED_CHARACTERS, check_surrogates
from piecework_protocol.conversation import Image, Message, ToolCall
from piecework_protocol.limits import MIN_TEMPERATURE_MICROS

TOOL: Any = {"type": "function", "function": {"name": "f", "description": "F."}}
BASE: dict[str, Any] = {"model": "tale-1", "messages": [{"role": "user", "content": "hi"}]}


def parsed(**fields: Any) -> Ask:
    return parse_chat({**BASE, **fields})


def messages_of(*messages: Any, **fields: Any) -> tuple[Message, ...]:
    """The messages of a request, as the worker gets them."""
    return parsed(messages=list(messages), **fields).conversations[0].messages


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
    assert request.conversations[0].messages == (Message("user", "hi"),)
    assert request.wanted.generation.seed is None


@pytest.mark.parametrize("value", [0, 17, True, "1"])
def test_a_request_has_one_to_sixteen_choices(value: Any) -> None:
    assert refused(n=value).param == "n"
    assert parsed(n=16).answers == 16


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
    assert parsed(**fields).wanted.generation.max_tokens == tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 40), ("min_p", 0.1), ("repetition_penalty", 1.1), ("colour", "red")],
)
def test_what_cannot_be_honoured_is_ignored_by_name_or_refused_by_a_strict_gateway(
    name: str, value: Any
) -> None:
    assert parsed(**{name: value}).ignored == (name,)
    with pytest.raises(ApiError) as caught:
        parse_chat({**BASE, name: value}, FormatOptions(strict=True))
    assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"functions": [{"name": "go"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "function_call": {"name": "go"}}, "function_call"),
        ({"tools": [TOOL], "functions": [{"name": "walk"}]}, "functions"),
        ({"function_call": {"name": "go"}}, "function_call"),
    ],
)
def test_one_request_names_functions_in_one_way_and_the_other_way_is_ignored_by_name(
    fields: dict[str, Any], name: str
) -> None:
    assert parsed(**fields).ignored == (name,)


def test_a_name_that_no_header_may_hold_is_not_repeated() -> None:
    assert parsed(**{"a\r\nset-cookie": 1}).ignored == ("(unprintable)",)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
            "messages[0].tool_call_id",
        ),
        ({"messages": [{"role": "user", "content": "x", "audio": {"id": 1}}]}, "messages[0].audio"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url",
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
        ({"piecework": {"max_steps": 0}}, "piecework.max_steps"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": "all"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
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
    assert messages_of(*messages) == (
        Message("system", "be brief"),
        Message("user", "ab"),
    )


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        (None, None, None),
        (0, MIN_TEMPERATURE_MICROS, MIN_TEMPERATURE_MICROS),
        (0.5, 400_000, 200_000),
        (1, None, None),
        (2, 1_600_000, 800_000),
    ],
)
def test_a_temperature_is_in_proportion_to_the_published_schedule_that_one_leaves_alone(
    given: float | None, start: float | None, end: float | None
) -> None:
    generation = parsed(temperature=given).wanted.generation
    assert (generation.temperature_start, generation.temperature_end) == (start, end)


def test_a_negative_seed_is_its_two_complement() -> None:
    assert parsed(seed=-1).wanted.generation.seed == (1 << 64) - 1


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
    assert name in parsed(**fields).wanted.generation.replayable_only
    assert parsed(max_tokens=5).wanted.generation.replayable_only == ()


def test_best_effort_is_let_in_by_the_request_or_by_the_gateways_default() -> None:
    assert not parsed().wanted.best_effort
    assert parsed(piecework={"best_effort": True}).wanted.best_effort
    assert parse_chat(BASE, FormatOptions(best_effort=True)).wanted.best_effort
    declined = {**BASE, "piecework": {"best_effort": False}}
    assert not parse_chat(declined, FormatOptions(best_effort=True)).wanted.best_effort
    assert refused(piecework={"best_effort": 1}).param == "piecework.best_effort"


def test_any_model_will_do_when_asked_for_any() -> None:
    assert parsed(model="any").wanted.wanted_model is None


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


def test_tools_are_shown_unless_the_choice_is_none() -> None:
    assert parsed(tools=[TOOL]).plan == Free(parallel_calls=True)
    assert parsed(tools=[TOOL]).conversations[0].tools[0].name == "f"
    assert parsed(tools=[TOOL], tool_choice="none").conversations[0].tools == ()
    assert isinstance(parsed(tools=[TOOL], tool_choice="required").plan, Called)
    assert isinstance(parsed(response_format={"type": "json_object"}).plan, Structured)


def test_a_tool_message_gets_the_name_of_the_call_that_it_answers() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    _, assistant, answer = messages_of(
        BASE["messages"][0],
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "ok"}]},
    )
    assert assistant == Message("assistant", "", "hm", (ToolCall("c1", "f", "{}"),))
    assert answer == Message("tool", "ok", tool_call_id="c1", name="f")


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "medium"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
def test_thinking_is_off_unless_asked_for(fields: dict[str, Any], thinking: bool) -> None:
    assert parsed(**fields).conversations[0].thinking is thinking


def test_a_structured_answer_cannot_think_first_and_says_so() -> None:
    ask = parsed(reasoning_effort="high", response_format={"type": "json_object"}, stop=["x"])
    assert not ask.conversations[0].thinking
    assert set(ask.ignored) == {"reasoning_effort", "stop"}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "file:///etc/passwd",
        "data:image/gif;base64,AAAA",
        "data:image/png;base64,???",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        7,
    ],
)
def test_an_image_that_is_no_data_url_is_refused(url: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    error = refused(messages=[{"role": "user", "content": [part]}])
    assert error.param == "messages[0].content[0].image_url"


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ({"type": "string"}, "are of type object"),
        ({"type": ["array", "null"]}, "are of type object"),
        ({"enum": [1, 2]}, "without the type object"),
    ],
)
def test_parameters_that_refer_to_something_else_than_an_object_are_refused(
    target: dict[str, Any], why: str
) -> None:
    """Before anything is paid, whether the reference stands alone or beside a description."""
    for beside in ({}, {"description": "a place"}):
        schema = {"$ref": "#/$defs/place", "$defs": {"place": target}, **beside}
        tool = {"type": "function", "function": {"name": "go", "parameters": schema}}
        assert why in refused(tools=[tool], tool_choice="required").message
        schema["$defs"] = {"place": {"type": "object", "properties": {"city": {"type": "string"}}}}
        assert isinstance(parsed(tools=[tool], tool_choice="required").plan, Called)


def test_texts_beside_an_image_are_put_together() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,/9j/"}}
    texts = [{"type": "text", "text": t} for t in ("a", "b", "")]
    (message,) = messages_of({"role": "user", "content": [*texts, image]})
    assert message.text == "ab"
    assert message.images == (Image("image/jpeg", b"\xff\xd8\xff"),)


def test_the_schemas_of_all_tools_have_one_bound() -> None:
    large = {"type": "object", "description": "d" * 60_000}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": large}} for i in range(5)
    ]
    assert isinstance(parsed(tools=tools[:3], tool_choice="required").plan, Called)
    assert "together" in refused(tools=tools, tool_choice="required").message


@pytest.mark.parametrize("field", ["tools", "functions"])
def test_tools_are_counted_before_any_of_them_is_read(field: str) -> None:
    unread: Any = {"type": "function", "function": {"name": "no name of a tool"}}
    assert "at most 128 functions, not 129" in refused(**{field: [unread] * 129}).message


def test_calls_are_counted_before_any_of_them_is_read() -> None:
    unread = {"role": "assistant", "tool_calls": ["no call"] * 103}
    found = refused(messages=[*BASE["messages"], *[unread] * 5])
    assert (found.message, found.param) == ("a prompt has at most 512 tool calls", "messages")


def test_images_are_counted_before_a_text_is_cut_at_all_of_them() -> None:
    picture = {"x": {"format": "png", "data_base64": "iVBORw0KGgo="}}
    body = {"model": "tale-1", "assets": picture, "questions": {"q": {"type": "noul"}}}
    assert parse_systemone({**body, "state": "x " * 16}).conversation.has_images
    with pytest.raises(ApiError, match="at most 16 images"):
        parse_systemone({**body, "state": "x " * 10_000})


def test_a_place_of_a_lone_surrogate_is_named_as_far_as_a_line_goes() -> None:
    with pytest.raises(ApiError) as caught:
        check_surrogates({"x" * 1000: ["\ud800"]})
    assert caught.value.param == "x" * NAMED_CHARACTERS
    assert len(str(caught.value)) < 2 * NAMED_CHARACTERS
