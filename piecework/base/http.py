"""HTTP requests with a bound on everything: time, bytes, redirects, depth of JSON.

Errors name the host and nothing else of the address. A path or a query may hold a key.
Proxies come from the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, in either case), except for
this machine itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, urljoin, urlsplit

import aiohttp

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework.base.packing import BadPacking, Unpacker
from piecework.base.text import one_line

MAX_REDIRECTS: Final = 5
MAX_ERROR_BODY_BYTES: Final = 64 * 1024
"""Read of an answer with an error status: enough for the reason that a server gives."""
_MAX_HOST_CHARACTERS: Final = 100
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}

Proxies = Callable[[], Mapping[str, str]]
Dated = Callable[[str, str], None]
"""Takes host[:port] and the Date header of an answer of any status."""


class HttpError(PieceworkError):
    """The root of what goes wrong between a request and its answer. `host` is host[:port]."""

    def __init__(self, host: str, message: str) -> None:
        super().__init__(message)
        self.host = host


class BadUrl(HttpError):
    """An address that is not of the form http://host/… or https://host/…."""


class HttpUnreachable(HttpError):
    """No connection, no TLS, no HTTP, or a connection that broke off."""


class HttpTimeout(HttpError):
    """The answer was not complete in time."""


class HttpTooLarge(HttpError):
    """The answer has more bytes than were asked for, as sent or unpacked."""


class HttpNotJson(HttpError):
    """The answer is not JSON, or is nested too deep."""


