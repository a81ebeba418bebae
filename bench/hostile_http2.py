"""A client that speaks just enough HTTP/2 and gRPC to break their manners.

A library keeps to the rules. This sends what it is told to: headers without end, streams that are
reset at once, messages that stop half way. It only respects flow control, because a server cuts
off who does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from typing import Final, Self

from piecework_protocol.relaying import server_name
from piecework_protocol.types import Address

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WORKER: Final = "/piecework.v2.Worker/"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM: Final = 1
END_HEADERS: Final = 4
ACK: Final = 1
MAX_DATA_BYTES: Final = 16_384
FIRST_WINDOW: Final = 65_535
SETTING_INITIAL_WINDOW: Final = 4
CONNECT_S: Final = 10.0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """One header as HPACK writes it without tables and Huffman codes. Both below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request_headers(path: str) -> bytes:
    """The header block of a gRPC request."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"worker"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
    return b"".join(header(name, value) for name, value in fields)


def message(size: int, body: bytes = b"") -> bytes:
    """The start of a gRPC message that says it has `size` bytes."""
    return b"\x00" + struct.pack(">I", size) + body


def trusting_context() -> ssl.SSLContext:
    """TLS that accepts any certificate, and speaks HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class Http2:
    """One TLS connection. `open` requests streams, `ended` holds those that the server ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next, self._window, self._initial = 1, FIRST_WINDOW, FIRST_WINDOW
        self._windows: dict[int, int] = {}
        self._moved = asyncio.Event()
        self.ended: set[int] = set()
        self.received = 0
        self.closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, host: str, port: int, source: str, *, window: int | None = None) -> Self:
        """Connect and greet. `window`: bytes that each answer may have before we ask for more."""
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=trusting_context(),
                server_hostname=server_name(Address(bytes(20))),
                local_addr=(source, 0),
            )
        made = cls(reader, writer)
        asked = b"" if window is None else struct.pack(">HI", SETTING_INITIAL_WINDOW, window)
        made.send(PREFACE + frame(SETTINGS, 0, 0, asked))
        made._task = asyncio.create_task(made._read())
        return made

    def send(self, data: bytes) -> None:
        """Write bytes as they are."""
        if not self.closed.is_set():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the socket takes more. Raises `ConnectionError` once it is closed."""
        if self.closed.is_set():
            raise ConnectionError("the server closed the connection")
        await self._writer.drain()

    def open(self, path: str, *, end: bool = False) -> int:
        """Send the headers of a request, and return its stream."""
        stream, self._next = self._next, self._next + 2
        flags = END_HEADERS | (END_STREAM if end else 0)
        self.send(frame(HEADERS, flags, stream, request_headers(path)))
        self._windows[stream] = self._initial
        return stream

    def reset(self, stream: int) -> None:
        """Cancel a stream."""
        self._windows.pop(stream, None)
        self.send(frame(RESET, 0, stream, struct.pack(">I", 8)))

    async def data(self, stream: int, payload: bytes) -> int:
        """Send bytes as far as flow control lets us. Returns how many, once all or ended."""
        sent = 0
        while sent < len(payload) and stream not in self.ended and not self.closed.is_set():
            room = min(self._window, self._windows.get(stream, 0), MAX_DATA_BYTES)
            if room <= 0:
                self._moved.clear()
                await self._moved.wait()
                continue
            piece = payload[sent : sent + room]
            self.send(frame(DATA, 0, stream, piece))
            await self.drain()
            self._window -= len(piece)
            self._windows[stream] -= len(piece)
            sent += len(piece)
        return sent

    def stop_reading(self) -> None:
        """Read nothing more, so that pings stay unanswered."""
        if self._task is not None:
            self._task.cancel()
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def has_ended(self, stream: int) -> None:
        """Wait until the server has ended a stream, or the connection."""
        while stream not in self.ended and not self.closed.is_set():
            self._moved.clear()
            await self._moved.wait()

    async def close(self) -> None:
        """Hang up."""
        self._writer.transport.abort()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- what the server says

    async def _read(self) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                while True:
                    head = await self._reader.readexactly(9)
                    size = int.from_bytes(head[:3])
                    payload = await self._reader.readexactly(size)
                    self._take(head[3], head[4], int.from_bytes(head[5:]) & 0x7FFFFFFF, payload)
        finally:
            self.closed.set()
            self._moved.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._settle(payload)
            self.send(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            more = int.from_bytes(payload) & 0x7FFFFFFF
            if stream == 0:
                self._window += more
            elif stream in self._windows:
                self._windows[stream] += more
            self._moved.set()
        elif kind in (DATA, HEADERS, RESET):
            self.received += len(payload)
            if kind == DATA and payload:
                self.send(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload))))
            if kind == RESET or flags & END_STREAM:
                self.ended.add(stream)
                self._windows.pop(stream, None)
                self._moved.set()

    def _settle(self, payload: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == SETTING_INITIAL_WINDOW:
                for stream in self._windows:
                    self._windows[stream] += value - self._initial
                self._initial = value
        self._moved.set()
