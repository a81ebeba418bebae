"""An HTTP server with a bound on everything that a stranger may hold: connections, time and bytes.

aiohttp waits without end for a request line, for headers and for a body. `HttpServer` gives each
of them a deadline, and each address and all together a number of connections. An address that was
told too often to come back later (429) gets that answer late. `BodyReader` reads bodies at a least
rate and within a number of bytes over all connections.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, cast

from aiohttp import web

from piecework.base.clock import Clock, SystemClock
from piecework.base.connections import (
    MAX_ADDRESSES,
    ConnectionLimits,
    ConnectionTable,
    Networks,
)
from piecework.base.errors import PieceworkError
from piecework.base.listener import (
    AcceptedConnection,
    Listener,
    OnRefused,
    bind,
    connections_that_fit,
)
from piecework.base.packing import PACKINGS, BadPacking, Packings, Unpacker
from piecework.base.rates import Rate, RateLimiter, client_behind, is_in, peer_key

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class HttpTimes:
    """What a client may take, in seconds."""

    request_s: float = 10.0
    """For the first byte of a connection, and from a request's first byte to its last header."""
    keepalive_s: float = 30.0
    """A connection without a request is closed after this."""
    body_s: float = 10.0
    """For a body, beside the time that its bytes take at the least rate."""
    stall_s: float = 30.0
    """For each `LEAST_READ_BYTES` of an answer that waits for its reader."""
    late_s: float = 5.0
    """For an answer to an address that does not come back later, as it was told. A closed
    connection would come back at once, and cost more."""


TIMES: Final = HttpTimes()
LEAST_BYTES_PER_S: Final = 64 * 1024
"""A body that comes slower is broken off."""
LEAST_READ_BYTES: Final = 64 * 1024
LINGER_S: Final = 2.0
"""For the rest of a body that was refused, so that its sender reads the answer."""
SMALL_BODY_BYTES: Final = 64 * 1024
"""A body up to here is always read: connections are bounded, and so are these bytes."""
DEAF: Final = Rate(2.0, 60.0)
"""Answers of "come back later" to one address. More of them show that nobody listens."""
MAX_BODY_BYTES_IN_FLIGHT: Final = 64 * 2**20
"""Of larger bodies that are being read, over all connections. One address gets half of it."""


@dataclass(frozen=True, slots=True)
class BoundServer:
    """Where a server listens in fact."""

    url: str
    port: int


class BodyRefused(PieceworkError):
    """A body that is not read to its end. `status` is the HTTP status to answer with."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class BodyReader:
    """Reads request bodies within bounds of size, time and bytes in flight."""

    def __init__(
        self,
        *,
        max_bytes: int,
        in_flight: int = MAX_BODY_BYTES_IN_FLIGHT,
        trusted: Networks = (),
        times: HttpTimes = TIMES,
        packings: Packings = PACKINGS,
    ) -> None:
        """max_bytes: of a body as it is sent, and unpacked. packings: those that are taken."""
        self._packings = packings
        self._max_bytes, self._in_flight, self._trusted = max_bytes, in_flight, trusted
        self._patience_s = times.body_s
        self._held: Counter[str] = Counter()
        self._total = 0

    async def read(self, request: web.Request) -> bytes:
        """Return the whole body.

        Raises:
            BodyRefused: it is too large, too slow, packed in a way that is not taken, or there are
                too many large bodies at once.
        """
        if (request.content_length or 0) > self._max_bytes:
            raise self._too_large()
        try:
            unpack = Unpacker(
                request.headers.get("Content-Encoding", ""), self._max_bytes, self._packings
            )
            return await self._unpacked(request, unpack)
        except BadPacking as error:
            status, code = (400, "damaged_body") if error.known else (415, "unknown_encoding")
            taken = f"a body is plain, or {', '.join(self._packings)}"
            message = f"{error}" if error.known else f"{error}: {taken}"
            raise BodyRefused(status, code, message) from None

    async def _unpacked(self, request: web.Request, unpack: Unpacker) -> bytes:
        loop = asyncio.get_running_loop()
        began, body, received = loop.time(), bytearray(), 0
        with self._holding(peer_key(client_address(request, self._trusted))) as hold:
            try:
                async with asyncio.timeout(self._patience_s) as deadline:
                    async for chunk in request.content.iter_any():
                        received += len(chunk)
                        body += unpack(chunk)
                        if max(received, len(body)) > self._max_bytes:
                            raise self._too_large()
                        hold(max(received, len(body)))
                        bonus = received / LEAST_BYTES_PER_S
                        deadline.reschedule(began + self._patience_s + bonus)
            except TimeoutError:
                raise BodyRefused(408, "body_too_slow", "the body did not come in time") from None
        unpack.finish()
        return bytes(body)

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, "body_too_large", f"a body is at most {self._max_bytes} bytes")

    @contextmanager
    def _holding(self, address: str) -> Iterator[Callable[[int], None]]:
        """Count the bytes of one body while it is read."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if size <= SMALL_BODY_BYTES:
                return
            more = size - held
            if (
                self._total + more > self._in_flight
                or self._held[address] + more > self._in_flight // 2
            ):
                raise BodyRefused(503, "too_many_bodies", "too many large bodies at once")
            held = size
            self._held[address] += more
            self._total += more

        try:
            yield hold
        finally:
            self._total -= held
            self._held[address] -= held
            if not self._held[address]:
                del self._held[address]


def client_address(request: web.Request, trusted: Networks) -> str:
    """Return the address of the client, which a trusted proxy may name in X-Forwarded-For."""
    forwarded = ",".join(request.headers.getall("X-Forwarded-For", ()))
    return client_behind(request.remote or "", forwarded, trusted)


