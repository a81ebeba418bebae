"""One accepted connection of the relay: a client, a worker's link, or the way to one client.

What it is shows in its first bytes. A client's are read up to the server name of its ClientHello,
a worker's up to its first line. From then on two connections are joined, and bytes pass as they
are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

from piecework.base.listener import AcceptedConnection
from piecework.relay.hello import HANDSHAKE, HelloReader, HelloRefused
from piecework.relay.limits import CLOSING_S, WAITING_BYTES
from piecework_protocol.errors import MalformedInput
from piecework_protocol.relaying import MAX_OPENING_BYTES, Dial, Join, Take, decode_opening
from piecework_protocol.types import Address

UNRECOGNIZED_NAME: Final = bytes.fromhex("15 0303 0002 02 70")
"""A fatal TLS alert. The client learns at once that the worker is not here."""


class Switchboard(Protocol):
    """What a connection needs of its relay."""

    buffer: memoryview
    """What every connection reads into. It is copied out before anybody else reads."""
    now: Callable[[], float]
    """Monotonic seconds."""

    def call(self, client: RelayConnection, name: str) -> None:
        """A client asks for the worker of a server name."""
        ...

    def take(self, way: RelayConnection, token: bytes) -> None:
        """A worker takes a client over."""
        ...

    def join(self, link: RelayConnection, operator: Address) -> None:
        """A worker wants to be reached."""
        ...

    def dial(self, link: RelayConnection, early: bytes) -> None:
        """A worker wants its addresses dialled. early: what came of its request."""
        ...

    def refused(self, why: str) -> None:
        """Count a connection that was ended."""
        ...

    def gone(self, connection: RelayConnection) -> None:
        """A connection has ended."""
        ...


class RelayConnection(AcceptedConnection, asyncio.BufferedProtocol):
    """A connection from its first byte to its last."""

    def __init__(self, peer: str, relay: Switchboard, opening_s: float) -> None:
        super().__init__(peer)
        self.peer = peer
        self._relay, self._opening_s = relay, opening_s
        # At hand, because every message needs them.
        self._buffer, self._now = relay.buffer, relay.now
        self.passed_bytes = 0
        """That came from here and were passed on."""
        self._transport: asyncio.Transport | None = None
        self._hello: HelloReader | None = None
        self._line = bytearray()
        self._decided = self._aborted = False
        self._other: RelayConnection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._moved_at = self._now()

    @property
    def is_idle(self) -> bool:
        """Whether it has not said yet what it wants."""
        return not self._decided

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_joined(self) -> bool:
        """Whether bytes pass to and from another connection."""
        return self._other is not None

    @property
    def moved_at(self) -> float:
        """When the last byte came from either side, in monotonic seconds."""
        other = self._other
        return self._moved_at if other is None else max(self._moved_at, other._moved_at)

    def abort(self) -> None:
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def turn_away(self, why: str) -> None:
        """End a client with a TLS alert. `why` is counted."""
        self._relay.refused(why)
        if self._transport is not None:
            self._transport.write(UNRECOGNIZED_NAME)
            self.finish()

    def finish(self) -> None:
        """Close once everything that waits has gone out, or after a moment."""
        if self._transport is not None:
            self._transport.close()
            self.arm(CLOSING_S)

    def arm(self, seconds: float) -> None:
        """Abort after so many seconds, unless `disarm` comes first."""
        self.disarm()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def streams(
        self, most: int, early: bytes = b""
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Read and write lines from now on, each of at most so many bytes. early: came already.

        The end of the connection is still told to the relay, through the writer's owner.
        """
        loop, transport = asyncio.get_running_loop(), cast(asyncio.Transport, self._transport)
        reader = asyncio.StreamReader(limit=most, loop=loop)
        reader.feed_data(early)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def join(self, client: RelayConnection) -> None:
        """Pass bytes to and from a client from now on. This is the worker's connection to it."""
        hello, client._hello = client._hello, None
        if self._transport is None or client._transport is None or hello is None:
            self.abort()
            client.abort()
            return
        self._other, client._other = client, self
        self.disarm()
        client.disarm()
        self._transport.write(hello.data)
        client._transport.resume_reading()

    # --- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._aborted:  # to make room, before it was attached
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=WAITING_BYTES)
        self.arm(self._opening_s)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._moved_at = self._now()
        data, other = bytes(self._buffer[:nbytes]), self._other
        if other is not None:
            self.passed_bytes += nbytes
            if other._transport is not None:
                other._transport.write(data)
        elif not self._decided:
            self._open(data)
        else:
            self._end("early_bytes")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.disarm()
        other, self._other = self._other, None
        if other is not None:
            other._other = None
            other.finish()
        self._relay.gone(self)

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    # --- the first bytes

    def _open(self, data: bytes) -> None:
        if self._hello is None and not self._line and data[0] == HANDSHAKE:
            self._hello = HelloReader()
        if self._hello is not None:
            self._read_hello(self._hello, data)
        else:
            self._read_line(data)

    def _read_hello(self, hello: HelloReader, data: bytes) -> None:
        try:
            name = hello.feed(data)
        except HelloRefused:
            self._end("bad_hello")
            return
        if name is not None:
            self._hold()
            self._relay.call(self, name)

    def _read_line(self, data: bytes) -> None:
        self._line += data
        line, end, more = bytes(self._line).partition(b"\n")
        if len(line) > MAX_OPENING_BYTES:
            self._end("bad_opening")
            return
        if not end:
            return
        try:
            opening = decode_opening(line)
        except MalformedInput:
            self._end("bad_opening")
            return
        if more and not isinstance(opening, Dial):
            self._end("bad_opening")
            return
        match opening:
            case Take(token):
                self._decided = True
                self._relay.take(self, token)
            case Join(operator):
                self._hold()
                self._relay.join(self, operator)
            case Dial():
                self._hold()
                self._relay.dial(self, more)

    def _hold(self) -> None:
        """It said what it wants. Read nothing more before it has that."""
        self._decided = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _end(self, why: str) -> None:
        self._relay.refused(why)
        self.abort()
