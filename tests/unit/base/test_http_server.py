"""Strangers that are silent, slow or many, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from aiohttp import ClientSession, web

from piecework.base.clock import SystemClock
from piecework.base.connections import (
    ConnectionLimits,
    ConnectionTable,
    Networks,
    Refused,
    parse_networks,
)
from piecework.base.http_server import BodyReader, BodyRefused, HttpServer, HttpTimes
from piecework.base.listener import (
    AcceptedConnection,
    CannotListen,
    Listener,
    bind,
    connections_that_fit,
)
from piecework.base.rates import Rate
from tests.support.network.http_attackers import RawConnection
from tests.support.waiting import until

SHORT = HttpTimes(request_s=0.1, keepalive_s=0.2, body_s=0.1, stall_s=0.1)
PATIENT = HttpTimes()
LARGE_ANSWER = 64 * 2**20
MAX_BODY = 1 << 20


class Site:
    """A small application behind the real server."""

    def __init__(
        self,
        limits: ConnectionLimits,
        times: HttpTimes,
        in_flight: int,
        deaf: Rate | None = None,
    ) -> None:
        self.refused: Counter[Refused] = Counter()
        self.bodies = BodyReader(max_bytes=MAX_BODY, in_flight=in_flight, times=times)
        app = web.Application()
        app.router.add_post("/", self._echo)
        app.router.add_get("/", self._hello)
        app.router.add_get("/large", self._large)
        app.router.add_get("/later", self._later)
        self.server = HttpServer(
            app, limits, on_refused=lambda why: self.refused.update([why]), times=times, deaf=deaf
        )
        self.port = 0

    async def _echo(self, request: web.Request) -> web.Response:
        try:
            return web.Response(text=str(len(await self.bodies.read(request))))
        except BodyRefused as refused:
            return web.Response(status=refused.status, text=refused.code)

    async def _hello(self, _: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def _later(self, _: web.Request) -> web.Response:
        return web.Response(status=429, text="later")

    async def _large(self, _: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE_ANSWER))

    async def answers(self) -> bool:
        async with ClientSession() as http, http.get(f"http://127.0.0.1:{self.port}/") as answer:
            return await answer.text() == "hello"


@asynccontextmanager
async def site(
    times: HttpTimes = PATIENT,
    *,
    total: int = 64,
    per_address: int = 64,
    in_flight: int = 8 * MAX_BODY,
    deaf: Rate | None = None,
    trusted: Networks = (),
) -> AsyncIterator[Site]:
    limits = ConnectionLimits(total, per_address, opened_burst=1000, trusted=trusted)
    made = Site(limits, times, in_flight, deaf)
    made.port = (await made.server.start("127.0.0.1", 0)).port
    try:
        yield made
    finally:
        await made.server.stop()


@pytest.mark.parametrize(
    "words",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n"],
    ids=["silent", "half a request line", "headers without end"],
)
async def test_a_connection_that_does_not_ask_is_closed(words: bytes) -> None:
    async with site(SHORT) as made, await RawConnection.open(made.port) as held:
        await held.send(words)
        assert await held.is_closed()
        assert await made.answers()


async def test_a_connection_that_asked_is_closed_when_it_falls_silent() -> None:
    async with site(SHORT) as made, await RawConnection.open(made.port) as held:
        await held.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await held.rest()).endswith(b"hello")


async def test_a_second_request_that_never_ends_is_closed_too() -> None:
    async with site(SHORT) as made, await RawConnection.open(made.port) as held:
        await held.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await held.reader.readuntil(b"hello")
        await held.send(b"GET / HTTP/1.1\r\nX:")
        assert await held.is_closed()


async def test_one_address_cannot_take_every_connection() -> None:
    async with site(per_address=8, total=16) as made:
        held = [await RawConnection.open(made.port, "127.0.0.2") for _ in range(40)]
        await until(lambda: made.refused[Refused.ADDRESS] == 32)
        assert await made.answers()
        for connection in held:
            await connection.close()


async def test_many_addresses_together_leave_room_for_the_next_one() -> None:
    async with site(per_address=8, total=16) as made:
        held = [await RawConnection.open(made.port, f"127.0.0.{2 + n % 2}") for n in range(16)]
        await until(lambda: len(made.server.table) == 16)
        assert await made.answers()
        for connection in held:
            await connection.close()


async def test_a_silent_connection_ends_with_the_server() -> None:
    async with site() as made:
        held = await RawConnection.open(made.port)
        await until(lambda: len(made.server.table) == 1)
    assert await held.is_closed()
    await held.close()


LATER = b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"
"""It is answered with 429."""


async def test_who_does_not_come_back_later_waits_for_each_answer_and_nobody_else() -> None:
    async with (
        site(HttpTimes(late_s=3600), deaf=Rate(0.001, 3)) as made,
        await RawConnection.open(made.port, "127.0.0.2") as held,
        await RawConnection.open(made.port, "127.0.0.2") as other,
    ):
        for _ in range(3):
            await held.send(LATER)
            await held.reader.readuntil(b"later")
        await held.send(LATER)
        await other.send(LATER)
        assert await made.answers()
        for waiting in (held, other):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await waiting.reader.read(1)


async def test_an_answer_that_waits_is_idle_and_makes_room() -> None:
    async with site(HttpTimes(late_s=3600), deaf=Rate(0.001, 1), per_address=4, total=4) as made:
        held = [await RawConnection.open(made.port, "127.0.0.2") for _ in range(4)]
        for connection in held:
            await connection.send(LATER)
        await held[0].reader.readuntil(b"later")
        await until(lambda: len(made.server.table) == 4)
        assert await made.answers(), "one of them was closed for it"
        for connection in held:
            await connection.close()


async def test_a_late_answer_comes() -> None:
    async with (
        site(HttpTimes(late_s=0.05), deaf=Rate(0.001, 1)) as made,
        await RawConnection.open(made.port) as held,
    ):
        for _ in range(3):
            await held.send(LATER)
            await held.reader.readuntil(b"later")


@pytest.mark.parametrize(
    ("deaf", "trusted"), [(None, ()), (Rate(0.001, 1), parse_networks(["127.0.0.2"]))]
)
async def test_a_relay_and_a_server_of_one_owner_are_answered_at_once(
    deaf: Rate | None, trusted: Networks
) -> None:
    async with (
        site(HttpTimes(late_s=3600), deaf=deaf, trusted=trusted) as made,
        await RawConnection.open(made.port, "127.0.0.2") as held,
    ):
        for _ in range(3):
            await held.send(LATER)
            await held.reader.readuntil(b"later")
        assert made.refused == {}


async def test_a_body_that_trickles_is_answered_and_broken_off() -> None:
    async with site(SHORT) as made, await RawConnection.open(made.port) as held:
        await held.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        answer = await held.rest()
        assert answer.startswith(b"HTTP/1.1 408")
        assert answer.endswith(b"body_too_slow")


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    async with site() as made, await RawConnection.open(made.port) as held:
        await held.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5368709120\r\n\r\n{")
        assert (await held.reader.readline()).startswith(b"HTTP/1.1 413")


async def test_a_body_without_a_length_is_cut_at_its_bound() -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    async with site() as made, await RawConnection.open(made.port) as held:
        await held.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await held.send(chunk * 17)
        assert (await held.reader.readline()).startswith(b"HTTP/1.1 413")


async def test_large_bodies_of_one_address_are_bounded_together_and_small_ones_pass() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    async with site(in_flight=MAX_BODY) as made:
        first = await RawConnection.open(made.port, "127.0.0.2")
        await first.send(head + bytes(400_000))
        second = await RawConnection.open(made.port, "127.0.0.2")
        await second.send(head + bytes(400_000))
        held = {
            asyncio.ensure_future(connection.reader.readline()) for connection in (first, second)
        }
        (done,), others = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert done.result().startswith(b"HTTP/1.1 503")
        async with (
            ClientSession() as http,
            http.post(f"http://127.0.0.1:{made.port}/", data=bytes(60_000)) as answer,
        ):
            assert await answer.text() == "60000"
        for connection in (first, second):
            await connection.close()
        await asyncio.gather(*others, return_exceptions=True)


async def test_an_answer_that_nobody_reads_is_broken_off() -> None:
    async with site(SHORT) as made, await RawConnection.open(made.port) as held:
        held.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await held.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: len(made.server.table) == 0)


async def test_a_large_answer_that_is_read_arrives_whole() -> None:
    async with (
        site(SHORT) as made,
        ClientSession() as http,
        http.get(f"http://127.0.0.1:{made.port}/large") as answer,
    ):
        assert len(await answer.read()) == LARGE_ANSWER


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            bind("127.0.0.1", port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: address already in use"


def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(CannotListen, match=r"^cannot listen on no\.invalid:0: the host name was"):
        bind("no.invalid", 0)


def test_descriptors_for_the_rest_of_the_process_are_kept() -> None:
    assert 8 <= connections_that_fit(1 << 30, 3) < 1 << 30
    assert connections_that_fit(10, 3) == 10


class NoDescriptors(socket.socket):
    """A listening socket of a process that has no descriptor left."""

    asked = 0

    def accept(self) -> tuple[socket.socket, object]:
        type(self).asked += 1
        raise OSError(24, "Too many open files")


async def test_a_process_without_descriptors_counts_once_and_waits() -> None:
    (bound,) = bind("127.0.0.1", 0)
    refused: list[Refused] = []
    listener = Listener(
        [NoDescriptors(fileno=bound.detach())],
        ConnectionTable(ConnectionLimits(4, 4, trusted=(ip_network("127.0.0.0/8"),))),
        lambda _: pytest.fail("nothing was accepted"),
        on_refused=refused.append,
        clock=SystemClock(),
    )
    listener.sockets[0].setblocking(False)
    listener.start()
    held = await RawConnection.open(listener.port)
    await until(lambda: bool(refused))
    assert refused == [Refused.DESCRIPTORS]
    assert NoDescriptors.asked == 1
    await held.close()
    await listener.close()


class Attached(AcceptedConnection):
    """A connection that keeps its transport."""

    transport: asyncio.BaseTransport | None = None

    @property
    def is_idle(self) -> bool:
        return False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()


async def test_a_small_answer_does_not_wait_for_an_acknowledgement() -> None:
    """The option is off by default, and each small frame would wait 40 ms."""
    accepted: list[Attached] = []

    def connect(peer: str) -> Attached:
        accepted.append(Attached(peer))
        return accepted[-1]

    listener = Listener(
        bind("127.0.0.1", 0),
        ConnectionTable(ConnectionLimits(4, 4)),
        connect,
        on_refused=lambda why: pytest.fail(f"refused: {why}"),
        clock=SystemClock(),
    )
    listener.start()
    held = await RawConnection.open(listener.port)
    await until(lambda: bool(accepted) and accepted[0].transport is not None)
    transport = accepted[0].transport
    assert transport is not None
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    accepted[0].abort()
    await listener.close()
    await held.close()
