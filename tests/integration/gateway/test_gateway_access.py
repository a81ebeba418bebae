"""Who may use the gateway: keys with budgets, this machine, named web pages. Over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from piecework.client.gateway.keys import new_key
from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.journal.records import Limits
from piecework.client.sdk import PieceworkClient
from piecework_protocol.types import Amount, Timestamp
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, ask, open_client
from tests.support.client.fake_worker import STORY, FakeWorker

WHOLE = " ".join(STORY)
USER: Any = [{"role": "user", "content": "Tell me a story."}]
PAGE = "https://chat.example"
BODY = {"model": "tale-1", "messages": USER, "max_tokens": 64}


@dataclass
class Door:
    """A running gateway, and what is behind it."""

    url: str
    client: PieceworkClient
    worker: FakeWorker
    clock: FakeClock

    def key(self, name: str, limits: Limits | None = None, *, expires: int = 0) -> str:
        key, now = new_key(), Timestamp(int(self.clock.wall()))
        self.client.store.api_keys.add(
            name, key, limits or Limits(), now=now, expires_at=Timestamp(expires)
        )
        return key

    def sdk(self, key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=key, max_retries=0)

    async def models(self, **headers: str) -> tuple[int, str]:
        """The status of a request for the models, and the code of its error."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession() as http,
            http.get(self.url + "/v1/models", headers=sent) as response,
        ):
            body = await response.json()
            return response.status, body.get("error", {}).get("code", "")


