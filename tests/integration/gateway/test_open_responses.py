"""The Responses API held to the published types of Open Responses.

The cases have the names of those that Open Responses asks of a server: `basic-response`,
`streaming-response`, `system-prompt`, `tool-calling`, `tool-calling-streaming`, `image-input` and
`multi-turn`. The other tests are of what its specification says and no case of it asks.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import openai
import openresponses_types.types as published
import pytest
from pydantic import BaseModel

from piecework_protocol.conversation import Image
from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market
from tests.support.client.scripted_worker import final, thought, tool_call

PIXEL: Final = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER: Final[dict[str, Any]] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
CALL: Final = tool_call('{"name": "get_weather", "arguments": {"location": "Oslo"}}')
RENAMED: Final = {"response.reasoning_text.": "response.reasoning."}
"""Events that have OpenAI's name here, and another one in Open Responses."""


def _types() -> dict[str, type[BaseModel]]:
    """The published models of events, by the type of the event."""
    found: dict[str, type[BaseModel]] = {}
    for name, model in vars(published).items():
        if name.endswith("StreamingEvent"):
            kind: Any = model.model_fields["type"].annotation
            found[next(iter(kind)).value] = model
    return found


EVENTS: Final = _types()


@dataclass(frozen=True, slots=True)
class Answered:
    """What a server sent: the last response, and the events of a stream."""

    response: dict[str, Any]
    events: tuple[dict[str, Any], ...] = ()

    @property
    def kinds(self) -> list[str]:
        """The types of the events, in order."""
        return [event["type"] for event in self.events]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a type."""
        return [event for event in self.events if event["type"] == kind]


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


def said(role: str, content: Any) -> dict[str, Any]:
    """A message among the items of an input."""
    return {"type": "message", "role": role, "content": content}


async def ask(market: ScriptedMarket, *items: dict[str, Any], **fields: Any) -> Answered:
    """Send a request as those who test servers do, and hold all of its answer to the types."""
    body = {"model": MODEL, "input": list(items), **fields}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(market.url + "/v1/responses", json=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        text = await answer.text()
    found = _stream(text) if fields.get("stream") else Answered(json.loads(text))
    published.ResponseResource.model_validate(found.response)
    return found


def _stream(text: str) -> Answered:
    events: list[dict[str, Any]] = []
    blocks = text.rstrip("\n").split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    for block in blocks[:-1]:
        named, _, data = block.partition("\n")
        event = json.loads(data.removeprefix("data: "))
        assert named == f"event: {event['type']}"
        events.append(event)
    check_events(events)
    return Answered(events[-1]["response"], tuple(events))


def check_events(events: list[dict[str, Any]]) -> None:
    """Hold events to their published models, and what they say to each other."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        kind = event["type"]
        for ours, theirs in RENAMED.items():
            kind = kind.replace(ours, theirs)
        EVENTS[kind].model_validate({**event, "type": kind})
    added = [event for event in events if event["type"] == "response.output_item.added"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in added] == list(range(len(added)))
    names = [event["item"]["id"] for event in added]
    assert len(set(names)) == len(names)
    assert [event["item"]["id"] for event in done] == names[: len(done)]
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == names[event["output_index"]]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def parts_of(answered: Answered, index: int) -> list[str]:
    """The types of the events between the begin and the end of an item."""
    return [event["type"] for event in answered.events if event.get("output_index", None) == index]


# --- the cases that Open Responses names


async def test_basic_response(market: ScriptedMarket) -> None:
    answered = await ask(market, said("user", "Say hello in exactly three words."))
    assert answered.response["status"] == "completed" and answered.response["output"]


