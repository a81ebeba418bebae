"""What agents and apps send, through OpenAI's own SDK: tools, schemas, thinking, images, reads."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import aiohttp
import openai
import pytest
from pydantic import BaseModel, Field

from piecework_protocol.conversation import Image, Message
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import Fixed, TextContent
from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market, serving
from tests.support.client.scripted_worker import final, thought, tool_call

USER: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
CALL = tool_call('{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}')
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


def ours(answer: Any) -> dict[str, Any]:
    """The `piecework` object of an answer."""
    found = (answer.model_extra or {})["piecework"]
    assert isinstance(found, dict)
    return found


def by_key(values: dict[str, str]) -> Any:
    """Fill each hole by the last key in front of it."""

    def fills(before: str, _: int) -> str:
        return values[before.rsplit('"', 3 if before.endswith('"') else 2)[1]]

    return fills


# --- tools


async def test_a_tool_call_of_the_model_reaches_the_caller(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (CALL,)
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER, tools=[WEATHER])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 2}
    assert [tool.name for tool in market.mind.asked[0].conversation.tools] == ["get_weather"]


async def test_a_tools_answer_goes_back_to_the_model(market: ScriptedMarket) -> None:
    def says(content: TextContent) -> Any:
        last = content.conversation.messages[-1]
        return (final(f"It is {last.text}."),) if last.role == "tool" else (CALL,)

    market.mind.says = says
    async with market.sdk() as sdk:
        first = await sdk.chat.completions.create(model=MODEL, messages=USER, tools=[WEATHER])
        message: Any = first.choices[0].message
        call = message.tool_calls[0]
        answered: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        second = await sdk.chat.completions.create(
            model=MODEL, messages=[*USER, message, answered], tools=[WEATHER]
        )
    assert second.choices[0].message.content == "It is sunny."
    told = market.mind.asked[1].conversation.messages
    assert (told[1].tool_calls[0].id, told[2].tool_call_id) == (call.id, call.id)
    assert told[2].name == "get_weather"


async def test_parallel_calls_are_shown_unless_the_caller_wants_one(
    market: ScriptedMarket,
) -> None:
    market.mind.says = lambda _: (CALL, CALL)
    async with market.sdk() as sdk:
        for wanted, count in ((True, 2), (False, 1)):
            answer = await sdk.chat.completions.create(
                model=MODEL, messages=USER, tools=[WEATHER], parallel_tool_calls=wanted
            )
            assert len(answer.choices[0].message.tool_calls or []) == count


async def test_a_streamed_tool_call_has_an_index_and_ends_with_tool_calls(
    market: ScriptedMarket,
) -> None:
    market.mind.says = lambda _: (final("Let me see. "), CALL, CALL)
    async with (
        market.sdk() as sdk,
        sdk.chat.completions.stream(model=MODEL, messages=USER, tools=[WEATHER]) as stream,
    ):
        whole = await stream.get_final_completion()
    message = whole.choices[0].message
    assert message.content == "Let me see. "
    assert [call.function.name for call in message.tool_calls or []] == ["get_weather"] * 2
    assert len({call.id for call in message.tool_calls or []}) == 2
    assert whole.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
async def test_a_demanded_call_is_made_through_its_schema(
    market: ScriptedMarket, choice: Any
) -> None:
    market.mind.fills = by_key({"city": "Oslo", "days": "3"})
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, tools=[WEATHER], tool_choice=choice
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 3}  # type: ignore[union-attr]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert market.mind.asked[0].template[0] == Fixed('{"city": "')


async def test_of_several_tools_a_demanded_call_chooses_first(market: ScriptedMarket) -> None:
    market.mind.fills = by_key({"name": "get_weather", "city": "Rome", "days": "1"})
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, tools=[CLOCK, WEATHER], tool_choice="required"
        )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"  # type: ignore[union-attr]
    assert len(market.mind.asked) == 2
    assert len(ours(answer)["more_jobs"]) == 1


async def test_no_tool_is_shown_when_the_caller_wants_none(market: ScriptedMarket) -> None:
    async with market.sdk() as sdk:
        await sdk.chat.completions.create(
            model=MODEL, messages=USER, tools=[WEATHER], tool_choice="none"
        )
    assert market.mind.asked[0].conversation.tools == ()


async def test_functions_of_2023_still_work(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (CALL,)
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, functions=[WEATHER["function"]]
        )
    choice = answer.choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.name == "get_weather"


# --- structured outputs


class Weather(BaseModel):
    """A structured answer."""

    city: str
    degrees: int
    sky: Literal["clear", "cloudy"]


class Postcode(BaseModel):
    """A structured answer of which one value has to match a pattern."""

    city: str
    code: str = Field(pattern="^[0-9]{4}$")


class Animal(BaseModel):
    """A structured answer with values that may be null."""

    name: str
    nick: str | None
    age: int | None


async def parsed(market: ScriptedMarket, form: Any) -> Any:
    """A structured answer."""
    async with market.sdk() as sdk:
        return await sdk.chat.completions.parse(model=MODEL, messages=USER, response_format=form)


async def test_a_structured_answer_is_parsed_by_pydantic(market: ScriptedMarket) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "-4", "sky": "clear"})
    answer = await parsed(market, Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo", degrees=-4, sky="clear")
    assert "repairs" not in ours(answer)
    told = market.mind.asked[0].conversation.messages[0]
    assert told.role == "system"
    assert "JSON schema" in told.text


async def test_what_is_invalid_is_filled_again_and_what_is_valid_stays(
    market: ScriptedMarket,
) -> None:
    degrees = ["cold", "minus four", "-4"]
    values = {"city": "Oslo", "sky": "clear"}
    market.mind.fills = lambda before, job: by_key({**values, "degrees": degrees[job]})(before, job)
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.parse(
            model=MODEL, messages=USER, response_format=Weather, seed=7
        )
    assert answer.choices[0].message.parsed == Weather(city="Oslo", degrees=-4, sky="clear")
    assert ours(answer)["repairs"] == 2
    assert len(ours(answer)["more_jobs"]) == 2
    pinned = market.mind.asked[1].template
    assert (pinned[0], pinned[2]) == (
        Fixed('{"city": "Oslo", "degrees": '),
        Fixed(', "sky": "clear"}'),
    )
    assert len({s.job.parameters.seed for s in market.worker.submissions}) == 3
    exposition = market.gateway.metrics.exposition().decode()
    assert "piecework_gateway_repairs_total 2.0" in exposition
    assert "piecework_gateway_structured_answers_total 1.0" in exposition


async def test_one_of_a_few_values_is_decided_by_a_read_if_it_is_not_written(
    market: ScriptedMarket,
) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "5", "sky": "stormy"})
    answer = await parsed(market, Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo", degrees=5, sky="clear")
    written, decided = market.mind.asked
    assert isinstance(written, TextContent)
    assert isinstance(decided, ReadContent)
    assert [label.name for label in decided.questions[0].labels] == ["clear", "cloudy"]
    assert ours(answer)["repairs"] == 1


async def test_a_document_that_never_holds_is_an_error_and_never_bad_json(
    market: ScriptedMarket,
) -> None:
    market.mind.fills = by_key({"city": "Oslo", "code": "cold", "sky": "clear"})
    async with market.sdk() as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.parse(model=MODEL, messages=USER, response_format=Postcode)
    assert caught.value.status_code == 502
    assert caught.value.code == "structured_output_failed"
    assert "/code" in str(caught.value)
    assert len(market.worker.submissions) == 5


async def test_a_number_that_is_never_written_is_decided_by_a_read_and_named(
    market: ScriptedMarket,
) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "cold", "sky": "clear"})
    answer = await parsed(market, Weather)
    assert answer.choices[0].message.parsed == Weather(city="Oslo", degrees=0, sky="clear")
    assert ours(answer)["decided"] == ["/degrees"]
    assert [type(asked) for asked in market.mind.asked] == [*[TextContent] * 3, ReadContent]


async def test_a_value_that_may_be_null_needs_no_quotes_of_the_models_own(
    market: ScriptedMarket,
) -> None:
    market.mind.fills = by_key({"name": "Reynard", "nick": "the fox", "age": "old"})
    answer = await parsed(market, Animal)
    assert answer.choices[0].message.parsed == Animal(name="Reynard", nick="the fox", age=0)
    assert ours(answer)["decided"] == ["/age"]


async def test_json_object_gives_an_object(market: ScriptedMarket) -> None:
    market.mind.fills = lambda before, job: '"a": [1, 2], "b": {"c": null}'
    form: Any = {"type": "json_object"}
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") == {"a": [1, 2], "b": {"c": None}}


async def test_with_tools_a_structured_answer_may_also_be_a_call(market: ScriptedMarket) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "-4", "sky": "clear"})
    weather: Any = {
        "type": "function",
        "function": {**WEATHER["function"], "strict": True},
    }
    async with market.sdk() as sdk:
        market.mind.says = lambda _: (CALL,)
        called = await sdk.chat.completions.parse(
            model=MODEL, messages=USER, response_format=Weather, tools=[weather]
        )
        market.mind.says = lambda _: (final("It is cold."),)
        answer = await sdk.chat.completions.parse(
            model=MODEL, messages=USER, response_format=Weather, tools=[weather]
        )
    assert called.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.parsed == Weather(city="Oslo", degrees=-4, sky="clear")


async def test_a_streamed_structured_answer_comes_whole(market: ScriptedMarket) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "-4", "sky": "clear"})
    async with (
        market.sdk() as sdk,
        sdk.chat.completions.stream(model=MODEL, messages=USER, response_format=Weather) as stream,
    ):
        whole = await stream.get_final_completion()
    assert whole.choices[0].message.parsed == Weather(city="Oslo", degrees=-4, sky="clear")


async def test_a_keyword_that_nobody_checks_is_refused_by_name(market: ScriptedMarket) -> None:
    schema = {"type": "object", "unevaluatedProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with market.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="unevaluatedProperties") as caught:
            await sdk.chat.completions.create(model=MODEL, messages=USER, response_format=form)
    assert caught.value.code == "unsupported_schema"
    assert market.worker.submissions == []


# --- thinking, images, choices, drafts


async def test_thoughts_are_named_as_vllm_names_them(market: ScriptedMarket) -> None:
    market.mind.says = lambda content: (
        (thought("Hm. "), final("Sunny.")) if content.conversation.thinking else (final("Rain."),)
    )
    async with market.sdk() as sdk:
        plain = await sdk.chat.completions.create(model=MODEL, messages=USER)
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, reasoning_effort="high"
        )
        by_template = await sdk.chat.completions.create(
            model=MODEL,
            messages=USER,
            extra_body={"chat_template_kwargs": {"enable_thinking": True}},
        )
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=USER, reasoning_effort="low", stream=True
        )
        deltas = [chunk.choices[0].delta async for chunk in stream]
    assert plain.choices[0].message.content == "Rain."
    for found in (answer, by_template):
        message = found.choices[0].message
        assert (message.content, (message.model_extra or {})["reasoning"]) == ("Sunny.", "Hm. ")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    thoughts = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < (thoughts or 0) < answer.usage.completion_tokens
    assert [(d.model_extra or {}).get("reasoning") for d in deltas][1] == "Hm. "
    assert "".join(d.content or "" for d in deltas) == "Sunny."


async def test_an_image_comes_as_a_data_url(market: ScriptedMarket) -> None:
    parts: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    async with market.sdk() as sdk:
        await sdk.chat.completions.create(model=MODEL, messages=messages)
        parts[1]["image_url"] = {"url": "https://example.com/cat.png"}
        with pytest.raises(openai.BadRequestError, match="fetches nothing") as caught:
            await sdk.chat.completions.create(model=MODEL, messages=messages)
    (message,) = market.mind.asked[0].conversation.messages
    assert isinstance(message.content[1], Image)
    assert message.content[1].data.startswith(b"\x89PNG")
    assert caught.value.param == "messages[0].content[1].image_url"


async def test_an_image_from_the_web_is_not_fetched(market: ScriptedMarket) -> None:
    """Not by http or https, from no private address, and not from a file of the gateway."""
    async with market.sdk() as sdk:
        for url in (
            "https://example.com/cat.png",
            "http://127.0.0.1:8545/",
            "http://169.254.169.254/latest/meta-data",
            "file:///etc/passwd",
        ):
            part: Any = {"type": "image_url", "image_url": {"url": url}}
            with pytest.raises(openai.BadRequestError, match="fetches nothing") as caught:
                await sdk.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": [part]}]
                )
            assert caught.value.code == "unsupported_image_url"
    assert market.mind.asked == []


async def test_a_response_takes_input_images(market: ScriptedMarket) -> None:
    content: Any = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
    ]
    asked: Any = [{"role": "user", "content": content}]
    async with market.sdk() as sdk:
        await sdk.responses.create(model=MODEL, input=asked)
        content[1] = {"type": "input_image", "file_id": "file-1", "detail": "auto"}
        with pytest.raises(openai.BadRequestError, match="data URL"):
            await sdk.responses.create(model=MODEL, input=asked)
    (message,) = market.mind.asked[0].conversation.messages
    assert isinstance(message.content[1], Image)
    assert message.content[1].media_type == "image/png"


@pytest.mark.parametrize(
    ("reason", "code"),
    [(Reason.PROMPT_REFUSED, "prompt_refused"), (Reason.NO_IMAGES, "no_images")],
)
async def test_an_image_that_no_model_can_show_is_the_callers_mistake(
    market: ScriptedMarket, reason: Reason, code: str
) -> None:
    market.worker.script.refusals = [Refusal(reason, "an image cannot be read as image/png")]
    part: Any = {"type": "image_url", "image_url": {"url": PIXEL}}
    async with market.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="cannot be read") as caught:
            await sdk.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": [part]}]
            )
    assert (caught.value.code, caught.value.param) == (code, "messages")


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_are_jobs_with_seeds_of_their_own(
    market: ScriptedMarket, stream: bool
) -> None:
    async with market.sdk() as sdk:
        arguments: Any = {"model": MODEL, "messages": USER, "n": 3, "seed": 40, "stream": stream}
        answer = await sdk.chat.completions.create(**arguments)
        if stream:
            texts = dict.fromkeys(range(3), "")
            async for chunk in answer:
                texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        else:
            texts = {choice.index: choice.message.content for choice in answer.choices}
    assert texts == dict.fromkeys(range(3), "You said: What is the weather in Oslo?")
    assert sorted(s.job.parameters.seed for s in market.worker.submissions) == [40, 41, 42]


async def test_drafts_are_events_for_those_who_ask(market: ScriptedMarket) -> None:
    body = {"model": MODEL, "messages": USER, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        url = market.url + "/v1/chat/completions"
        async with http.post(url, json=body) as response:
            plain = await response.text()
        async with http.post(url, json={**body, "piecework": {"drafts": True}}) as response:
            asked = await response.text()
    async with market.sdk() as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=USER, stream=True, extra_body={"piecework": {"drafts": True}}
        )
        chunks = [chunk async for chunk in stream]
    assert "piecework.draft" not in plain
    assert "event: piecework.draft\ndata: " in asked
    assert '"draft": {"index": 0, "canvas": 0, "step": 0' in asked
    assert all(isinstance(chunk.choices, list) for chunk in chunks)


async def test_usage_names_the_cost_in_tokens_and_in_dollars_if_a_price_is_known(
    market: ScriptedMarket,
) -> None:
    async with (
        market.sdk() as sdk,
        serving(market.client, token_usd_price=Decimal("2.5")) as (_, url),
    ):
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER)
        other = sdk.with_options(base_url=url + "/v1")
        priced = await other.chat.completions.create(model=MODEL, messages=USER)
        models = (await other.models.list()).data
    assert answer.usage is not None
    assert priced.usage is not None
    cost = ours(answer)["cost"]
    assert answer.usage.model_extra is not None
    assert answer.usage.model_extra["cost"] == cost / 1_000_000
    assert "cost_usd" not in answer.usage.model_extra
    assert priced.usage.model_extra is not None
    assert priced.usage.model_extra["cost_usd"] == pytest.approx(cost / 400_000)
    listed = models[0].model_extra or {}
    assert listed["pricing"]["prompt"] == "0.000005"
    assert listed["piecework"]["kinds"] == ["text", "read"]
    assert listed["context_length"] == 32_768


async def test_temperature_zero_is_the_least_that_workers_take(market: ScriptedMarket) -> None:
    async with market.sdk() as sdk:
        for temperature in (0, 1, 0.5):
            await sdk.chat.completions.create(model=MODEL, messages=USER, temperature=temperature)
    schedules = [
        (s.job.parameters.temperature_start, s.job.parameters.temperature_end)
        for s in market.worker.submissions
    ]
    assert schedules == [(10_000, 10_000), (800_000, 400_000), (400_000, 200_000)]


# --- completions


async def test_a_completion_answers_its_prompts(market: ScriptedMarket) -> None:
    async with market.sdk() as sdk:
        answer = await sdk.completions.create(
            model=MODEL, prompt=["one", "two"], n=2, echo=True, max_tokens=64
        )
        stream = await sdk.completions.create(
            model=MODEL, prompt="one", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [choice.text for choice in answer.choices] == [
        "oneYou said: one",
        "oneYou said: one",
        "twoYou said: two",
        "twoYou said: two",
    ]
    assert "".join(c.choices[0].text for c in chunks if c.choices) == "You said: one"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_a_suffix_fills_the_middle(market: ScriptedMarket) -> None:
    market.mind.fills = lambda before, job: "    return a + b\n"
    async with market.sdk() as sdk:
        answer = await sdk.completions.create(
            model=MODEL, prompt="def add(a, b):\n", suffix="\nprint(add(1, 2))", max_tokens=32
        )
    assert answer.choices[0].text == "    return a + b\n"
    template = market.mind.asked[0].template
    assert template[0] == Fixed("def add(a, b):\n")
    assert template[1].tokens == 32
    assert template[2] == Fixed("\nprint(add(1, 2))")


# --- responses


async def test_a_response_has_items_for_text_and_thoughts(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (thought("Hm."), final("Sunny."))
    async with market.sdk() as sdk:
        answer = await sdk.responses.create(
            model=MODEL,
            input="Weather?",
            instructions="Be brief.",
            store=False,
            reasoning={"effort": "low"},
        )
    assert answer.output_text == "Sunny."
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    talk = market.mind.asked[0].conversation
    assert talk.thinking
    assert talk.messages == (Message("system", "Be brief."), Message("user", "Weather?"))


async def test_a_streamed_response_sends_the_events_of_its_items(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (thought("Hm."), final("Sun"), final("ny."), CALL)
    tool: Any = {"type": "function", **WEATHER["function"]}
    async with (
        market.sdk() as sdk,
        sdk.responses.stream(model=MODEL, input="Weather?", tools=[tool]) as stream,
    ):
        events = [event.type async for event in stream]
        whole = await stream.get_final_response()
    assert events[0] == "response.created"
    assert events[-1] == "response.completed"
    assert events.count("response.output_item.added") == 3
    assert events.count("response.output_text.delta") == 2
    assert "response.reasoning_text.delta" in events
    assert "response.function_call_arguments.done" in events
    assert whole.output_text == "Sunny."
    assert whole.output[2].type == "function_call"
    assert json.loads(whole.output[2].arguments) == {"city": "Oslo", "days": 2}


async def test_a_response_takes_its_own_items_back(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (thought("Hm."), final("Let me see."), CALL)
    tool: Any = {"type": "function", **WEATHER["function"]}
    async with market.sdk() as sdk:
        first = await sdk.responses.create(model=MODEL, input="Weather?", tools=[tool])
        call: Any = first.output[2]
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        history: Any = [{"role": "user", "content": "Weather?"}, *first.output, output]
        market.mind.says = lambda _: (final("Sunny."),)
        second = await sdk.responses.create(model=MODEL, input=history, tools=[tool])
    assert second.output_text == "Sunny."
    user, assistant, tool_message = market.mind.asked[1].conversation.messages
    assert (assistant.thought, assistant.content) == ("Hm.", "Let me see.")
    assert assistant.tool_calls[0].id == tool_message.tool_call_id == call.call_id
    assert user.content == "Weather?"


async def test_a_structured_response_is_parsed_by_pydantic(market: ScriptedMarket) -> None:
    market.mind.fills = by_key({"city": "Oslo", "degrees": "-4", "sky": "clear"})
    async with market.sdk() as sdk:
        answer = await sdk.responses.parse(model=MODEL, input="Weather?", text_format=Weather)
    assert answer.output_parsed == Weather(city="Oslo", degrees=-4, sky="clear")


async def test_stored_state_is_refused_by_name(market: ScriptedMarket) -> None:
    async with market.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="nothing is stored") as caught:
            await sdk.responses.create(model=MODEL, input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


async def test_a_response_that_is_cut_is_incomplete(market: ScriptedMarket) -> None:
    market.mind.says = lambda _: (final("A very long answer that is cut somewhere."),)
    async with market.sdk() as sdk:
        answer = await sdk.responses.create(model=MODEL, input="x", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


# --- decisions


async def test_decisions_give_probabilities_in_order(market: ScriptedMarket) -> None:
    questions: Any = [
        {"type": "predicate", "instructions": "Is it late?", "name": "late"},
        {
            "type": "choice",
            "instructions": "Which?",
            "choices": [{"value": True}, {"value": "true"}, {"value": "no", "description": "not"}],
        },
        {
            "type": "score",
            "instructions": [{"type": "input_text", "text": "How urgent?"}],
            "levels": [{"label": "low"}, {"label": "high"}],
        },
    ]
    async with market.sdk() as sdk:
        answer = await sdk.decisions.create(
            model=MODEL, input="The bus left at nine.", questions=questions
        )
    late, which, urgent = answer.answers
    assert late.type == "predicate"
    assert (late.name, late.probability) == ("late", 0.75)
    assert which.type == "choice"
    assert which.choice is True
    assert [p.value for p in which.probabilities] == [True, "true", "no"]
    assert sum(p.probability for p in which.probabilities) == pytest.approx(1)
    assert which.confidence == pytest.approx((3 * 0.75 - 1) / 2)
    assert urgent.type == "score"
    assert urgent.score == pytest.approx(0.25)
    assert [(p.value, p.label) for p in urgent.probabilities] == [(0, "low"), (1, "high")]
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens == 0
    content = market.mind.asked[0]
    assert isinstance(content, ReadContent)
    assert [label.name for label in content.questions[1].labels] == ["true (bool)", "true", "no"]
    assert ours(answer)["denoising_steps"] == 1


async def test_draws_are_averaged(market: ScriptedMarket) -> None:
    shares = iter([(49_152, 16_384), (16_384, 49_152)])
    market.mind.believes = lambda _: next(shares)
    question: Any = {"type": "predicate", "instructions": "Is it late?"}
    async with market.sdk() as sdk:
        answer = await sdk.decisions.create(
            model=MODEL,
            input="x",
            questions=[question],
            extra_body={"piecework": {"draws": 2}, "seed": 3},
        )
    assert answer.answers[0].probability == 0.5  # type: ignore[union-attr]
    assert market.worker.submissions[0].job.parameters.seed == 3