class _Guarded(AcceptedConnection):
    """Stands between a transport and aiohttp's protocol, and holds the deadlines.

    aiohttp's protocol and its task are made at the first byte. A silent connection costs neither.
    """

    def __init__(
        self,
        peer: str,
        make: Callable[[], asyncio.Protocol],
        table: ConnectionTable,
        times: HttpTimes,
    ) -> None:
        super().__init__(peer)
        self.peer = peer
        self._inner: asyncio.Protocol | None = None
        self._make, self._table, self._times = make, table, times
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._awaits_headers = self._write_paused = False
        self._requests = 0

    @property
    def is_idle(self) -> bool:
        return self._requests == 0

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._arm(self._times.request_s, self.abort)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            return
        if self._inner is None:
            self._inner = self._make()
            self._inner.connection_made(self._transport)
        if not self._requests and not self._awaits_headers:
            self._awaits_headers = True
            self._arm(self._times.request_s, self.abort)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._transport = None
        self._table.remove(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._inner is not None:
            self._inner.pause_writing()
        self._watch_reader(self._unread())

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._inner is not None:
            self._inner.resume_writing()
        self._rest()

    # --- requests

    def request_began(self) -> None:
        """A request's headers are complete."""
        self._requests += 1
        self._awaits_headers = False
        if not self._write_paused:
            self._rest()

    def request_ended(self) -> None:
        """A request was answered, apart from what waits for its reader."""
        self._requests -= 1
        if not self._write_paused:
            self._rest()

    # --- deadlines

    def _rest(self) -> None:
        """Nothing waits for the client's reading. Wait for its next request, if none runs."""
        if self._requests or self._transport is None:
            self._disarm()
        else:
            self._arm(self._times.keepalive_s, self.abort)

    def _unread(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def _watch_reader(self, unread: int) -> None:
        """Look again later whether the client has read enough since."""

        def look() -> None:
            now = self._unread()
            if unread - now < LEAST_READ_BYTES:
                self.abort()
            else:
                self._watch_reader(now)

        self._arm(self._times.stall_s, look)

    def _arm(self, seconds: float, action: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = asyncio.get_running_loop().call_later(seconds, action)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class HttpServer:
    """One aiohttp application behind bounded connections. `start` listens and `stop` ends."""

    def __init__(
        self,
        app: web.Application,
        limits: ConnectionLimits,
        *,
        on_refused: OnRefused,
        shutdown_s: float = 5.0,
        times: HttpTimes = TIMES,
        clock: Clock | None = None,
        deaf: Rate | None = None,
    ) -> None:
        """deaf: how often an address is told at once to come back later. None: always."""
        self._times, self._trusted = times, limits.trusted
        self._deaf = RateLimiter(deaf, keys=MAX_ADDRESSES) if deaf is not None else None
        self.table = ConnectionTable(limits)
        self._on_refused, self._clock = on_refused, clock or SystemClock()
        app.middlewares.insert(0, self._count)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # `BodyReader` unpacks within its bounds
            shutdown_timeout=shutdown_s,
            keepalive_timeout=times.keepalive_s,
            lingering_time=LINGER_S,
        )
        self._listener: Listener | None = None

    async def start(self, host: str, port: int) -> BoundServer:
        """Listen, and return where. Port 0 picks a free one.

        Raises:
            CannotListen: the address is taken, or is not ours.
        """
        bound = await self.start_on(bind(host, port))
        shown = f"[{host}]" if ":" in host else host
        return BoundServer(f"http://{shown}:{bound}", bound)

    async def start_on(self, sockets: Sequence[socket.socket]) -> int:
        """Accept on bound sockets, and return the port."""
        await self._runner.setup()
        make = self._runner.server
        if make is None:
            raise RuntimeError("aiohttp made no server")

        def connect(peer: str) -> _Guarded:
            return _Guarded(peer, make, self.table, self._times)

        self._listener = Listener(
            sockets, self.table, connect, on_refused=self._on_refused, clock=self._clock
        )
        self._listener.start()
        return self._listener.port

    async def stop(self) -> None:
        """Take no more connections, let requests end within the grace, and close."""
        if self._listener is not None:
            await self._listener.close()
        await self._runner.cleanup()
        self.table.abort_all()

    @web.middleware
    async def _count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        guarded = transport.get_protocol() if transport is not None else None
        if not isinstance(guarded, _Guarded):
            return await handler(request)
        guarded.request_began()
        try:
            response = await handler(request)
        finally:
            guarded.request_ended()
        if response.status == HTTPStatus.TOO_MANY_REQUESTS and self._is_deaf(guarded):
            # The connection counts as idle meanwhile, and makes room for others.
            await asyncio.sleep(self._times.late_s)
        return response

    def _is_deaf(self, guarded: _Guarded) -> bool:
        if self._deaf is None or is_in(guarded.peer, self._trusted):
            return False
        return self._deaf.take(guarded.address, self._clock.monotonic()) > 0


@asynccontextmanager
async def serving(server: HttpServer, host: str, port: int) -> AsyncIterator[BoundServer]:
    """Listen inside a `with` block.

    Raises:
        CannotListen: the address is taken, or is not ours.
    """
    bound = await server.start(host, port)
    try:
        yield bound
    finally:
        await server.stop()


def http_limits(total: int, per_address: int, trusted: Networks = ()) -> ConnectionLimits:
    """Return bounds of an HTTP server, with room left for other descriptors."""
    fitting = connections_that_fit(total, 1)
    return ConnectionLimits(fitting, min(per_address, fitting), trusted=trusted)
