"""Bodies as newer clients send them: packed, and with headers that no gateway needs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import httpx2
import openai
import pytest
from backports.zstd import CompressionParameter, ZstdCompressor, compress

from piecework.client.gateway.packings import WINDOW_BITS
from piecework.client.gateway.server import MAX_BODY_BYTES
from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market

Pack = Callable[[bytes], bytes]
PACKS: Final[dict[str, Pack]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": compress,
    "ZSTD": compress,
    "identity": bytes,
}
BODY: Final[dict[str, Any]] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the weather in Oslo?"}],
}


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


async def post(market: ScriptedMarket, body: bytes, **headers: str) -> tuple[int, Any]:
    """Send a body as it is. Return the status and the JSON of the answer."""
    sent = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    async with (
        aiohttp.ClientSession() as http,
        http.post(
            market.url + "/v1/chat/completions",
            data=body,
            headers=sent,
            skip_auto_headers=["Accept"],
        ) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


@pytest.mark.parametrize("packing", PACKS)
async def test_a_packed_body_is_taken(market: ScriptedMarket, packing: str) -> None:
    body = PACKS[packing](json.dumps(BODY).encode())
    status, answer = await post(market, body, Content_Encoding=packing)
    assert status == 200
    assert answer["choices"][0]["message"]["content"].startswith("You said:")


@pytest.mark.parametrize("packing", ["gzip", "deflate", "zstd"])
async def test_a_body_that_grows_past_the_bound_is_refused(
    market: ScriptedMarket, packing: str
) -> None:
    bomb = PACKS[packing](bytes(4 * MAX_BODY_BYTES))
    assert len(bomb) < MAX_BODY_BYTES // 100
    status, answer = await post(market, bomb, Content_Encoding=packing)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert market.mind.asked == []


@pytest.mark.parametrize("packing", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "longer", "other"])
async def test_a_damaged_body_is_the_callers_mistake(
    market: ScriptedMarket, packing: str, damage: str
) -> None:
    whole = PACKS[packing](json.dumps(BODY).encode())
    body = {"cut": whole[:-6], "longer": whole + b"more", "other": b"{}"}[damage]
    status, answer = await post(market, body, Content_Encoding=packing)
    assert (status, answer["error"]["code"]) == (400, "damaged_body")
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("packing", ["br", "compress", "gzip, zstd", "x" * 300])
async def test_another_packing_is_refused_by_name(market: ScriptedMarket, packing: str) -> None:
    status, answer = await post(market, json.dumps(BODY).encode(), Content_Encoding=packing)
    assert (status, answer["error"]["code"]) == (415, "unknown_encoding")
    assert "zstd" in answer["error"]["message"]


async def test_a_zstandard_frame_that_wants_too_much_memory_is_refused(
    market: ScriptedMarket,
) -> None:
    packer = ZstdCompressor(options={CompressionParameter.window_log: WINDOW_BITS + 2})
    plain = json.dumps(BODY).encode()  # of a stream nobody knows the length, so the window counts
    body = packer.compress(plain, ZstdCompressor.FLUSH_BLOCK) + packer.flush()
    status, answer = await post(market, body, Content_Encoding="zstd")
    assert (status, answer["error"]["code"]) == (400, "damaged_body")


async def test_a_packed_request_sent_again_is_the_same_request(market: ScriptedMarket) -> None:
    plain = json.dumps(BODY).encode()
    first = await post(market, compress(plain), Content_Encoding="zstd", Idempotency_Key="one")
    again = await post(market, plain, Idempotency_Key="one")
    assert first == again
    assert len(market.mind.asked) == 1


async def test_the_headers_of_other_peoples_clients_change_nothing(market: ScriptedMarket) -> None:
    odd = {
        "OpenAI_Organization": "org-1",
        "OpenAI_Project": "proj-1",
        "OpenAI_Beta": "responses=v1",
        "X_Stainless_Lang": "python",
        "X_Stainless_Retry_Count": "2",
        "HTTP_Referer": "https://aider.chat",
        "X_Title": "Aider",
        "Editor_Version": "aider/0.86.2",
        "Copilot_Integration_Id": "vscode-chat",
        "api_key": "another key, as Azure names it",
        "User_Agent": "litellm/1.110.2",
        "Accept": "*/*",
        "Accept_Encoding": "gzip, deflate, br, zstd",
        "Expect": "100-continue",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    status, answer = await post(market, json.dumps(BODY).encode(), **odd)
    assert status == 200 and answer["choices"]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_the_type_of_a_body_is_json_however_it_is_written(
    market: ScriptedMarket, kind: str, status: int
) -> None:
    found, _ = await post(market, json.dumps(BODY).encode(), Content_Type=kind)
    assert found == status


async def test_the_sdk_may_pack_what_it_sends(market: ScriptedMarket) -> None:
    async def pack(request: httpx2.Request) -> None:
        packed = compress(request.content)
        request.stream = httpx2.ByteStream(packed)
        request.headers["Content-Encoding"] = "zstd"
        request.headers["Content-Length"] = str(len(packed))

    async with (
        openai.DefaultAsyncHttpxClient(event_hooks={"request": [pack]}) as http,
        market.sdk(http_client=http) as sdk,
    ):
        answer = await sdk.responses.create(model=MODEL, input="hi")
    assert answer.output_text == "You said: hi"
