"""Calls that the model makes by itself, of tools that are strict, through OpenAI's own SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from piecework.client.gateway.replies import check_reply
from piecework_protocol.kinds.text import Fixed, OutputSegment
from tests.support.client.gateways import MODEL, ScriptedMarket, scripted_market, serving
from tests.support.client.scripted_worker import final, tool_call

USER: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}


class GetWeather(BaseModel):
    """The weather of a place."""

    city: str
    days: int
    unit: Literal["celsius", "kelvin"]


class GetForecast(BaseModel):
    """The forecast of a place, of which one argument has to match a pattern."""

    city: str
    code: str = Field(pattern="^[0-9]{4}$")


TOOL: Any = openai.pydantic_function_tool(GetWeather)
GOOD = {"city": "Oslo", "days": 2, "unit": "kelvin"}


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


def call(arguments: Any, name: str = "GetWeather") -> OutputSegment:
    """What the model writes to call a tool."""
    return tool_call(json.dumps({"name": name, "arguments": arguments}))


def says(market: ScriptedMarket, *segments: OutputSegment) -> None:
    """Let the model write these."""
    market.mind.says = lambda _: segments


async def calls_of(market: ScriptedMarket, **fields: Any) -> tuple[list[Any], Any]:
    """Ask with the strict tool. Return the calls' arguments, and the `piecework` object."""
    fields = {"tools": [TOOL, CLOCK], **fields}
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER, **fields)
    found: Any = answer.choices[0].message.tool_calls or []
    ours: Any = (answer.model_extra or {})["piecework"]
    return [json.loads(one.function.arguments) for one in found], ours


def fixed_of(market: ScriptedMarket, job: int) -> str:
    """All fixed texts of a job's template."""
    return "".join(part.text for part in market.mind.asked[job].template if isinstance(part, Fixed))


async def test_arguments_that_break_a_strict_schema_are_filled_again(
    market: ScriptedMarket,
) -> None:
    says(market, call({**GOOD, "days": "two"}))
    market.mind.fills = lambda *_: "2"
    (arguments,), ours = await calls_of(market)
    assert arguments == GOOD
    assert ours["repairs"] == 1 and len(ours["more_jobs"]) == 1
    assert ours["cost"] == sum(one["amount"] for one in ours["receipts"])
    first, again = market.mind.asked
    assert first.template == () and first.conversation.tools[0].name == "GetWeather"
    pinned = fixed_of(market, 1)
    assert '"city": "Oslo"' in pinned and '"unit": "kelvin"' in pinned
    assert "two" not in pinned
    assert "GetWeather" in again.conversation.messages[0].text


async def test_arguments_that_hold_the_schema_cost_nothing_more(market: ScriptedMarket) -> None:
    says(market, call(GOOD))
    (arguments,), ours = await calls_of(market)
    assert arguments == GOOD
    assert "repairs" not in ours and len(market.mind.asked) == 1


async def test_an_argument_that_the_schema_has_no_place_for_is_dropped(
    market: ScriptedMarket,
) -> None:
    says(market, call({"colour": "red", **GOOD}))
    (arguments,), ours = await calls_of(market)
    assert arguments == GOOD
    assert len(market.mind.asked) == 1 and "repairs" not in ours


async def test_a_missing_choice_is_decided_by_a_read(market: ScriptedMarket) -> None:
    says(market, call({"city": "Oslo", "days": 2}))
    (arguments,), ours = await calls_of(market)
    assert arguments == {**GOOD, "unit": "celsius"}  # what the model believes most
    assert len(ours["more_jobs"]) == 1
    assert ours["receipts"][-1]["tokens"] == 0


async def test_a_strict_call_that_never_holds_is_an_error_that_is_not_sent_again(
    market: ScriptedMarket,
) -> None:
    tool = openai.pydantic_function_tool(GetForecast)
    says(market, call({"city": "Oslo", "code": "two"}, "GetForecast"))
    market.mind.fills = lambda *_: "three"
    with pytest.raises(openai.InternalServerError) as caught:
        await calls_of(market, tools=[tool])
    assert caught.value.status_code == 502
    assert caught.value.code == "structured_output_failed"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(market.mind.asked) == 5  # the call, and four repairs