async def test_streaming_response(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (final("1 2 3 "), final("4 5"))
    answered = await ask(market, said("user", "Count from 1 to 5."), stream=True)
    assert answered.kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = "".join(event["delta"] for event in answered.of("response.output_text.delta"))
    (done,) = answered.of("response.output_text.done")
    (item,) = answered.response["output"]
    assert deltas == done["text"] == item["content"][0]["text"] == "1 2 3 4 5"
    assert answered.response["status"] == "completed"
    assert answered.response["usage"]["output_tokens"] > 0


async def test_system_prompt(market: ScriptedMarket) -> None:
    answered = await ask(market, said("system", "You are a pirate."), said("user", "Say hello."))
    assert answered.response["status"] == "completed" and answered.response["output"]
    roles = [message.role for message in market.mind.asked[0].conversation.messages]
    assert roles == ["system", "user"]


async def test_tool_calling(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (CALL,)
    answered = await ask(market, said("user", "The weather in Oslo?"), tools=[WEATHER])
    (item,) = answered.response["output"]
    assert (item["type"], item["name"]) == ("function_call", "get_weather")
    assert json.loads(item["arguments"]) == {"location": "Oslo"}
    (tool,) = answered.response["tools"]
    assert tool["name"] == "get_weather" and tool["strict"] is None


async def test_tool_calling_streaming(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (final("Let me see."), CALL)
    answered = await ask(market, said("user", "The weather in Oslo?"), tools=[WEATHER], stream=True)
    assert parts_of(answered, 1) == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    added, done = answered.of("response.output_item.added")[1], answered.events[-2]
    assert added["item"]["type"] == done["item"]["type"] == "function_call"
    assert (added["item"]["status"], done["item"]["status"]) == ("in_progress", "completed")
    assert added["item"]["arguments"] == ""
    deltas = [event["delta"] for event in answered.of("response.function_call_arguments.delta")]
    assert json.loads("".join(deltas)) == {"location": "Oslo"}


async def test_image_input(market: ScriptedMarket) -> None:
    answered = await ask(
        market,
        said(
            "user",
            [
                {"type": "input_text", "text": "What do you see?"},
                {"type": "input_image", "image_url": PIXEL},
            ],
        ),
    )
    assert answered.response["status"] == "completed" and answered.response["output"]
    (message,) = market.mind.asked[0].conversation.messages
    assert isinstance(message.content[1], Image)


async def test_multi_turn(market: ScriptedMarket) -> None:
    answered = await ask(
        market,
        said("user", "My name is Alice."),
        said("assistant", "Hello Alice!"),
        said("user", "What is my name?"),
    )
    assert answered.response["status"] == "completed" and answered.response["output"]
    roles = [message.role for message in market.mind.asked[0].conversation.messages]
    assert roles == ["user", "assistant", "user"]


# --- what no case of theirs asks


async def test_thoughts_have_their_own_item_and_events(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (thought("Hm. "), thought("Well."), final("Sunny."))
    answered = await ask(
        market, said("user", "The weather?"), reasoning={"effort": "low"}, stream=True
    )
    assert [item["type"] for item in answered.response["output"]] == ["reasoning", "message"]
    assert parts_of(answered, 0) == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    assert answered.response["reasoning"] == {"effort": "low", "summary": None}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_is_incomplete_and_so_is_its_item(
    market: ScriptedMarket, stream: bool
) -> None:
    market.mind.says = lambda _: (final("A very long answer that is cut somewhere."),)
    answered = await ask(market, said("user", "x"), max_output_tokens=2, stream=stream)
    assert answered.response["status"] == "incomplete"
    assert answered.response["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = answered.response["output"]
    assert item["status"] == "incomplete" and item["content"][0]["text"]
    if stream:
        assert answered.kinds[-1] == "response.incomplete"
        assert answered.events[-2]["item"] == item


async def test_a_response_that_fails_says_so_with_a_code_and_ends_with_an_error(
    market: ScriptedMarket,
) -> None:
    market.mind.says = lambda _: (final("one "), final("two"))
    market.worker.script.fail_at = 1
    body = {"model": MODEL, "input": "hi", "stream": True}
    received = b""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(market.url + "/v1/responses", json=body) as answer,
    ):
        with pytest.raises(aiohttp.ClientError):  # the stream breaks off behind the error
            async for part in answer.content.iter_any():
                received += part
    blocks = received.decode().rstrip("\n").split("\n\n")
    events = [json.loads(block.partition("\ndata: ")[2]) for block in blocks]
    check_events(events)
    broken, error = events[-2:]
    assert (broken["type"], error["type"]) == ("response.failed", "error")
    assert broken["response"]["status"] == "failed"
    assert broken["response"]["error"]["code"] == error["error"]["code"] == "engine_failed"
    assert error["error"]["message"] == error["message"]


async def test_the_sdk_raises_the_error_of_a_stream(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (final("one "), final("two"))
    market.worker.script.fail_at = 1
    async with market.sdk() as sdk:
        stream = await sdk.responses.create(model=MODEL, input="hi", stream=True)
        kinds = []
        with pytest.raises(openai.APIError) as caught:
            async for event in stream:
                kinds.append(event.type)
    assert kinds[-1] == "response.failed"
    assert caught.value.code == "engine_failed"


async def test_a_structured_response_repeats_its_format(market: ScriptedMarket) -> None:
    schema = {"type": "object", "properties": {"sky": {"enum": ["clear", "cloudy"]}}}
    form: Any = {"type": "json_schema", "name": "sky", "schema": schema, "strict": True}
    market.mind.fills = lambda *_: "clear"
    async with market.sdk() as sdk:
        answer = await sdk.responses.create(model=MODEL, input="The sky?", text={"format": form})
    shown: Any = answer.text
    assert json.loads(answer.output_text) == {"sky": "clear"}
    assert shown.format.name == "sky" and shown.format.strict is True
    # The published model wants null for the schema, so that one member is left out of the check.
    whole = answer.model_dump(by_alias=True)
    whole["text"]["format"]["schema"] = None
    published.ResponseResource.model_validate(whole)


async def test_the_members_that_a_request_leaves_out_have_the_values_that_hold(
    market: ScriptedMarket,
) -> None:
    answered = await ask(market, said("user", "hi"))
    shown = {name: answered.response[name] for name in ("temperature", "top_p", "top_logprobs")}
    assert shown == {"temperature": 1.0, "top_p": 1.0, "top_logprobs": 0}
    assert answered.response["text"] == {"format": {"type": "text"}}
    assert (answered.response["store"], answered.response["background"]) == (False, False)
    given = await ask(
        market, said("user", "hi"), temperature=0.5, top_p=0.9, prompt_cache_key="k", metadata={}
    )
    assert (given.response["temperature"], given.response["prompt_cache_key"]) == (0.5, "k")
    assert given.response["top_p"] == 1.0  # it is ignored, and says so
    assert given.response["piecework"]["ignored"] == ["top_p"]
