"""Every answer is bounded, every failure is one line with the host only. Real sockets."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from piecework.base.http import (
    MAX_ERROR_BODY_BYTES,
    BadUrl,
    HttpError,
    HttpLimits,
    HttpNotJson,
    HttpReader,
    HttpStatus,
    HttpTimeout,
    HttpTooLarge,
    HttpUnreachable,
    host_of,
)

LIMITS = HttpLimits(total_s=10, connect_s=5, max_bytes=1000)
SHORT = HttpLimits(total_s=0.2, connect_s=5, max_bytes=1000)
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(behave: Peer) -> AsyncIterator[str]:
    """A server that does what `behave` says with each connection; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behave(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def answering(*parts: bytes) -> Peer:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()

    return behave


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def unsized(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def failure(behave: Peer, kind: type[HttpError], limits: HttpLimits = LIMITS) -> HttpError:
    """The error that a GET gives, after a look at its text."""
    async with peer(behave) as url, HttpReader(limits) as http:
        with pytest.raises(kind) as caught:
            await http.get_json(url.replace("//", "//user:password@") + "/v3/api-key?token=hidden")
        text = str(caught.value)
        assert url.removeprefix("http://") in text
        assert not any(secret in text for secret in ("password", "api-key", "hidden", "\n"))
        assert caught.value.__cause__ is None
        return caught.value


async def test_a_json_answer_is_read() -> None:
    async with peer(answering(whole(b'{"a": [1]}'))) as url, HttpReader(LIMITS) as http:
        assert await http.get_json(url) == {"a": [1]}


async def test_a_post_sends_json_and_reads_json() -> None:
    async def echo(request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/json"
        return web.Response(body=await request.read())

    async with application(echo) as url, HttpReader(LIMITS) as http:
        assert await http.post_json(f"{url}/x", {"é": [1, None]}) == {"é": [1, None]}


@asynccontextmanager
async def application(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_body_of_the_limit_passes_and_one_byte_more_does_not() -> None:
    async with peer(answering(unsized(b"x" * 1000))) as url, HttpReader(LIMITS) as http:
        assert await http.get(url) == b"x" * 1000
    await failure(answering(unsized(b"x" * 1001)), HttpTooLarge)


async def test_a_declared_length_is_refused_before_it_is_read() -> None:
    error = await failure(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"), HttpTooLarge
    )
    assert str(error).endswith("answered with more than 1000 bytes")


async def test_an_answer_without_an_end_is_cut_off() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 100)
            await writer.drain()

    await failure(endless, HttpTooLarge)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
async def test_a_packed_answer_is_unpacked_within_the_limit(packing: str) -> None:
    pack = gzip.compress if packing == "gzip" else zlib.compress
    header = f"Content-Encoding: {packing}"
    async with (
        peer(answering(whole(pack(b"[" + b"1," * 400 + b"1]"), header))) as url,
        HttpReader(LIMITS) as http,
    ):
        assert await http.get_json(url) == [1] * 401
    await failure(answering(whole(pack(b"x" * 1001), header)), HttpTooLarge)
    await failure(answering(whole(pack(b"\0" * 500_000), header)), HttpTooLarge)


@pytest.mark.parametrize(
    ("body", "packing"),
    [
        (b"not packed", "gzip"),
        (gzip.compress(b"{}", mtime=0)[:-5], "gzip"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip, gzip"),
        (b"{}", "br"),
    ],
)
async def test_a_packing_that_cannot_be_undone_is_one_line(body: bytes, packing: str) -> None:
    error = await failure(answering(whole(body, f"Content-Encoding: {packing}")), HttpUnreachable)
    assert "cannot read the answer" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"nan",
        b"[NaN]",
        b"[1e999]",
        b"[" * 500,
        b"[" * 400 + b"]" * 400,
        b"1" * 999 + b"x",
    ],
)
async def test_what_is_not_json_is_one_line(body: bytes) -> None:
    await failure(answering(whole(body)), HttpNotJson)


async def test_a_status_keeps_the_body_and_the_pause_for_the_caller() -> None:
    reply = whole(b'{"error": 1}', "Retry-After: 7", status="503 Go \x1b[2J away")
    error = await failure(answering(reply), HttpStatus)
    assert isinstance(error, HttpStatus)
    assert (error.status, error.body, error.retry_after_s) == (503, b'{"error": 1}', 7.0)
    assert str(error).endswith("answered with HTTP 503")


@pytest.mark.parametrize("pause", ["soon", "-1", "9999999999", "٣", "1.5"])
async def test_a_pause_that_is_no_number_of_seconds_is_left_out(pause: str) -> None:
    reply = unsized(b"", status="429 X").replace(
        b"\r\n\r\n", f"\r\nRetry-After: {pause}\r\n\r\n".encode()
    )
    error = await failure(answering(reply), HttpStatus)
    assert isinstance(error, HttpStatus) and error.retry_after_s is None


async def test_the_body_of_an_error_is_bounded() -> None:
    error = await failure(answering(unsized(b"x" * 1_000_000, status="500 X")), HttpStatus)
    assert isinstance(error, HttpStatus)
    assert error.body == b"x" * MAX_ERROR_BODY_BYTES


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say nothing until the other side leaves."""
    await reader.read()
    await reader.read(1)


async def hang_in_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")
    await hang(reader, writer)


@pytest.mark.parametrize("behave", [hang, hang_in_the_body])
async def test_silence_ends_at_the_total_time(behave: Peer) -> None:
    error = await failure(behave, HttpTimeout, SHORT)
    assert str(error).endswith("did not answer within 0.2 s")


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"SSH-2.0-OpenSSH\r\n",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12",),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000 + b"\r\n",),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",),
    ],
)
async def test_what_breaks_off_or_is_not_http_is_one_line(parts: tuple[bytes, ...]) -> None:
    await failure(answering(*parts), HttpUnreachable)


async def test_a_refused_connection_is_one_line() -> None:
    async with peer(answering()) as url:
        pass
    async with HttpReader(LIMITS) as http:
        with pytest.raises(
            HttpUnreachable, match=r"cannot reach 127.0.0.1:\d+: connection refused$"
        ):
            await http.get(url)


async def test_a_host_that_does_not_exist_is_one_line() -> None:
    async with HttpReader(LIMITS, proxies=dict) as http:
        with pytest.raises(HttpUnreachable, match=r"cannot reach no-such-host\.invalid: "):
            await http.get("http://no-such-host.invalid/key")


async def test_plain_http_behind_https_is_one_line() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(whole(b"{}", status="400 Bad Request"))

    async with peer(plain) as url, HttpReader(LIMITS) as http:
        with pytest.raises(HttpUnreachable, match="TLS"):
            await http.get(url.replace("http:", "https:"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host:80",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://[::1",
        "http://[zz]/",
        "http://key@host:99999",
        "http://host:0",
        "http://host:port",
        "http://key@ho st",
        "http://host/\npath",
        "http://host/\u202e",
        "http://host\\@other",
    ],
)
async def test_a_malformed_address_is_refused_without_showing_it(url: str) -> None:
    async with HttpReader(LIMITS) as http:
        with pytest.raises(BadUrl) as caught:
            await http.get(url)
    assert "key" not in str(caught.value)
    assert "expected http://host:port/path" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:key@Index.example/path?key", "index.example"),
        ("https://index.example:443", "index.example"),
        ("http://index.example:8080", "index.example:8080"),
        ("http://[2001:db8::1]:81/", "[2001:db8::1]:81"),
    ],
)
def test_the_host_of_an_address_is_all_that_is_shown(url: str, host: str) -> None:
    assert host_of(url) == host


async def test_a_redirect_is_followed_and_its_headers_stay_with_their_host() -> None:
    seen: list[tuple[str, str | None]] = []

    async def other(request: web.Request) -> web.Response:
        seen.append((request.path, request.headers.get("Authorization")))
        return web.json_response("there")

    async with application(other) as elsewhere:

        async def first(request: web.Request) -> web.Response:
            seen.append((request.path, request.headers.get("Authorization")))
            place = "/b" if request.path == "/a" else f"{elsewhere}/c"
            raise web.HTTPFound(place)

        async with application(first) as url, HttpReader(LIMITS) as http:
            answer = await http.get_json(f"{url}/a", headers={"Authorization": "key"})
    assert answer == "there"
    assert seen == [("/a", "key"), ("/b", "key"), ("/c", None)]


@pytest.mark.parametrize(
    "place",
    ["file:///etc/passwd", "ftp://host/", "javascript:1", "http://[", "http://h:99999"],
)
async def test_a_redirect_to_another_scheme_is_refused(place: str) -> None:
    reply = whole(b"", f"Location: {place}", status="302 Found")
    error = await failure(answering(reply), HttpUnreachable)
    assert "not safe to follow" in str(error)


async def test_a_circle_of_redirects_ends() -> None:
    error = await failure(
        answering(whole(b"", "Location: /v3/api-key", status="302 Found")), HttpUnreachable
    )
    assert "redirects too many times" in str(error)


async def test_a_post_is_not_redirected() -> None:
    reply = whole(b"", "Location: /elsewhere", status="307 X")
    async with peer(answering(reply)) as url, HttpReader(LIMITS) as http:
        with pytest.raises(HttpStatus, match="HTTP 307"):
            await http.post_json(url, {})


async def test_a_proxy_of_the_environment_is_used() -> None:
    asked: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(whole(b"1"))

    async with peer(proxy) as url:
        address = url.replace("//", "//user:pass@")
        async with HttpReader(LIMITS, proxies=lambda: {"http": address}) as http:
            assert await http.get_json("http://index.invalid/v1") == 1
    assert asked[0].startswith(b"GET http://index.invalid/v1 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic dXNlcjpwYXNz" in asked[0]


async def test_this_machine_is_asked_without_the_proxy() -> None:
    def proxies() -> dict[str, str]:
        return {"http": "http://no-proxy.invalid:1", "all": "http://no-proxy.invalid:1"}

    async with peer(answering(whole(b"1"))) as url, HttpReader(LIMITS, proxies=proxies) as http:
        assert await http.get_json(url) == 1
        assert await http.get_json(url.replace("127.0.0.1", "localhost")) == 1


@pytest.mark.parametrize(
    "proxy", ["socks5://key@host:1080", "http://key@host:99999", "https://h", "http://"]
)
async def test_a_proxy_that_cannot_be_used_is_one_line(proxy: str) -> None:
    async with HttpReader(LIMITS, proxies=lambda: {"all": proxy}) as http:
        with pytest.raises(HttpUnreachable) as caught:
            await http.get("http://index.invalid")
    assert "proxy of the environment cannot be used" in str(caught.value)
    assert "key" not in str(caught.value)


async def test_a_proxy_that_does_not_answer_is_told_apart() -> None:
    async with peer(answering()) as url:
        pass
    async with HttpReader(LIMITS, proxies=lambda: {"http": url}) as http:
        with pytest.raises(HttpUnreachable, match="proxy of the environment does not answer"):
            await http.get("http://index.invalid")


async def test_a_reader_may_be_used_after_it_was_closed() -> None:
    async with peer(answering(whole(b"1"))) as url:
        http = HttpReader(LIMITS)
        for _ in range(2):
            assert await http.get_json(url) == 1
            await http.close()
