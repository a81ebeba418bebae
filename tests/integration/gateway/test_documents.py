"""Structured answers at their limits: long strings, schemas that nothing holds, failing helps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from piecework.client.gateway.replies import check_reply
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.text import Hole, TextOutput
from piecework_protocol.objects import Finish
from piecework_protocol.types import Uint32
from piecework_protocol.worker_session import CanvasResult
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, open_client
from tests.support.client.fake_worker import STEPS, Job
from tests.support.client.gateways import MODEL, ScriptedMarket, scripted_market, serving
from tests.support.client.scripted_worker import ScriptedWorker, wide_model

USER: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


def holes_of(market: ScriptedMarket) -> list[int]:
    """The sizes of the holes of the last job."""
    return [part.tokens for part in market.mind.asked[-1].template if isinstance(part, Hole)]


def write_up_to(market: ScriptedMarket, words: int) -> None:
    """Write that many words in all, each a token, in holes of whatever size."""

    def fills(before: str, _: int) -> str:
        left = words - before.count("owl")
        return "owl" + " owl" * (min(left, holes_of(market)[0]) - 1) if left else ""

    market.mind.fills = fills


TEXT_FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "page",
        "schema": {
            "type": "object",
            "properties": {"content": {"type": "string"}},
            "required": ["content"],
        },
    },
}
WRITE_FILE: Any = {
    "type": "function",
    "function": {"name": "write_file", "parameters": TEXT_FORM["json_schema"]["schema"]},
}


async def test_a_long_string_of_an_answer_is_written_to_its_end(market: ScriptedMarket) -> None:
    write_up_to(market, 900)
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, response_format=TEXT_FORM, max_tokens=4000
        )
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content or "")["content"].count("owl") == 900
    assert holes_of(market) == [768]


@pytest.mark.parametrize("kind", ["string", "array"])
async def test_what_outgrows_the_model_ends_with_length(tmp_path: Path, kind: str) -> None:
    """A caller without a limit does not know the model's. Its jobs so far are paid."""
    word = "owl " if kind == "string" else '"owl", '
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY * 100)
    worker = ScriptedWorker(chain, clock, models=(wide_model(max_output=Uint32(400)),))
    schema = {"type": "object", "properties": {"a": {"type": kind}}, "required": ["a"]}
    async with (
        worker,
        open_client(tmp_path, chain, clock) as client,
        serving(client) as (gateway, url),
        (market := ScriptedMarket(url, worker, client, gateway)).sdk() as sdk,
    ):
        worker.mind.fills = lambda *_: word * holes_of(market)[0]
        answer = await sdk.chat.completions.create(
            model=MODEL,
            messages=USER,
            response_format=form_of(schema),
            extra_body={"piecework": {"evidence": True}},
        )
    assert answer.choices[0].finish_reason == "length"
    checked = await check_reply(answer.to_dict())  # a job that nobody took has no evidence
    assert len(checked.jobs) == len(worker.submissions)
    assert (answer.choices[0].message.content or "").count("owl") > 90
    assert max(one.job.parameters.max_tokens for one in worker.submissions) <= 400


async def test_a_list_without_end_is_ended_where_nobody_has_a_limit(
    market: ScriptedMarket,
) -> None:
    """A valid list is worth more than a broken document of the same items."""
    market.mind.fills = lambda *_: '"owl", ' * holes_of(market)[0]
    schema = {"type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"]}
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, response_format=form_of(schema)
        )
    assert answer.choices[0].finish_reason == "stop"
    owls = json.loads(answer.choices[0].message.content or "")["a"]
    assert set(owls) == {"owl"}
    assert len(owls) > 500


async def test_a_string_that_meets_max_tokens_ends_with_length(market: ScriptedMarket) -> None:
    write_up_to(market, 900)
    async with market.sdk() as sdk:
        text = await sdk.chat.completions.create(
            model=MODEL, messages=USER, response_format=TEXT_FORM, max_tokens=300
        )
        call = await sdk.chat.completions.create(
            model=MODEL, messages=USER, tools=[WRITE_FILE], tool_choice="required", max_tokens=300
        )
    assert text.choices[0].finish_reason == call.choices[0].finish_reason == "length"
    assert not call.choices[0].message.tool_calls
    assert 200 < (text.choices[0].message.content or "").count("owl") < 300


def form_of(schema: Any) -> Any:
    """A response format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def test_a_schema_that_no_document_can_hold_is_refused_before_it_is_paid(
    market: ScriptedMarket,
) -> None:
    both = {"properties": {"a": {"const": 1}, "b": {"const": 2}}, "required": ["a", "b"]}
    impossible = {"type": "object", **both, "maxProperties": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": impossible}}
    asked: list[Any] = [{"response_format": form_of(impossible)}]
    asked += [{"tools": [tool, CLOCK], "tool_choice": "required"}]
    async with market.sdk() as sdk:
        for fields in asked:
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.chat.completions.create(model=MODEL, messages=USER, **fields)
            assert caught.value.code == "unsupported_schema"
    assert market.mind.asked == []


async def test_a_forced_call_has_an_object_also_if_its_schema_asks_for_nothing(
    market: ScriptedMarket,
) -> None:
    market.mind.fills = lambda *_: '"a": 1'
    open_tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    number = {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"}
    bad_tool: Any = {"type": "function", "function": {"name": "f", "parameters": number}}
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(
            model=MODEL, messages=USER, tools=[open_tool], tool_choice="required"
        )
        with pytest.raises(openai.BadRequestError, match="are of type object"):
            await sdk.chat.completions.create(
                model=MODEL, messages=USER, tools=[bad_tool], tool_choice="required"
            )
    calls: Any = answer.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"a": 1}]
    assert len(market.mind.asked) == 1  # the other one was refused before it was paid


async def test_a_read_that_fails_leaves_the_document_to_the_model(market: ScriptedMarket) -> None:
    def fills(_: str, job: int) -> str:
        if job == 0:
            market.worker.script.refusals.append(Refusal(Reason.ENGINE_FAILED, "no reads now"))
        return "zzz" if job == 0 else "red"

    market.mind.fills = fills
    form = form_of({"type": "object", "properties": {"c": {"enum": ["red", "blue"]}}})
    async with market.sdk() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=USER, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") == {"c": "red"}


class PaddingWorker(ScriptedWorker):
    """It writes thousands of characters and charges one token."""

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        """One token."""
        output = TextOutput.plain((1,), '{"content": "' + "x" * 5000 + '"}')
        return self._result(job, output.encode(), canvas, (STEPS, 1, Finish.END_OF_TEXT))


async def test_a_worker_that_pads_its_text_is_found_out(tmp_path: Path) -> None:
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY * 100)
    worker = PaddingWorker(chain, clock)
    async with (
        worker,
        open_client(tmp_path, chain, clock) as client,
        serving(client) as (gateway, url),
        ScriptedMarket(url, worker, client, gateway).sdk() as sdk,
    ):
        with pytest.raises(openai.InternalServerError, match="more than its tokens") as caught:
            await sdk.chat.completions.create(model=MODEL, messages=USER, response_format=TEXT_FORM)
    assert caught.value.status_code == 502
