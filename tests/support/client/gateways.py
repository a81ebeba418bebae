"""A gateway in this process with a scripted worker behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from aiohttp import web

from piecework.client.gateway.server import Gateway, GatewayOptions
from piecework.client.sdk import PieceworkClient
from tests.support.chain.fake_chain import FakeChain
from tests.support.client.client_side import MONEY, PAYER, FakeClock, open_client
from tests.support.client.scripted_worker import Mind, ScriptedWorker

KEY = "a-key-for-tests"
MODEL = "tale-1"


@dataclass
class ScriptedMarket:
    """A running gateway and everything behind it."""

    url: str
    worker: ScriptedWorker
    client: PieceworkClient
    gateway: Gateway

    @property
    def mind(self) -> Mind:
        """What the worker says."""
        return self.worker.mind

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        """OpenAI's own client."""
        return openai.AsyncOpenAI(base_url=self.url + "/v1", api_key=KEY, max_retries=0, **options)


@asynccontextmanager
async def serving(client: PieceworkClient, **options: Any) -> AsyncIterator[tuple[Gateway, str]]:
    """Start a gateway on a free port."""
    settings: dict[str, Any] = {"api_key": KEY, "max_concurrent": 8, "heartbeat_s": 5.0, **options}
    gateway = Gateway(client, GatewayOptions(**settings))
    app = gateway.application()
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield gateway, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def scripted_market(
    folder: Path, mind: Mind | None = None, **options: Any
) -> AsyncIterator[ScriptedMarket]:
    """A gateway whose only worker says what the mind says."""
    chain, clock = FakeChain(), FakeClock()
    chain.deposit(PAYER.address, MONEY * 100)
    worker = ScriptedWorker(chain, clock, mind=mind)
    async with (
        worker,
        open_client(folder, chain, clock) as client,
        serving(client, **options) as (gateway, url),
    ):
        yield ScriptedMarket(url, worker, client, gateway)
