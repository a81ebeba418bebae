"""The attackers of `bench.hostile`: `python -m bench.hostile_attacks NUMBER PORT SECONDS`.

Each attacks one port of this machine from 127.0.0.2 and goes on until its time is over. It
comes back at once when it is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.hostile_http2 import (
    CONTINUATION,
    HEADERS,
    WORKER,
    Http2,
    frame,
    message,
    request_headers,
    trusting_context,
)
from piecework.base.listener import raise_descriptor_limit

HOST: Final = "127.0.0.1"
SOURCE: Final = "127.0.0.2"
SUBMISSION: Final = "PIECEWORK_BENCH_SUBMISSION"
"""The environment variable with the file of a submission that `long_prompts` sends."""
PAUSE_S: Final = 0.05
"""Between being cut off and coming back."""
STEP_S: Final = 0.1
FULL_BYTES: Final = 4 * 2**20 - 1
PIECE_BYTES: Final = 256 * 1024
BODY_BYTES: Final = 4_000_000
_TROUBLE: Final = (OSError, TimeoutError, ssl.SSLError, EOFError)


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to harm a server. `target`: worker, gateway, index or admin."""

    name: str
    target: str
    run: Callable[[int], Awaitable[None]]

    @property
    def sink(self) -> str:
        """The kind of sink that takes the same load."""
        return "tls" if self.target == "worker" else "tcp"


# --- against the worker's gRPC port


async def _again_and_again(port: int, act: Callable[[Http2], Awaitable[None]], **more: int) -> None:
    """Connect, act until cut off, and come back."""
    while True:
        with contextlib.suppress(*_TROUBLE):
            connection = await Http2.connect(HOST, port, SOURCE, **more)
            try:
                await act(connection)
            finally:
                await connection.close()
        await asyncio.sleep(PAUSE_S)


async def _hold_streams(connection: Http2, path: str, count: int, first: bytes) -> None:
    """Keep `count` streams open that have sent `first`. Ended ones are replaced."""
    held: set[int] = set()
    while not connection.closed.is_set():
        held -= connection.ended
        while len(held) < count:
            stream = connection.open(path)
            held.add(stream)
            if first:
                await connection.data(stream, first)
        await connection.drain()
        await asyncio.sleep(STEP_S)


async def watches(port: int) -> None:
    """256 health watches on one connection."""
    await _again_and_again(
        port, lambda c: _hold_streams(c, "/grpc.health.v1.Health/Watch", 256, b"")
    )


async def endless_messages(port: int) -> None:
    """256 unary requests on one connection whose message never ends."""
    part = message(200, bytes(100))
    await _again_and_again(port, lambda c: _hold_streams(c, WORKER + "CloseChannel", 256, part))


async def half_messages(port: int) -> None:
    """30 connections with 10 job streams each, whose first frame trickles."""

    async def trickle(connection: Http2) -> None:
        streams = [connection.open(WORKER + "Run") for _ in range(10)]
        for stream in streams:
            await connection.data(stream, message(4096))
        while not connection.closed.is_set():
            for number, stream in enumerate(streams):
                if stream in connection.ended:
                    streams[number] = connection.open(WORKER + "Run")
                    await connection.data(streams[number], message(4096))
                else:
                    await connection.data(stream, b"x")
            await asyncio.sleep(5 * STEP_S)

    await asyncio.gather(*(_again_and_again(port, trickle) for _ in range(30)))


def large_messages(path: str) -> Callable[[int], Awaitable[None]]:
    """200 requests of 4 MiB less one byte, over four connections."""

    async def send(connection: Http2) -> None:
        async def one() -> None:
            while not connection.closed.is_set():
                stream = connection.open(path)
                await connection.data(stream, message(FULL_BYTES + 1))
                for _ in range(FULL_BYTES // PIECE_BYTES):
                    await connection.data(stream, bytes(PIECE_BYTES))
                    await asyncio.sleep(4 * STEP_S)
                await connection.has_ended(stream)

        await asyncio.gather(*(one() for _ in range(50)))

    async def attack(port: int) -> None:
        await asyncio.gather(*(_again_and_again(port, send) for _ in range(4)))

    return attack


async def long_prompts(port: int) -> None:
    """4 streams of one client that submit a signed job with a prompt of 2 MiB again and again."""
    submission = await asyncio.to_thread(Path(os.environ[SUBMISSION]).read_bytes)

    async def submit(connection: Http2) -> None:
        async def one() -> None:
            while not connection.closed.is_set():
                stream = connection.open(WORKER + "Run")
                await connection.data(stream, message(len(submission), submission))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(connection.has_ended(stream), 1.0)
                await asyncio.sleep(5 * STEP_S)

        await asyncio.gather(*(one() for _ in range(4)))

    await _again_and_again(port, submit)


async def rapid_reset(port: int) -> None:
    """Four connections that open and reset streams as fast as they can."""

    async def reset(connection: Http2) -> None:
        while True:
            for _ in range(50):
                connection.reset(connection.open(WORKER + "Run"))
            await connection.drain()
            await asyncio.sleep(0.002)

    await asyncio.gather(*(_again_and_again(port, reset) for _ in range(4)))


async def continuation_flood(port: int) -> None:
    """Four connections whose headers never end."""

    async def flood(connection: Http2) -> None:
        connection.send(frame(HEADERS, 0, 1, request_headers(WORKER + "Run")))
        while True:
            connection.send(frame(CONTINUATION, 0, 1, b"\x00\x01a\x7f\x81\x01" + bytes(8000)))
            await connection.drain()
            await asyncio.sleep(0.005)

    await asyncio.gather(*(_again_and_again(port, flood) for _ in range(4)))


async def slow_readers(port: int) -> None:
    """32 connections with 32 requests each, whose answers are never read."""

    async def ask(connection: Http2) -> None:
        await _hold_streams(connection, WORKER + "GetOffer", 32, b"")

    await asyncio.gather(*(_again_and_again(port, ask, window=0) for _ in range(32)))


async def half_open(port: int) -> None:
    """300 connections that greet and are then as good as gone: they read and answer nothing."""

    async def vanish(connection: Http2) -> None:
        connection.open(WORKER + "GetOffer")
        await connection.drain()
        connection.stop_reading()
        await asyncio.sleep(3600)

    await asyncio.gather(*(_again_and_again(port, vanish) for _ in range(300)))


async def slow_hellos(port: int) -> None:
    """200 TLS handshakes that send a byte every half second."""
    hello = bytes.fromhex("1603010200010001fc0303") + bytes(500)

    async def one() -> None:
        while True:
            with contextlib.suppress(*_TROUBLE):
                reader, writer = await asyncio.open_connection(HOST, port, local_addr=(SOURCE, 0))
                for byte in hello:
                    if reader.at_eof():
                        break
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(5 * STEP_S)
                writer.transport.abort()
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one() for _ in range(200)))


