"""A long JSON answer begins with white space, so that no proxy takes the connection for dead.

A JSON text may begin with white space, and every parser skips it. The first byte is sent when an
answer takes longer than a heartbeat after a worker has accepted the job. The status is 200 then. A
failure after that has OpenAI's error shape in the body and no status of its own. A failure before
it has its status as ever.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import hdrs, web

from piecework.client.gateway.formats.common import ApiError

BEAT: Final = b" "


async def answer_json(
    request: web.Request,
    work: Awaitable[Mapping[str, Any]],
    *,
    heartbeat_s: float,
    first_beat_s: float,
    headers: Mapping[str, str],
    as_api_error: Callable[[Exception], ApiError],
) -> web.StreamResponse:
    """Answer with what `work` returns, and with white space while it is not there.

    Args:
        request: What is answered.
        work: Makes the body. It is cancelled with this call.
        heartbeat_s: Seconds without a byte, at most.
        first_beat_s: Seconds before the first one. Until then a failure has a status of its own.
        headers: Of the answer, beside its type.
        as_api_error: Translates a failure that comes too late for a status.

    Raises:
        PieceworkError: as `work`, if nothing has been sent yet.
    """
    working = asyncio.ensure_future(work)
    try:
        if (await asyncio.wait({working}, timeout=first_beat_s))[0]:
            return web.json_response(await working, headers=headers)
        response = web.StreamResponse(headers={**headers, hdrs.CONTENT_TYPE: "application/json"})
        await response.prepare(request)
        await response.write(BEAT)
        while not (await asyncio.wait({working}, timeout=heartbeat_s))[0]:
            await response.write(BEAT)
        await response.write(_late(working, as_api_error))
        await response.write_eof()
        return response
    finally:
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


def _late(
    working: asyncio.Future[Mapping[str, Any]], as_api_error: Callable[[Exception], ApiError]
) -> bytes:
    """The body of an answer whose status has gone out."""
    try:
        body: Mapping[str, Any] = working.result()
    except Exception as error:  # noqa: BLE001  a fault of ours has OpenAI's shape too
        body = as_api_error(error).body()
    return json.dumps(body).encode()