async def test_a_price_that_covers_no_repair_refuses_the_call(market: ScriptedMarket) -> None:
    says(market, call(GOOD))
    _, ours = await calls_of(market, max_tokens=64)
    limit = {"piecework": {"max_price": ours["ceiling"]}}  # the first job alone
    says(market, call({**GOOD, "days": "two"}))
    market.mind.fills = lambda *_: "2"
    with pytest.raises(openai.InternalServerError, match="max_price does not cover") as caught:
        await calls_of(market, max_tokens=64, extra_body=limit)
    assert caught.value.code == "structured_output_failed"


async def test_calls_stay_in_their_order_when_one_is_filled_again(market: ScriptedMarket) -> None:
    says(
        market,
        final("Let me see. "),
        call({}, "get_time"),
        call({**GOOD, "days": None}),
        call({**GOOD, "city": "Bergen"}),
        call({}, "get_time"),
    )
    market.mind.fills = lambda *_: "7"
    async with (
        market.sdk() as sdk,
        sdk.chat.completions.stream(model=MODEL, messages=USER, tools=[TOOL, CLOCK]) as stream,
    ):
        whole = await stream.get_final_completion()
    message: Any = whole.choices[0].message
    assert message.content == "Let me see. "
    made = [(one.function.name, json.loads(one.function.arguments)) for one in message.tool_calls]
    assert made == [
        ("get_time", {}),
        ("GetWeather", {**GOOD, "days": 7}),
        ("GetWeather", {**GOOD, "city": "Bergen"}),
        ("get_time", {}),
    ]
    assert whole.choices[0].finish_reason == "tool_calls"
    parsed = message.tool_calls[1].function.parsed_arguments
    assert isinstance(parsed, GetWeather) and parsed.days == 7


async def test_a_tool_that_is_not_strict_is_shown_as_the_model_called_it(
    market: ScriptedMarket,
) -> None:
    loose = {"type": "function", "function": {**TOOL["function"], "strict": False}}
    says(market, call({"days": "two"}))
    (arguments,), ours = await calls_of(market, tools=[loose])
    assert arguments == {"days": "two"} and "repairs" not in ours


async def test_a_strict_tool_beside_a_structured_answer_holds_its_schema_too(
    market: ScriptedMarket,
) -> None:
    says(market, call({**GOOD, "days": "two"}))
    market.mind.fills = lambda *_: "2"
    schema = {"type": "object", "properties": {"mood": {"type": "string"}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    (arguments,), _ = await calls_of(market, response_format=form)
    assert arguments == GOOD
    assert "mood" not in market.mind.asked[1].conversation.messages[0].text


async def test_a_strict_schema_that_nobody_checks_is_named_or_refused(
    market: ScriptedMarket, tmp_path: Path
) -> None:
    odd = {"type": "object", "patternProperties": {"^a": {"type": "string"}}}
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": odd, "strict": True}}
    says(market, call({"a": 1}, "f"))
    (arguments,), ours = await calls_of(market, tools=[CLOCK, tool])
    assert arguments == {"a": 1}
    assert ours["ignored"] == ["tools[1].function.strict"]
    async with serving(market.client, strict_parameters=True) as (gateway, url):
        strict = ScriptedMarket(url, market.worker, market.client, gateway)
        with pytest.raises(openai.BadRequestError, match="strict cannot be honoured"):
            await calls_of(strict, tools=[CLOCK, tool])


async def test_strict_functions_of_a_response_hold_their_schemas(market: ScriptedMarket) -> None:
    says(market, call({**GOOD, "days": "two"}))
    market.mind.fills = lambda *_: "2"
    function = TOOL["function"]
    tool: Any = {"type": "function", **{name: function[name] for name in function}}
    async with market.sdk() as sdk:
        answer = await sdk.responses.create(model=MODEL, input="The weather?", tools=[tool])
    (item,) = answer.output
    assert item.type == "function_call" and json.loads(item.arguments) == GOOD


async def test_an_answer_with_a_call_that_was_filled_again_proves_itself(
    market: ScriptedMarket,
) -> None:
    says(market, call({**GOOD, "days": "two"}))
    market.mind.fills = lambda *_: "2"
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL,
            messages=USER,
            tools=[TOOL],
            seed=3,
            extra_body={"piecework": {"evidence": True}},
        )
    checked = await check_reply(answer.model_dump())
    assert len(checked.jobs) == 2