async def silent_tls(port: int) -> None:
    """600 TLS connections that say nothing after their handshake."""
    context = trusting_context()

    async def one(number: int) -> None:
        await asyncio.sleep(number * 0.005)
        while True:
            with contextlib.suppress(*_TROUBLE):
                reader, writer = await asyncio.open_connection(
                    HOST, port, local_addr=(SOURCE, 0), ssl=context
                )
                await reader.read()
                writer.transport.abort()
            await asyncio.sleep(10 * PAUSE_S)

    await asyncio.gather(*(one(number) for number in range(600)))


# --- against any port


def held(words: bytes, count: int = 1100) -> Callable[[int], Awaitable[None]]:
    """Connections that say `words` and then nothing. Closed ones come back."""

    async def attack(port: int) -> None:
        async def one(number: int) -> None:
            await asyncio.sleep(number * 0.001)
            while True:
                with contextlib.suppress(*_TROUBLE):
                    reader, writer = await asyncio.open_connection(
                        HOST, port, local_addr=(SOURCE, 0)
                    )
                    writer.write(words)
                    await reader.read()
                    writer.transport.abort()
                await asyncio.sleep(60 * PAUSE_S)

        await asyncio.gather(*(one(number) for number in range(count)))

    return attack


async def trickled_bodies(port: int) -> None:
    """100 bodies of 4 MB that come in pieces of 300 kB."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
        f"\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    ).encode()

    async def one() -> None:
        while True:
            with contextlib.suppress(*_TROUBLE):
                reader, writer = await asyncio.open_connection(HOST, port, local_addr=(SOURCE, 0))
                writer.write(head + b"{")
                for _ in range(BODY_BYTES // 300_000):
                    if reader.at_eof():
                        break
                    writer.write(b" " * 300_000)
                    await writer.drain()
                    await asyncio.sleep(5 * STEP_S)
                writer.transport.abort()
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one() for _ in range(100)))


async def unread_answers(port: int) -> None:
    """200 connections that ask for the list of offers again and again, and read nothing."""
    ask = b"GET /v1/offers HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def one() -> None:
        while True:
            with contextlib.suppress(*_TROUBLE):
                _, writer = await asyncio.open_connection(HOST, port, local_addr=(SOURCE, 0))
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                for _ in range(20):
                    writer.write(ask)
                    await writer.drain()
                    await asyncio.sleep(5 * STEP_S)
                writer.transport.abort()
            await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(one() for _ in range(200)))


_LINE = b"GET /heal"
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: 1\r\n"
_GREEDY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5368709120\r\n\r\n{"
)
ATTACKS: Final = (
    Attack("256 health watches", "worker", watches),
    Attack("256 unary messages without end", "worker", endless_messages),
    Attack("200 offers asked with 4 MiB", "worker", large_messages(WORKER + "GetOffer")),
    Attack("200 job frames of 4 MiB", "worker", large_messages(WORKER + "Run")),
    Attack("300 half job frames", "worker", half_messages),
    Attack("1,100 idle TCP connections", "worker", held(b"")),
    Attack("200 slow ClientHellos", "worker", slow_hellos),
    Attack("600 silent TLS connections", "worker", silent_tls),
    Attack("4 streams of 2 MiB prompts", "worker", long_prompts),
    Attack("rapid reset x4", "worker", rapid_reset),
    Attack("CONTINUATION flood x4", "worker", continuation_flood),
    Attack("1,024 answers not read", "worker", slow_readers),
    Attack("300 half-open connections", "worker", half_open),
    Attack("1,100 silent connections", "gateway", held(b"")),
    Attack("1,100 half request lines", "gateway", held(_LINE)),
    Attack("1,100 headers without end", "gateway", held(_HEAD)),
    Attack("100 trickled bodies of 4 MB", "gateway", trickled_bodies),
    Attack("500 bodies of 5 GiB", "gateway", held(_GREEDY, 500)),
    Attack("1,100 silent connections", "index", held(b"")),
    Attack("1,100 headers without end", "index", held(_HEAD)),
    Attack("200 answers not read", "index", unread_answers),
    Attack("1,100 silent connections", "admin", held(b"")),
)


async def main(number: int, port: int, seconds: float) -> None:
    """Attack until the time is over."""
    raise_descriptor_limit()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ATTACKS[number].run(port), seconds)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
