"""Who may ask the gateway: callers with an API key, or this machine alone.

Without any key the gateway answers to this machine, and only to requests that come straight from
it. A request that a proxy passed on, or that a web page of another origin sends, needs a key. From
the first key on, every request needs one, also when all keys are revoked.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from typing import Final

from aiohttp import hdrs, web

from piecework.base.clock import Clock
from piecework.client.gateway.cors import Origins
from piecework.client.gateway.formats.common import ApiError
from piecework.client.journal.api_keys import ApiKeys
from piecework_protocol.types import Timestamp

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
MAX_KEY_CHARACTERS: Final = 256
PREFIX: Final = "pw-"
"""Of every key, so that a person and a secret scanner know it."""
FORWARDED: Final = ("forwarded", "via", "x-real-ip")
"""Headers that proxies add, beside those that begin with "X-Forwarded-"."""
BUDGET: Final = web.RequestKey("budget", str)
"""The name of the API key that a request came with, or "" if it has none of its own."""


def new_key() -> str:
    """Draw a key. It is shown once."""
    return PREFIX + secrets.token_urlsafe(32)


class Access:
    """Decides who may ask."""

    def __init__(self, keys: ApiKeys, api_key: str | None, origins: Origins, clock: Clock) -> None:
        """`api_key` is a key without a budget of its own, out of the settings."""
        self._keys, self._api_key, self._origins, self._clock = keys, api_key, origins, clock
        self._needs_key = api_key is not None

    async def admit(self, request: web.Request) -> str:
        """Return the budget that a request spends from.

        Raises:
            ApiError: 401 or 403.
        """
        if not await self._is_key_needed():
            self._admit_from_here(request)
            return ""
        scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        given = given.strip()
        if scheme.lower() == "bearer" and 0 < len(given) <= MAX_KEY_CHARACTERS:
            if self._api_key is not None and _same(given, self._api_key):
                return ""
            now = Timestamp(int(self._clock.wall()))
            key = await asyncio.to_thread(self._keys.find, given, now)
            if key is not None:
                return key.name
        raise ApiError(
            401, "authentication_error", "a valid API key is needed", code="invalid_api_key"
        )

    async def _is_key_needed(self) -> bool:
        """Whether there is a key, or was one. That never changes back."""
        self._needs_key = self._needs_key or await asyncio.to_thread(self._keys.exist)
        return self._needs_key

    def _admit_from_here(self, request: web.Request) -> None:
        if host_name(request.host) not in LOOPBACK_HOSTS:
            raise _forbidden("this gateway answers to localhost only", "localhost_only")
        for name in request.headers:
            if name.lower() in FORWARDED or name.lower().startswith("x-forwarded-"):
                raise _forbidden(
                    f"the header {name} says that a proxy stands in front of the gateway. Then "
                    "callers need an API key: piecework gateway keys add NAME",
                    "key_needed_behind_proxy",
                )
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self._origins.allows(origin):
            raise _forbidden("pages of this origin may not use the gateway", "origin_not_allowed")


def host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(
        given.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape")
    )


def _forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, "permission_error", message, code=code)
