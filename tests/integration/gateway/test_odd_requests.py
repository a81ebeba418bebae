"""What agents and frameworks send besides the usual, over HTTP: odd and legal, and odd and wrong.

What is legal is answered. What is wrong is 400 in OpenAI's shape, names the field, and costs
nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piecework_protocol.conversation import Image, Message
from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market
from tests.support.client.scripted_worker import Mind

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
USER: Any = {"role": "user", "content": "hi"}
GO: Any = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}}},
    },
}
STAY: Any = {"type": "function", "function": {"name": "stay"}}
CALL: Any = {"id": "c1", "type": "function", "function": {"name": "go", "arguments": "{}"}}
CALLED: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD: Any = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


def talk(*messages: Any) -> dict[str, Any]:
    return {"messages": [USER, *messages]}


def shown(url: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]}


def schema(value: Any, **around: Any) -> dict[str, Any]:
    """Ask for an object with one property, whose schema is given."""
    root = {"type": "object", "properties": {"a": value}, "required": ["a"], **around}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": root}}
    }


NULLS = """
    tools tool_choice functions function_call response_format stop seed temperature top_p n
    max_tokens max_completion_tokens stream stream_options logprobs top_logprobs logit_bias user
    metadata reasoning_effort parallel_tool_calls chat_template_kwargs piecework audio modalities
    prediction store service_tier verbosity
""".split()  # noqa: SIM905

LEGAL: dict[str, dict[str, Any]] = {
    "every optional field is null": dict.fromkeys(NULLS),
    "an assistant without content": talk({"role": "assistant"}, USER),
    "an assistant with null": talk({"role": "assistant", "content": None}, USER),
    "an assistant with no parts": talk({"role": "assistant", "content": []}, USER),
    "an assistant as SDKs dump it": talk(
        {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": None,
        },
        USER,
    ),
    "calls without content": talk(CALLED, TOLD),
    "a call with an index": talk({**CALLED, "tool_calls": [{**CALL, "index": 0}]}, TOLD),
    "a call without type": talk(
        {**CALLED, "tool_calls": [{"id": "c1", "function": CALL["function"]}]}, TOLD
    ),
    "a call with null for arguments": talk(
        {
            **CALLED,
            "tool_calls": [{**CALL, "function": {"name": "go", "arguments": "null"}}],
        },
        TOLD,
    ),
    "a tool that answered nothing": talk(CALLED, {**TOLD, "content": None}),
    "a tool that answered with parts": talk(
        CALLED, {**TOLD, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ),
    "a developer": {"messages": [{"role": "developer", "content": "brief"}, USER]},
    "several system messages": {
        "messages": [{"role": "system", "content": t} for t in ("a", "b")] + [USER]
    },
    "a system message at the end": talk({"role": "system", "content": "brief"}),
    "only a system message": {"messages": [{"role": "system", "content": "brief"}]},
    "two users": talk(USER),
    "an assistant at the end": talk({"role": "assistant", "content": "Well,"}),
    "an empty text": {"messages": [{"role": "user", "content": ""}]},
    "empty parts": {"messages": [{"role": "user", "content": []}]},
    "an empty part": {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]},
    "stop as a text": {"stop": "STOP"},
    "stop as a list": {"stop": ["STOP", "END"]},
    "no stop": {"stop": []},
    "both limits": {"max_tokens": 9, "max_completion_tokens": 5},
    "a limit as a float": {"max_tokens": 8.0},
    "the largest seed": {"seed": 2**64 - 1},
    "reasoning that is minimal": {"reasoning_effort": "minimal"},
    "no tools and auto": {"tools": [], "tool_choice": "auto"},
    "a tool with nulls": {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "go",
                    "description": None,
                    "parameters": None,
                    "strict": None,
                },
            }
        ]
    },
    "one call at a time": {"tools": [GO], "parallel_tool_calls": False},
    "a demanded tool": {"tools": [GO, STAY], "tool_choice": "required"},
    "a named tool": {
        "tools": [GO, STAY],
        "tool_choice": {"type": "function", "function": {"name": "go"}},
    },
    "an allowed tool that is demanded": {
        "tools": [STAY, GO],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {
                "mode": "required",
                "tools": [{"type": "function", "function": {"name": "go"}}],
            },
        },
    },
    "a named function of 2023": {
        "functions": [GO["function"]],
        "function_call": {"name": "go"},
    },
    "a function's answer of 2023": talk(
        {"role": "assistant", "content": None, "function_call": {"name": "go", "arguments": "{}"}},
        {"role": "function", "name": "go", "content": "x"},
    ),
    "an image in capitals": shown({"url": f"DATA:IMAGE/PNG;BASE64,{PNG}"}),
    "an image without an object": shown(f"data:image/png;base64,{PNG}"),
    "an image with parameters": shown({"url": f"data:image/png;name=a.png;base64,{PNG}"}),
    "an image in lines": shown({"url": f"data:image/png;base64,{PNG[:60]}\n{PNG[60:]}\n"}),
    "an image without padding": shown({"url": f"data:image/png;base64,{PNG.rstrip('=')}"}),
    "an image by another name": shown({"url": f"data:image/jpeg;base64,{PNG}", "detail": "high"}),
    "an image without a name": shown({"url": f"data:;base64,{PNG}"}),
    "a pair of surrogates": {"messages": [{"role": "user", "content": "\U0001f98a"}]},
    "an escaped zero": {"messages": [{"role": "user", "content": "a\x00b"}]},
    "a note on a cache in a part": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
            }
        ]
    },
}

SCHEMAS: dict[str, dict[str, Any]] = {
    "a reference": schema({"$ref": "#/$defs/P"}, **{"$defs": {"P": {"type": "string"}}}),
    "a reference with a note": schema(
        {"$ref": "#/$defs/P", "description": "d"}, **{"$defs": {"P": {"type": "string"}}}
    ),
    "a reference of older drafts": schema(
        {"$ref": "#/definitions/P"}, definitions={"P": {"type": "string"}}
    ),
    "one of two": schema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
    "a value or null": schema({"type": ["string", "null"]}),
    "one of some": schema({"enum": ["x", "text", None]}),
    "a constant": schema({"const": "text"}),
    "a pattern": schema({"type": "string", "pattern": "^[a-z]+$"}),
    "a dialect": schema(
        {"type": "string"}, **{"$schema": "http://json-schema.org/draft-07/schema#"}
    ),
    "itself": schema({"anyOf": [{"$ref": "#"}, {"type": "string"}]}),
    "a closed object": schema({"type": "string"}, additionalProperties=False),
    "a pattern of another language": schema({"type": "string", "pattern": r"^\p{L}+$"}),
    "a schema beside json_object": {
        "response_format": {
            "type": "json_object",
            "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
        }
    },
}

IGNORED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "logprobs": ({"logprobs": True, "top_logprobs": 3}, ["logprobs", "top_logprobs"]),
    "fields that nobody knows": ({"foo": {"a": [1]}, "think": True}, ["foo", "think"]),
    "a huge number": ({"top_p": 10**400}, ["top_p"]),
    "notes of frameworks on messages": (
        {
            "messages": [
                {**USER, "cache_control": {"type": "ephemeral"}, "id": "m1"},
                {"role": "assistant", "content": "x", "provider_specific_fields": {"a": 1}},
                {"role": "assistant", "content": "y", "provider_specific_fields": {"a": 2}},
                USER,
            ]
        },
        [f"messages[].{name}" for name in ("cache_control", "id", "provider_specific_fields")],
    ),
    "the unknown in an option": (
        {"chat_template_kwargs": {"enable_thinking": False, "colour": 1}},
        ["chat_template_kwargs.colour"],
    ),
}

WRONG: dict[str, tuple[dict[str, Any], str | None]] = {
    "a sound": (talk({"role": "assistant", "audio": {"id": "a"}}), "messages[1].audio"),
    "a user without content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "an answer to no call": (talk(TOLD), "messages[1].tool_call_id"),
    "arguments that are no JSON": (
        talk({**CALLED, "tool_calls": [{**CALL, "function": {"name": "go", "arguments": "{a"}}]}),
        "messages[1].tool_calls[0]",
    ),
    "a part of no kind": (
        {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
        "messages[0].content[0]",
    ),
    "usage of what is no stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "usage that is a text": (
        {"stream": True, "stream_options": {"include_usage": "yes"}},
        "stream_options.include_usage",
    ),
    "a limit of 31 digits": ({"max_tokens": 10**30}, "max_tokens"),
    "a limit above the model's": ({"max_tokens": 100_000}, "max_tokens"),
    "a temperature of 400 digits": ({"temperature": 10**400}, "temperature"),
    "an effort that is an object": ({"reasoning_effort": {}}, "reasoning_effort"),
    "no tool to allow": (
        {"tools": [GO], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}},
        "tool_choice",
    ),
    "a demanded tool whose schema nobody checks": (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "go", "parameters": {"unevaluatedProperties": False}},
                }
            ],
            "tool_choice": "required",
        },
        "tool_choice",
    ),
    "an image from the web": (
        shown({"url": "https://example.com/a.png"}),
        "messages[0].content[0].image_url",
    ),
    "an image of another type": (
        shown({"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}),
        "messages[0].content[0].image_url",
    ),
    "an image that is none": (
        shown({"url": "data:image/png;base64,AAAA"}),
        "messages[0].content[0].image_url",
    ),
    "an enum of nothing": (schema({"enum": []}), "response_format.json_schema.schema"),
    "more characters than there can be": (
        schema({"type": "string", "minLength": 10**300}),
        "response_format.json_schema.schema",
    ),
    "a constant that takes years to judge": (
        schema({"const": "a" * 60 + "b", "pattern": "^(a|aa)+$"}),
        None,
    ),
    "a constant under a dialect of its own": (
        schema(
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "items": {"pattern": "^(a|aa)+$"},
                "const": ["a" * 60 + "b"],
            }
        ),
        None,
    ),
    "rules for names by a pattern": (
        schema({"type": "string", "patternProperties": {"a": {}}}),
        "response_format.json_schema.schema",
    ),
    "a schema beside json_object that nobody checks": (
        {"response_format": {"type": "json_object", "schema": {"unevaluatedProperties": False}}},
        "response_format.schema",
    ),
    "a schema elsewhere": (
        schema({"$ref": "https://example.com/a.json"}),
        "response_format.json_schema.schema",
    ),
    "half a pair in a text": (talk({"role": "user", "content": "\ud800"}), "messages[1].content"),
    "half a pair in a name": (talk({"role": "user", "\udc00": 1, "content": "x"}), "messages[1]"),
    "half a pair in a schema": (
        schema({"type": "object", "properties": {"\ud800": {"type": "string"}}}),
        "response_format.json_schema.schema.properties.a.properties",
    ),
    "half a pair in a choice": (
        schema({"enum": ["\ud800"]}),
        "response_format.json_schema.schema.properties.a.enum[0]",
    ),
    "half a pair in what nobody reads": ({"metadata": {"a": "\ud800"}}, "metadata.a"),
}

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half an object": b"{",
    "a mark of its bytes": b"\xef\xbb\xbf{}",
    "two bytes a letter": "{}".encode("utf-16"),
    "a number of 5,000 digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "no number": b'{"temperature": NaN}',
    "an infinite number": b'{"temperature": 1e999}',
    "a hundred brackets": b"[" * 100 + b"]" * 100,
    "a list": b"[]",
    "null": b"null",
}


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path, Mind(fills=fills)) as running:
        yield running


def fills(before: str, _: int) -> str:
    """Write a word, with quotes where none stand."""
    if before.endswith('"'):
        return "text"
    return "" if before.endswith("{") else '"text"'


@asynccontextmanager
async def posting(market: ScriptedMarket) -> AsyncIterator[Any]:
    """Send bodies to a path, and give status and answer."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http:

        async def post(body: Any, path: str = CHAT) -> tuple[int, Any]:
            raw = body
            if not isinstance(body, bytes):
                raw = json.dumps({"model": MODEL, "messages": [USER], **body}).encode()
            headers = {"Content-Type": "application/json"}
            async with http.post(market.url + path, data=raw, headers=headers) as answer:
                text = await answer.text()
                stream = answer.content_type == "text/event-stream"
                return answer.status, text if stream else json.loads(text)

        yield post