@asynccontextmanager
async def door(
    folder: Path, *, flags: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Door]:
    """A gateway with these options, around a client with these settings."""
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY)
    settings: dict[str, Any] = {"api_key": None, "max_concurrent": 64, "heartbeat_s": 5.0}
    async with (
        FakeWorker(chain, clock) as worker,
        open_client(folder, chain, clock, **(flags or {})) as client,
    ):
        gateway = Gateway(client, GatewayOptions(**{**settings, **options}), clock=clock)
        runner = web.AppRunner(gateway.application(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield Door(f"http://127.0.0.1:{runner.addresses[0][1]}", client, worker, clock)
        finally:
            await runner.cleanup()


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


# --- keys


async def test_from_the_first_key_on_every_caller_needs_one(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        assert await here.models() == (200, "")
        key = here.key("alice")
        assert await here.models() == (401, "invalid_api_key")
        assert await here.models(Authorization=f"Bearer {key}") == (200, "")
        assert await here.models(Authorization=f"bearer {key}") == (200, "")
        for wrong in ("Bearer", f"Basic {key}", f"Bearer {key}x", "Bearer " + "x" * 4000):
            assert await here.models(Authorization=wrong) == (401, "invalid_api_key")
        here.client.store.api_keys.revoke("alice", Timestamp(int(here.clock.wall())))
        assert await here.models(Authorization=f"Bearer {key}") == (401, "invalid_api_key")
        assert await here.models() == (401, "invalid_api_key")


async def test_a_key_ends_when_it_was_said_to(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        key = here.key("alice", expires=int(here.clock.wall()) + 60)
        assert (await here.models(Authorization=f"Bearer {key}"))[0] == 200
        here.clock.advance(60)
        assert (await here.models(Authorization=f"Bearer {key}"))[0] == 401


async def test_the_key_of_the_settings_goes_on_beside_the_others(tmp_path: Path) -> None:
    async with door(tmp_path, api_key="for-a-container") as here:
        key = here.key("alice")
        assert (await here.models(Authorization="Bearer for-a-container"))[0] == 200
        assert (await here.models(Authorization=f"Bearer {key}"))[0] == 200
        assert (await here.models())[0] == 401


async def test_no_key_lies_in_the_journal(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        key = here.key("alice")
    kept = contents(tmp_path)
    assert kept
    assert not any(key.encode() in data for data in kept)


async def test_of_64_calls_with_a_key_for_ten_exactly_ten_start(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        ranking = await here.client.rank(ask(max_tokens=64))
        ceiling = ranking.choices[0].ceiling
        key = here.key("alice", Limits(per_day=Amount(10 * ceiling)))
        held, refusals = asyncio.Event(), []

        async def gate(canvas: int) -> None:
            await held.wait()

        here.worker.script.gate = gate
        async with here.sdk(key) as sdk:

            async def one() -> str | None:
                try:
                    answer = await sdk.chat.completions.create(
                        model="tale-1", messages=USER, max_tokens=64
                    )
                    return answer.choices[0].message.content
                except openai.RateLimitError as error:
                    refusals.append(error)
                    if len(refusals) == 54:
                        held.set()
                    return None

            answers = await asyncio.gather(*(one() for _ in range(64)))
        assert [text for text in answers if text is not None] == [WHOLE] * 10
        assert {(e.code, e.type) for e in refusals} == {
            ("insufficient_quota", "insufficient_quota")
        }
        assert {e.response.headers.get("x-should-retry") for e in refusals} == {"false"}
        assert len(here.worker.submissions) == 10
        now = Timestamp(int(here.clock.wall()))
        used = here.client.store.budgets.used("alice", now)
        assert (used.day, used.held) == (here.worker.paid(), 0)


async def test_what_a_key_may_never_buy_is_the_callers_mistake(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        key = here.key("alice", Limits(max_price=Amount(3_000)))
        async with here.sdk(key) as sdk:
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.chat.completions.create(model="tale-1", messages=USER, max_tokens=2000)
            assert (caught.value.code, caught.value.param) == ("over_price_limit", "max_tokens")
            answer = await sdk.chat.completions.create(model="tale-1", messages=USER)
        ours = (answer.model_extra or {})["piecework"]
        assert ours["cost"] <= ours["ceiling"] <= 3_000


# --- this machine


@pytest.mark.parametrize(
    "header",
    ["X-Forwarded-For", "X-Forwarded-Host", "x-forwarded-proto", "Forwarded", "X-Real-IP", "Via"],
)
async def test_what_a_proxy_passed_on_needs_a_key(tmp_path: Path, header: str) -> None:
    async with door(tmp_path) as here:
        sent = {header.replace("-", "_"): "203.0.113.9"}
        assert await here.models(**sent) == (403, "key_needed_behind_proxy")
        key = here.key("alice")
        assert await here.models(**sent, Authorization=f"Bearer {key}") == (200, "")


async def test_without_a_key_no_page_of_another_origin_is_answered(tmp_path: Path) -> None:
    async with door(tmp_path, allowed_origins=(PAGE,)) as here:
        assert await here.models(Origin="https://evil.example") == (403, "origin_not_allowed")
        assert await here.models(Origin="null") == (403, "origin_not_allowed")
        assert await here.models(Origin=PAGE.upper()) == (403, "origin_not_allowed")
        assert await here.models(Origin=PAGE) == (200, "")


# --- shapes


async def test_every_failure_has_the_shape_of_an_error(tmp_path: Path) -> None:
    async with door(tmp_path) as here, aiohttp.ClientSession() as http:
        chat = here.url + "/v1/chat/completions"
        json_body = {"Content-Type": "application/json"}
        attempts: tuple[tuple[str, str, int, Any], ...] = (
            ("GET", here.url + "/v1/nothing", 404, {}),
            ("GET", chat, 405, {}),
            ("OPTIONS", chat, 405, {}),
            ("POST", chat, 415, {"data": b"{}"}),
            ("POST", chat, 400, {"data": b"{", "headers": json_body}),
            ("POST", chat, 400, {"json": {**BODY, "max_tokens": 10**6}}),
            ("POST", chat, 404, {"json": {**BODY, "model": "epic-9"}}),
        )
        for method, url, status, more in attempts:
            async with http.request(method, url, **more) as response:
                error = (await response.json())["error"]
                assert response.status == status
                assert set(error) == {"message", "type", "param", "code"}
                assert response.headers["Cache-Control"] == "no-store"


async def test_a_fault_of_the_gateways_own_has_it_too(tmp_path: Path) -> None:
    async with door(tmp_path) as here:
        here.client.discovery, kept = None, here.client.discovery  # type: ignore[assignment]
        assert await here.models() == (500, "internal_error")
        here.client.discovery = kept


# --- web pages


async def test_a_named_page_may_ask_and_read(tmp_path: Path) -> None:
    async with door(tmp_path, allowed_origins=(PAGE,)) as here, aiohttp.ClientSession() as http:
        key = here.key("alice")
        url = here.url + "/v1/chat/completions"
        asked = {
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        }
        async with http.options(url, headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == PAGE
            assert "x-stainless-lang" in response.headers["Access-Control-Allow-Headers"]
            assert response.headers["Vary"] == "Origin"
        headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
        for stream in (False, True):
            async with http.post(url, headers=headers, json={**BODY, "stream": stream}) as response:
                assert response.status == 200
                assert response.headers["Access-Control-Allow-Origin"] == PAGE
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["X-Accel-Buffering"] == "no"
                await response.read()
        async with http.post(url, headers={"Origin": PAGE}, json=BODY) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == PAGE


async def test_another_page_is_told_nothing(tmp_path: Path) -> None:
    async with door(tmp_path, allowed_origins=(PAGE,)) as here, aiohttp.ClientSession() as http:
        key = here.key("alice")
        url = here.url + "/v1/chat/completions"
        for origin in ("https://evil.example", PAGE + ":443", "http://chat.example", "null"):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            async with http.options(url, headers=asked) as response:
                assert response.status == 403
                assert "Access-Control-Allow-Origin" not in response.headers
            headers = {"Origin": origin, "Authorization": f"Bearer {key}"}
            async with http.get(here.url + "/v1/models", headers=headers) as response:
                assert "Access-Control-Allow-Origin" not in response.headers
