"""The way to the chain as a process of its own: `python -m tests.kills.way PORT TARGET`.

It passes JSON-RPC requests on as they are. To kill it is to cut everybody off from the chain.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import ClientError, ClientSession, web

MAX_BYTES = 64 * 1024 * 1024


async def serve(port: int, target: str) -> None:
    """Pass requests on until the process ends."""
    async with ClientSession() as http:

        async def handle(request: web.Request) -> web.Response:
            headers = {"Content-Type": "application/json"}
            try:
                async with http.post(target, data=await request.read(), headers=headers) as answer:
                    body, status = await answer.read(), answer.status
            except ClientError:
                return web.Response(status=502)
            return web.Response(body=body, status=status, content_type="application/json")

        app = web.Application(client_max_size=MAX_BYTES)
        app.router.add_post("/", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("{}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2]))
