"""The health check of a container: what it asks, what counts, and that no proxy is in its way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from piecework.health import healthy


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """One that is well at /health, ill at /ready, and a chain node at /rpc."""

    async def rpc(request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": "0x7a69"})

    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601}})

    async def well(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def ill(request: web.Request) -> web.Response:
        return web.Response(status=503)

    app = web.Application()
    app.add_routes([web.get("/health", well), web.get("/ready", ill)])
    app.add_routes([web.post("/rpc", rpc), web.post("/refuses", refuse)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_an_answer_counts_and_nothing_else_does() -> None:
    async with server() as url:
        assert await healthy("http", f"{url}/health")
        assert not await healthy("http", f"{url}/ready")
        assert await healthy("rpc", f"{url}/rpc")
        assert not await healthy("rpc", f"{url}/refuses")
        assert not await healthy("rpc", f"{url}/health")
    assert not await healthy("http", f"{url}/health")
    assert not await healthy("http", "no address")


async def test_this_machine_is_asked_without_the_proxy_that_docker_hands_to_a_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    async with server() as url:
        assert await healthy("http", f"{url}/health")
        assert await healthy("rpc", f"{url}/rpc")
