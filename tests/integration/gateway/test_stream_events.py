"""The bytes of a stream: what ends a line, what is repeated, how a failure looks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market
from tests.support.client.scripted_worker import final

USER: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


async def streamed(market: ScriptedMarket, path: str, body: Any) -> tuple[int, bytes]:
    """The status of a stream, and its bytes up to where it ends or breaks off."""
    received = b""
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(market.url + path, json={"model": MODEL, "stream": True, **body}) as response,
    ):
        with contextlib.suppress(aiohttp.ClientError):
            async for part in response.content.iter_any():
                received += part
    return response.status, received


async def test_no_character_of_a_text_ends_a_line_of_a_stream(market: ScriptedMarket) -> None:
    text = "one\u2028two\u0085three"
    market.mind.says = lambda content: (final(text),)
    status, received = await streamed(market, "/v1/chat/completions", {"messages": USER})
    lines = received.decode().splitlines()
    assert status == 200
    assert all(line.startswith("data: ") for line in lines if line)
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == text


@pytest.mark.parametrize("name", ["metadata", "instructions", "reasoning", "tool_choice"])
async def test_a_response_repeats_nothing_that_utf8_cannot_encode(
    market: ScriptedMarket, name: str
) -> None:
    body = {"input": "hi", name: {"a": "\ud800"}}
    status, received = await streamed(market, "/v1/responses", body)
    assert status == 400
    assert json.loads(received)["error"]["param"].startswith(name)
    assert market.mind.asked == []


async def test_the_last_event_of_a_failed_response_is_an_error(market: ScriptedMarket) -> None:
    market.mind.says = lambda content: (final("one "), final("two"))
    market.worker.script.fail_at = 1
    _, received = await streamed(market, "/v1/responses", {"input": "hi"})
    name, _, data = received.decode().rstrip().rpartition("\n\n")[2].partition("\n")
    event = json.loads(data.removeprefix("data: "))
    assert (name, event["type"], event["code"]) == ("event: error", "error", "engine_failed")