class HttpStatus(HttpError):
    """The server answered with a status that is not 2xx. `body` is the start of its answer."""

    def __init__(self, host: str, status: int, body: bytes, retry_after_s: float | None) -> None:
        super().__init__(host, f"{host} answered with HTTP {status}")
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one request may take. Times in seconds."""

    total_s: float
    connect_s: float
    max_bytes: int


class HttpReader:
    """A pool of connections, opened on first use in the running loop.

    Close it, or use `async with`.
    """

    def __init__(
        self,
        limits: HttpLimits,
        *,
        headers: Mapping[str, str] | None = None,
        proxies: Proxies = urllib.request.getproxies,
        dated: Dated | None = None,
    ) -> None:
        self._limits, self._dated = limits, dated
        # A server that packs its answer anyway is unpacked within the bound.
        self._headers = {"Accept-Encoding": "identity", **(headers or {})}
        self._proxies = proxies
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. The reader may be used again afterwards."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, *, headers: Mapping[str, str] | None = None) -> bytes:
        """Return the body of an answer with a 2xx status. Follows redirects.

        `headers` go to the host of `url` only, not to one that it redirects to.

        Raises:
            HttpError: one of its kinds says what went wrong.
        """
        return await self._bounded("GET", url, headers, None)

    async def get_json(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        """Return the JSON value of an answer with a 2xx status, as `get`.

        Raises:
            HttpError: one of its kinds says what went wrong.
        """
        return parse_json(host_of(url), await self.get(url, headers=headers))

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        """Send a body and return that of an answer with a 2xx status. A redirect is an error.

        Raises:
            HttpError: one of its kinds says what went wrong.
        """
        return await self._bounded("POST", url, headers, body)

    async def post_json(
        self, url: str, value: Any, *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Send a JSON value and return that of an answer with a 2xx status, as `post`.

        Raises:
            HttpError: one of its kinds says what went wrong.
        """
        given = {"Content-Type": "application/json", **(headers or {})}
        answer = await self.post(url, json.dumps(value).encode(), headers=given)
        return parse_json(host_of(url), answer)

    async def _bounded(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None
    ) -> bytes:
        host = _label(_checked(url))
        try:
            async with asyncio.timeout(self._limits.total_s):
                return await self._follow(method, url, dict(headers or {}), body)
        except TimeoutError:
            seconds = f"{self._limits.total_s:g} s"
            raise HttpTimeout(host, f"{host} did not answer within {seconds}") from None

    async def _follow(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> bytes:
        first = parts = _checked(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._ask(method, url, headers, body)
            if isinstance(answer, bytes):
                return answer
            before, (url, parts) = parts, _redirected(url, parts, answer)
            if _origin(parts) != _origin(before):
                headers = {}  # they may hold a key for the first host
        raise HttpUnreachable(_label(first), f"{_label(first)} redirects too many times")

    async def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> bytes | str:
        """The body of an answer, or the place that it redirects to."""
        parts = _checked(url)
        host = _label(parts)
        try:
            async with self._opened().request(
                method,
                url,
                data=body,
                headers={**self._headers, **headers},
                allow_redirects=False,
                proxy=proxy_for(url, self._proxies),
            ) as response:
                if self._dated is not None and "Date" in response.headers:
                    self._dated(host, response.headers["Date"])
                if method == "GET" and response.status in _REDIRECTS:
                    place = response.headers.get("Location")
                    if place:
                        return place
                if not 200 <= response.status < 300:
                    start = await _start_of(response)
                    raise HttpStatus(host, response.status, start, _retry_after(response))
                return await _whole(response, host, self._limits.max_bytes)
        except TimeoutError:
            seconds = f"{self._limits.connect_s:g} s"
            raise HttpTimeout(host, f"{host} took no connection within {seconds}") from None
        except aiohttp.InvalidURL:
            raise _bad_url(host) from None
        except BadPacking as error:
            raise HttpUnreachable(host, f"cannot read the answer of {host}: {error}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HttpUnreachable(host, f"cannot reach {host}: {_why(error)}") from None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session


def proxy_for(url: str, proxies: Proxies = urllib.request.getproxies) -> str | None:
    """Return the environment's proxy for an address. None: connect directly.

    aiohttp's own look-up would also send passwords of ~/.netrc.

    Raises:
        BadUrl: the address is not http:// or https://.
        HttpUnreachable: the environment names a proxy that cannot be used.
    """
    parts = _checked(url)
    host = parts.hostname or ""
    if _is_this_machine(host) or urllib.request.proxy_bypass(host):
        return None
    known = proxies()
    proxy = known.get(parts.scheme) or known.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        usable = _checked(proxy).scheme == "http"
    except BadUrl:
        usable = False
    if not usable:
        problem = "the proxy of the environment cannot be used: expected http://host:port"
        raise HttpUnreachable(_label(parts), problem)
    return proxy


def parse_json(host: str, body: bytes) -> Any:
    """Return the value of a JSON body that came from `host`.

    Raises:
        HttpNotJson: it is not JSON, or is nested too deep.
    """
    try:
        return loads(body)
    except (ValueError, RecursionError):
        raise HttpNotJson(host, f"{host} answered with something that is not JSON") from None


def host_of(url: str) -> str:
    """Return host[:port] of an address, as it may stand in a message or a log.

    Raises:
        BadUrl: it is not of the form http://host/… or https://host/….
    """
    return _label(_checked(url))


# --- addresses


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        # Reading the port checks it. urlsplit drops line breaks, which a server would not.
        known = parts.scheme in _PORTS and parts.hostname and parts.port != 0
        if known and url.isprintable() and not any(c in ' <>"\\' for c in url):
            return parts
    except ValueError:
        pass
    raise _bad_url("")


def _bad_url(host: str) -> BadUrl:
    form = "expected http://host:port/path or https://host/path"
    return BadUrl(host, f"an address is malformed{f' ({host})' if host else ''}: {form}")


def _redirected(url: str, before: SplitResult, place: str) -> tuple[str, SplitResult]:
    """Where an answer leads. From http to https is fine, never back, and no other scheme."""
    try:
        url = urljoin(url, place)
        after = _checked(url)
        if before.scheme == "http" or after.scheme == "https":
            return url, after
    except (BadUrl, ValueError):
        pass
    host = _label(before)
    raise HttpUnreachable(host, f"{host} redirects to an address that is not safe to follow")


def _label(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port and parts.port != _PORTS[parts.scheme] else ""
    return one_line(host, _MAX_HOST_CHARACTERS) + port


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


# --- answers


async def _whole(response: aiohttp.ClientResponse, host: str, limit: int) -> bytes:
    """The body, unpacked, at most `limit` bytes of it either way."""
    too_large = HttpTooLarge(host, f"{host} answered with more than {limit} bytes")
    if (response.content_length or 0) > limit:
        raise too_large
    unpack = Unpacker(response.headers.get("Content-Encoding", ""), limit)
    received, body = 0, bytearray()
    async for chunk in response.content.iter_any():
        received += len(chunk)
        body += unpack(chunk)
        if received > limit or len(body) > limit:
            raise too_large
    unpack.finish()
    return bytes(body)


async def _start_of(response: aiohttp.ClientResponse) -> bytes:
    """As much as is there of the body of an answer with an error."""
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ERROR_BODY_BYTES:
                break
    except aiohttp.ClientError:
        pass  # the status is what counts
    return bytes(body[:MAX_ERROR_BODY_BYTES])


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None


def _why(error: Exception) -> str:
    """A few words for a person, without the address."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy of the environment refused with HTTP {error.status}"
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return words
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        return os.strerror(number).lower() if number and number > 0 else "the connection failed"
    return "the connection broke off"


# In order: the first that fits is the most precise.
_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (aiohttp.ClientSSLError, "its certificate or TLS was refused"),
    (aiohttp.ClientProxyConnectionError, "the proxy of the environment does not answer"),
    (aiohttp.ClientConnectorDNSError, "the host name was not found"),
    (aiohttp.ClientResponseError, "it does not speak HTTP"),
    (ConnectionRefusedError, "the connection was refused"),
    (UnicodeError, "the host name is malformed"),
    (ValueError, "the request cannot be made"),
)
