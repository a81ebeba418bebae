"""A JSON-RPC proxy that misbehaves as told, method by method, in front of any chain.

It speaks HTTP on loopback, in this process. Behind it is an `Upstream`: the embedded chain's method
table, or the address of a node (`over_http`). Nothing waits for time to pass: what hangs, hangs
until the caller gives up.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from piecework.chain.limits import MAX_RPC_RESPONSE_BYTES

Upstream = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Kind(enum.Enum):
    """How a node fails."""

    HANGS = "takes the question and says nothing"
    DROPS = "closes the connection"
    HTTP_500 = "answers HTTP 500"
    HTTP_429 = "answers HTTP 429"
    LIMITED = "answers a rate limit in HTTP 200"
    MISSING = "does not know the method"
    REFUSES = "answers an error of its own"
    GARBAGE = "answers something that is not JSON"
    NEITHER = "answers with neither result nor error"
    NULL = "answers null"
    WRONG_TYPE = "answers a value of another type"
    STALE = "repeats its first answer for ever"
    LIES = "answers another value"
    HUGE = "answers more than is read"
    WRONG_ID = "answers another question"
    TRICKLES = "answers byte by byte"


_ERRORS: Mapping[Kind, dict[str, Any]] = {
    Kind.LIMITED: {"code": -32005, "message": "daily request count exceeded"},
    Kind.MISSING: {"code": -32601, "message": "the method does not exist/is not available"},
    Kind.REFUSES: {"code": -32000, "message": "database is closed"},
}
_MADE_UP_HASH = "0x" + "ab" * 32
_RECEIPT = {
    "blockNumber": "0x1",
    "blockHash": _MADE_UP_HASH,
    "gasUsed": "0x1",
    "effectiveGasPrice": "0x1",
    "status": "0x1",
    "logs": [],
}


def _later(block: Any) -> Any:
    return {**block, "timestamp": hex(int(block["timestamp"], 16) + 3600)}


LIES: Mapping[str, Callable[[Any], Any]] = {
    "eth_chainId": lambda _: "0x1",
    "eth_blockNumber": lambda true: hex(int(true, 16) + 1000),
    "eth_getCode": lambda _: "0x6001",
    "eth_call": lambda true: "0x" + "77" * (len(true) // 2 - 1),
    "eth_getBlockByNumber": _later,
    "eth_getLogs": lambda true: [] if true else [_MADE_UP_HASH],
    "eth_getBalance": lambda _: "0x1",
    "eth_maxPriorityFeePerGas": lambda _: hex(10**18),
    "eth_getTransactionCount": lambda _: "0x0",
    "eth_estimateGas": lambda _: "0x1",
    "eth_getTransactionReceipt": lambda _: _RECEIPT,
    "eth_getTransactionByHash": lambda _: {"blockNumber": None},
    "eth_sendRawTransaction": lambda _: _MADE_UP_HASH,
}
"""What a lying node makes of the truth."""
REVERTED: Mapping[str, Any] = {"code": 3, "message": "execution reverted", "data": "0x"}
"""What a lie may be in place of an answer: that the contract refuses."""
_ABSORBED = frozenset({Kind.LIES, Kind.STALE})
"""A raw transaction under these never reaches the chain, whatever the node says."""


class NodeProxy:
    """The proxy. `faults` may change at any time."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._first: dict[str, dict[str, Any]] = {}
        self._asked: list[str] = []
        self._stopped = asyncio.Event()
        self.faults: dict[str, Kind] = {}
        """How each method fails. The others work. "*" stands for all."""
        self.lies: dict[str, Callable[[Any], Any]] = dict(LIES)
        """What `Kind.LIES` makes of the truth. `REVERTED` is an error."""
        self.lies_about = ""
        """A parameter that a question must have to be lied to. Empty: all are."""
        self.url = ""

    @property
    def asked(self) -> list[str]:
        """The methods of every request, in order."""
        return self._asked

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[NodeProxy]:
        """Serve on a free port of loopback."""
        app = web.Application(client_max_size=2**22)
        app.router.add_post("/", self._serve)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            self._stopped.set()
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        method = asked["method"]
        self._asked.append(method)
        kind = self.faults.get(method) or self.faults.get("*")
        if kind is Kind.HANGS:
            await self._stopped.wait()
        if kind is Kind.DROPS and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if kind in (Kind.HTTP_500, Kind.HTTP_429):
            return web.Response(status=int(kind.name.removeprefix("HTTP_")), text="later")
        if kind is Kind.GARBAGE:
            return web.Response(text="<html>502 Bad Gateway</html>")
        if kind is Kind.HUGE:
            return await self._huge(request)
        answer = await self._answer(asked, kind)
        return await self._trickled(request, answer) if kind is Kind.TRICKLES else _json(answer)

    async def _answer(self, asked: dict[str, Any], kind: Kind | None) -> dict[str, Any]:
        frame = {"jsonrpc": "2.0", "id": asked["id"]}
        if kind is not None and kind in _ERRORS:
            return {**frame, "error": _ERRORS[kind]}
        if kind is Kind.NEITHER:
            return frame
        if kind is Kind.NULL:
            return {**frame, "result": None}
        if kind is Kind.WRONG_TYPE:
            return {**frame, "result": {"surprise": True}}
        absorbed = kind in _ABSORBED and asked["method"] == "eth_sendRawTransaction"
        true = {**frame, "result": _MADE_UP_HASH} if absorbed else await self._upstream(asked)
        if kind is Kind.WRONG_ID:
            return {**true, "id": asked["id"] + 1}
        asked_for = not self.lies_about or self.lies_about in asked.get("params", ())
        if kind is Kind.LIES and "result" in true and asked_for:
            lie = self.lies[asked["method"]](true["result"])
            return {**frame, "error": lie} if lie is REVERTED else {**true, "result": lie}
        return self._remembered(asked, true, stale=kind is Kind.STALE)

    def _remembered(
        self, asked: dict[str, Any], true: dict[str, Any], *, stale: bool
    ) -> dict[str, Any]:
        """The first answer to this question if the node is stale. It is kept from the start."""
        question = json.dumps([asked["method"], asked.get("params")])
        first = self._first.setdefault(question, true)
        return {**first, "id": asked["id"]} if stale else true

    @staticmethod
    async def _huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(MAX_RPC_RESPONSE_BYTES + 1)})
        await response.prepare(request)
        response.force_close()
        return response

    @staticmethod
    async def _trickled(request: web.Request, answer: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = json.dumps(answer).encode()
        for start in range(0, len(text), max(1, len(text) // 50)):
            await response.write(text[start : start + max(1, len(text) // 50)])
        await response.write_eof()
        return response


def _json(answer: dict[str, Any]) -> web.Response:
    return web.json_response(answer)


@asynccontextmanager
async def over_http(url: str) -> AsyncIterator[Upstream]:
    """The node at an address as an upstream."""
    async with aiohttp.ClientSession() as session:

        async def ask(asked: dict[str, Any]) -> dict[str, Any]:
            async with session.post(url, json=asked) as response:
                answer: dict[str, Any] = await response.json()
                return answer

        yield ask
