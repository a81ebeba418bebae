"""JSON bombs over real sockets, at the recursion limit that importing web3 leaves behind.

Without `piecework.base.jsons` the interpreter's own parser overruns the C stack and this process
ends.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.network.indexes import IndexReader
from piecework.market.server import IndexServer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.index_pages import parse_page
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import EXPLORER, FakeChain
from tests.support.client.client_side import FakeClock, open_client
from tests.support.market.databases import an_offer_store
from tests.support.market.offers import offer, operator, receiver

LIMIT_OF_PY_ECC = 100_000
BOMBS = [b"[" * 200_000, b'{"a":' * 40_000, b'{"messages":' + b"[" * 200_000]
Http = TestClient[Any, Any]


@pytest.fixture(autouse=True)
def no_recursion_limit_to_speak_of() -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(LIMIT_OF_PY_ECC)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Http]:
    options = GatewayOptions(api_key=None, max_concurrent=4, heartbeat_s=5.0)
    async with open_client(tmp_path, FakeChain(), FakeClock()) as client:
        server = TestServer(Gateway(client, options).application())
        async with TestClient(server) as http:
            yield http


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[Http]:
    chain = FakeChain()
    for name in ("worker", "other"):
        chain.register(operator(name).address, receiver(name))
    store = await an_offer_store(tmp_path / "market.db", chain.domain)
    market = IndexServer(store, chain, EXPLORER, clock=FakeClock())
    async with TestClient(TestServer(market.application())) as http:
        yield http


async def chat(
    http: Http, body: bytes, content_type: str = "application/json"
) -> aiohttp.ClientResponse:
    return await http.post(
        "/v1/chat/completions", data=body, headers={"Content-Type": content_type}
    )


@pytest.mark.parametrize("bomb", BOMBS, ids=["lists", "objects", "messages"])
async def test_a_body_nested_without_end_is_a_bad_request_to_the_gateway(
    gateway: Http, bomb: bytes
) -> None:
    for _ in range(3):
        response = await chat(gateway, bomb)
        assert response.status == 400
        assert (await response.json())["error"]["message"] == "the body is not JSON"
    assert (await gateway.get("/health")).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"any","messages":[{"role":"user","content":"x"}],"temperature":1'
        + b"0" * 400
        + b"}",
        b'{"model":"any","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"model":"any","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"any","messages":[{"role":"user","content":"x"}],"seed":1' + b"0" * 5000 + b"}",
        b'{"model":"any","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"any","messages":[{"role":"\\ud800","content":"x"}]}',
        b'{"\\ud800":1,"model":"any","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"any","messages":[{"role":[[]],"content":{}}]}',
        "[]".encode("utf-16"),
        b"\xff",
        b"",
    ],
    ids=[
        "huge",
        "inf",
        "nan",
        "digits",
        "lone",
        "lone role",
        "lone name",
        "types",
        "utf-16",
        "byte",
        "none",
    ],
)
async def test_hostile_values_are_bad_requests_to_the_gateway(gateway: Http, body: bytes) -> None:
    response = await chat(gateway, body)
    assert response.status == 400, await response.text()


async def test_the_gateway_reads_utf8_whatever_the_header_says(gateway: Http) -> None:
    response = await chat(gateway, b"[" * 200_000, "application/json; charset=no-such-encoding")
    assert response.status == 400
    assert (await gateway.get("/health")).status == 200


@pytest.mark.parametrize("bomb", BOMBS, ids=["lists", "objects", "messages"])
async def test_a_json_bomb_is_no_offer_to_the_index(index: Http, bomb: bytes) -> None:
    response = await index.post(
        "/v1/offers", data=bomb, headers={"Content-Type": "application/json"}
    )
    assert response.status == 413
    response = await index.post("/v1/offers", data=bomb[:60_000])
    assert response.status == 400
    assert (await index.get("/health")).status == 200


@pytest.mark.parametrize(
    "details",
    ["[" * 8000, '{"a":' * 1600, '{"a":' + "[" * 60 + "]" * 60 + "}", '{"a": 1e999}'],
)
async def test_one_workers_details_cannot_spoil_the_page_for_everybody(
    index: Http, details: str
) -> None:
    assert (await index.post("/v1/offers", data=encode_offer(offer(details=details)))).status == 201
    assert (await index.post("/v1/offers", data=encode_offer(offer("other")))).status == 201
    response = await index.get("/v1/offers")
    body = await response.read()
    assert response.status == 200
    assert len(parse_page(body, 500)[0]) == 2
    assert [row["details"] for row in json.loads(body)["offers"]].count({}) >= 1
    assert (await index.get("/")).status == 200


async def test_an_index_that_answers_without_end_is_one_line_of_trouble() -> None:
    async def bomb(_: web.Request) -> web.Response:
        return web.Response(body=BOMBS[0], content_type="application/json")

    app = web.Application()
    app.router.add_get("/v1/offers", bomb)
    async with TestServer(app) as server:
        reader = IndexReader((index := str(server.make_url("")),), FakeClock())
        with pytest.raises(MalformedInput, match="list of offers"):
            await reader.read(index, None)
        assert "asked again in 5 s" in (reader.rests(index) or "")
        await reader.close()
    with pytest.raises(MalformedInput):
        parse_page(b'{"offers":' * 50_000, 500)
