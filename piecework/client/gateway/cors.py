"""Which web pages may use the gateway: those of origins that the settings name, letter by letter.

There is no wildcard. Any page could then spend the money of whoever runs a gateway without a key,
and could try keys on one that has some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs, web

from piecework.client.gateway.formats.common import ApiError

PREFLIGHT_LIFETIME_S: Final = 600
MAX_REQUESTED_HEADERS: Final = 2048
"""Characters of the list that a browser asks for. OpenAI's JavaScript SDK sends a dozen names."""
EXPOSED: Final = "Retry-After, X-Should-Retry"
METHODS: Final = "GET, POST, OPTIONS"


class Origins:
    """The origins that are named, and the headers that tell a browser so."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    def allows(self, origin: str) -> bool:
        """Say whether pages of an origin may use the gateway."""
        return origin in self._allowed

    def is_preflight(self, request: web.Request) -> bool:
        """Say whether a browser asks before it sends the request itself. It shows no key then."""
        return (
            request.method == hdrs.METH_OPTIONS
            and hdrs.ORIGIN in request.headers
            and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        )

    def preflight(self, request: web.Request) -> web.Response:
        """Answer a browser that asks.

        Raises:
            ApiError: pages of this origin may not use the gateway (403).
        """
        if not self.allows(request.headers[hdrs.ORIGIN]):
            raise ApiError(
                403,
                "permission_error",
                "pages of this origin may not use the gateway",
                code="origin_not_allowed",
            )
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        headers: dict[str, str] = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked[:MAX_REQUESTED_HEADERS],
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_LIFETIME_S),
        }
        if "Access-Control-Request-Private-Network" in request.headers:
            headers["Access-Control-Allow-Private-Network"] = "true"
        return web.Response(status=204, headers=headers)

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Put what every answer carries into its headers, before they are sent."""
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        # nginx would hold a stream back otherwise, heartbeats too.
        response.headers["X-Accel-Buffering"] = "no"
        if self._allowed:
            response.headers.add(hdrs.VARY, "Origin")
        origin = request.headers.get(hdrs.ORIGIN, "")
        if self.allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED
