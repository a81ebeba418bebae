"""The embedded chain: `Evm` behind JSON-RPC on loopback, in this process. For the demo and for
tests.

py-evm is slow and synchronous (4 ms of CPU time a claim), so it lives in one worker thread. That
thread is also the lock around it. Nothing is kept when it stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from piecework.base.jsons import loads
from piecework.chain.dev.faucet import EMBEDDED_FAUCET_KEY
from piecework.chain.errors import ChainError
from piecework.chain.limits import (
    EMBEDDED_CHAIN_ID,
    MAX_EMBEDDED_WAITING_REQUESTS,
    MAX_RPC_BATCH,
    MAX_RPC_REQUEST_BYTES,
)
from piecework_protocol.signing import LocalSigner


class EmbeddedChain:
    """One chain. `start` it, use `url`, `stop` it; or use it as an async context manager on a free
    port."""

    chain_id = EMBEDDED_CHAIN_ID

    def __init__(self, now: Callable[[], int] = lambda: int(time.time())) -> None:
        self._now = now
        self._runner: web.AppRunner | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._methods: Any = None
        self._waiting = 0
        self.url = ""

    @property
    def faucet(self) -> LocalSigner:
        """The account that holds everything at genesis: a published test key."""
        return LocalSigner(EMBEDDED_FAUCET_KEY)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Make the genesis block and serve; port 0 picks a free one. Returns the address to connect
        to."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-chain")
        self._methods = await asyncio.get_running_loop().run_in_executor(
            self._worker, self._genesis
        )
        app = web.Application(client_max_size=MAX_RPC_REQUEST_BYTES)
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise ChainError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        bound = self._runner.addresses[0]
        self.url = f"http://{bound[0]}:{bound[1]}"
        return self.url

    async def ended(self) -> None:
        """Never returns: the chain lives in this process and ends with `stop`."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop serving; the chain is gone. Safe to call twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None

    def _genesis(self) -> Any:
        # py-evm takes 0.6 s of CPU time to import: only a process that runs a chain pays for it.
        from piecework.chain.dev.evm import Evm
        from piecework.chain.dev.evm_rpc import Methods

        return Methods(Evm(self.faucet.address, self._now))

    async def _serve(self, request: web.Request) -> web.Response:
        if self._waiting >= MAX_EMBEDDED_WAITING_REQUESTS:
            return web.json_response({"error": "too many requests are waiting"}, status=503)
        try:
            body = loads(await request.read())
        except ValueError:
            error = {"code": -32700, "message": "not JSON"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": error})
        if isinstance(body, list) and not 0 < len(body) <= MAX_RPC_BATCH:
            error = {"code": -32600, "message": f"a batch holds 1 to {MAX_RPC_BATCH} requests"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": error})
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return web.json_response(await loop.run_in_executor(self._worker, self._answer, body))
        finally:
            self._waiting -= 1

    def _answer(self, body: Any) -> Any:
        if isinstance(body, list):
            return [self._methods.answer(request) for request in body]
        return self._methods.answer(body)