def is_openais(answer: Any) -> bool:
    """Whether an error has OpenAI's shape, with words in it."""
    error = answer.get("error")
    known = isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
    return known and bool(error["message"]) and error["type"] == "invalid_request_error"


async def test_what_agents_send_is_answered(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        failed = {}
        for name, body in LEGAL.items():
            status, answer = await post(body)
            ours = answer.get("piecework", {})
            if status != 200 or "ignored" in ours or answer["object"] != "chat.completion":
                failed[name] = answer
    assert failed == {}


async def test_schemas_that_frameworks_write_are_held(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        found = {}
        for name, body in SCHEMAS.items():
            status, answer = await post(body)
            found[name] = answer["choices"][0]["message"]["content"] if status == 200 else answer
    assert found == dict.fromkeys(SCHEMAS, '{"a": "text"}')


async def test_a_stream_of_several_choices_ends_with_the_usage_of_all(
    market: ScriptedMarket,
) -> None:
    options = {"include_usage": True, "include_obfuscation": False, "colour": 1}
    body = {"n": 2, "stream": True, "stream_options": options}
    async with posting(market) as post:
        status, text = await post(body)
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert status == 200 and text.endswith("data: [DONE]\n\n")
    assert {chunk["choices"][0]["index"] for chunk in chunks[:-1]} == {0, 1}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 0
    assert chunks[-2]["piecework"]["ignored"] == ["stream_options.colour"]


async def test_what_says_nothing_here_is_ignored_by_name(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        found = {}
        for name, (body, _) in IGNORED.items():
            _, answer = await post(body)
            found[name] = answer.get("piecework", answer).get("ignored")
    assert found == {name: ignored for name, (_, ignored) in IGNORED.items()}


async def test_what_is_wrong_is_named_and_costs_nothing(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        found = {}
        for name, (body, _) in WRONG.items():
            status, answer = await post(body)
            fair = status == 400 and is_openais(answer)
            found[name] = answer["error"]["param"] if fair else (status, answer)
            json.dumps(answer, ensure_ascii=False).encode()
    assert found == {name: param for name, (_, param) in WRONG.items()}
    assert market.worker.submissions == []


async def test_a_body_that_is_no_object_of_json_is_400(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        for name, raw in BODIES.items():
            for path in (CHAT, COMPLETIONS, RESPONSES, "/v1/decisions"):
                status, answer = await post(raw, path)
                assert (status, is_openais(answer)) == (400, True), (name, path)
    assert market.worker.submissions == []


async def test_a_strict_gateway_refuses_notes_on_messages(tmp_path: Path) -> None:
    body = {"messages": [{**USER, "cache_control": {"type": "ephemeral"}}]}
    async with scripted_market(tmp_path, strict_parameters=True) as market, posting(market) as post:
        status, answer = await post(body)
    assert (status, answer["error"]["param"]) == (400, "messages[].cache_control")


async def test_an_answer_that_declined_goes_back_as_what_it_said(market: ScriptedMarket) -> None:
    declined = {"role": "assistant", "content": None, "refusal": "I will not."}
    async with posting(market) as post:
        await post(talk(declined, USER))
    asked = market.mind.asked[0].conversation.messages
    assert asked[1] == Message("assistant", "I will not.")


async def test_an_image_has_the_type_that_its_bytes_say(market: ScriptedMarket) -> None:
    async with posting(market) as post:
        await post(shown({"url": f"data:image/jpeg;base64,{PNG}"}))
    (message,) = market.mind.asked[0].conversation.messages
    assert [image.media_type for image in message.images] == ["image/png"]
    assert message.images == (Image.of(message.images[0].data),)
