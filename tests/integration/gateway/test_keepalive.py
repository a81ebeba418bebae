"""Long answers that do not stream begin with white space, and stay JSON whatever happens."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import openai

from piecework_protocol.errors import Reason, Refusal
from tests.integration.gateway.test_gateway_access import BODY, USER, WHOLE, door
from tests.support.waiting import pass_time


async def test_a_long_answer_begins_with_white_space_and_is_json(tmp_path: Path) -> None:
    async with door(tmp_path, heartbeat_s=0.02) as here, aiohttp.ClientSession() as http:
        held = asyncio.Event()
        here.worker.script.gate = lambda canvas: held.wait()
        async with http.post(here.url + "/v1/chat/completions", json=BODY) as response:
            assert (response.status, response.content_type) == (200, "application/json")
            received = await response.content.readexactly(3)
            assert received == b"   "
            held.set()
            received += await response.read()
        body = json.loads(received)
        assert body["choices"][0]["message"]["content"] == WHOLE
        assert body["piecework"]["cost"] == here.worker.paid()


async def test_the_sdk_reads_through_the_white_space(tmp_path: Path) -> None:
    async with door(tmp_path, heartbeat_s=0.01) as here, here.sdk("none-needed") as sdk:
        here.worker.script.gate = lambda canvas: pass_time(0.05)
        answer = await sdk.chat.completions.create(model="tale-1", messages=USER)
        assert answer.choices[0].message.content == WHOLE


async def test_a_failure_after_the_first_byte_has_the_shape_of_an_error(tmp_path: Path) -> None:
    async with door(tmp_path, heartbeat_s=0.02) as here, aiohttp.ClientSession() as http:
        held = asyncio.Event()
        here.worker.script.gate = lambda canvas: held.wait()
        here.worker.script.fail_at = 1
        async with http.post(here.url + "/v1/chat/completions", json=BODY) as response:
            assert response.status == 200
            received = await response.content.readexactly(1)
            held.set()
            received += await response.read()
        error = json.loads(received)["error"]
        assert (error["code"], error["type"]) == ("engine_failed", "upstream_error")
        assert set(error) == {"message", "type", "param", "code"}


async def test_a_failure_before_a_worker_accepts_keeps_its_status(tmp_path: Path) -> None:
    async with door(tmp_path, heartbeat_s=0.001) as here, here.sdk("none-needed") as sdk:
        here.worker.script.refusals = [Refusal(Reason.PROMPT_REFUSED, "no")]
        try:
            await sdk.chat.completions.create(model="tale-1", messages=USER)
        except openai.BadRequestError as error:
            assert error.code == "prompt_refused"
        else:
            raise AssertionError("the refusal was lost")


async def test_a_short_answer_has_a_length_and_no_white_space(tmp_path: Path) -> None:
    async with door(tmp_path) as here, aiohttp.ClientSession() as http:
        async with http.post(here.url + "/v1/chat/completions", json=BODY) as response:
            received = await response.read()
            assert int(response.headers["Content-Length"]) == len(received)
        assert received.startswith(b"{")


async def test_twenty_requests_at_five_places_are_all_answered(tmp_path: Path) -> None:
    async with door(tmp_path, max_concurrent=5) as here, here.sdk("none-needed") as sdk:
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(model="tale-1", messages=USER) for _ in range(20))
        )
        assert [answer.choices[0].message.content for answer in answers] == [WHOLE] * 20
