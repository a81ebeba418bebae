"""Accept the TCP connections of the job port, bound them, and relay them to gRPC.

gRPC's server cannot count connections or bytes of one address. This does. It never looks into TLS:
it moves bytes between a client's socket and gRPC's, which listens on a Unix socket in a folder that
only this user can enter. The name of our end of each Unix socket tells gRPC's handlers which
connection a request came over. docs/adr/0010 has the reasons and what the relay costs.

Bounds: connections in total, of one address and a second (`piecework.base.connections`); a deadline
for the first byte; bytes a second of an address that has never paid; and the bytes that have
arrived and do not make a whole message yet, over all connections.

What comes through a relay (`job_port.relays`) is a connection like any other. The address that the
relay names counts within that relay, and a relay has a bound for all that it brings.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from piecework.base.clock import Clock
from piecework.base.connections import (
    MAX_ADDRESSES,
    ConnectionLimits,
    ConnectionTable,
    Refused,
    parse_networks,
)
from piecework.base.listener import (
    AcceptedConnection,
    Listener,
    OnRefused,
    connections_that_fit,
)
from piecework.base.rates import Rate, RateLimiter, is_in, peer_key
from piecework_node.config import WorkerConfig
from piecework_node.metrics import Metrics

HANDSHAKES_PER_S: Final = 20.0
"""TLS connections that one address may open. A handshake costs some milliseconds."""
DESCRIPTORS_EACH: Final = 3
"""Of one relayed connection: the client's socket and both ends of the Unix socket."""
RELAY_BUFFER_BYTES: Final = 128 * 1024
"""What waits for a reader in either direction before the other side is no longer read."""
READ_BYTES: Final = 64 * 1024
CLOSING_S: Final = 5.0
"""For the last bytes of a connection that gRPC has closed."""
BYTES_PER_S: Final = 4 * 2**20
BYTES_BURST: Final = 64 * 2**20
"""Of one address that has never paid. More is read later, not refused."""
FRUITLESS_PER_S: Final = 1.0
FRUITLESS_BURST: Final = 20.0
"""Connections of one address that gRPC closed before they brought a request: broken HTTP/2, or a
handshake that did not end. An address with more is barred."""
BAR_S: Final = 30.0
"""An address that was cut off may come back after this."""
UNREAD_LEAK_PER_S: Final = 4096
"""What pings and window updates take. They belong to no message."""
MESSAGE_OVERHEAD: Final = 1.05
MESSAGE_OVERHEAD_BYTES: Final = 2048
"""HTTP/2 and TLS around a message: headers, and some 30 bytes for each 16 KiB."""


@dataclass(frozen=True, slots=True)
class FrontLimits:
    """What the front holds. Times in seconds."""

    connections: ConnectionLimits
    first_byte_s: float = 5.0
    unread_small: int = 256 * 1024
    """A connection may always have so many bytes that make no whole message yet."""
    unread_total: int = 48 * 2**20
    """Of all addresses that have never paid together. Those that have paid share as much again."""
    unread_s: float = 15.0
    """A connection above `unread_small` for so long is cut off."""
    of_one_relay: int = 128
    """Connections of one relay, over all addresses that it names. When they are taken, an idle one
    of the address that has most makes room."""


class _UnreadBudget:
    """Bytes of unfinished messages over many connections, and those that wait for room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._waiting: OrderedDict[FrontConnection, None] = OrderedDict()

    def move(self, change: int) -> None:
        """Count more bytes, or fewer. Fewer may let a waiting connection go on."""
        self._total += change
        if change < 0 and self._waiting and not self.is_full:
            connection, _ = self._waiting.popitem(last=False)
            connection.release("unread")

    @property
    def total(self) -> int:
        return self._total

    @property
    def is_full(self) -> bool:
        return self._total >= self._most

    def wait(self, connection: FrontConnection) -> None:
        self._waiting[connection] = None
        connection.hold("unread")

    def forget(self, connection: FrontConnection) -> None:
        self._waiting.pop(connection, None)


class FrontConnection(AcceptedConnection, asyncio.BufferedProtocol):
    """One client's connection, and its counterpart to gRPC. `streams` counts its open requests."""

    def __init__(self, peer: str, front: Front, via: str = "") -> None:
        """`via` is the relay that it came through."""
        super().__init__(peer)
        self._front, self.via = front, via
        self.trusted = is_in(peer, front.limits.connections.trusted)
        """The address is a proxy or relay that speaks for many clients."""
        self.streams = 0
        self.asked = False
        """It has brought a request."""
        self._client: asyncio.Transport | None = None
        self._grpc: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._first: list[bytes] = []
        self._held: set[str] = set()
        self._aborted = False
        self._timer: asyncio.TimerHandle | None = None
        self._refill: asyncio.TimerHandle | None = None
        self._budget = front.budget(self.address)
        self._unread = 0
        self._counted_at = front.clock.monotonic()
        self.name = ""

    @property
    def is_idle(self) -> bool:
        return self.streams == 0

    def abort(self) -> None:
        """Cut the connection off, in both directions."""
        self._aborted = True
        for transport in (self._client, self._grpc):
            if transport is not None:
                transport.abort()

    # --- asyncio.BufferedProtocol, on the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast(asyncio.Transport, transport)
        if self._aborted:  # while its socket was still to come
            self._client.abort()
            return
        self._client.set_write_buffer_limits(high=RELAY_BUFFER_BYTES)
        self._arm(self._front.limits.first_byte_s)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._front.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._front.buffer[:nbytes])
        self._count(nbytes)
        if self._grpc is not None:
            self._grpc.write(data)
            return
        self._first.append(data)
        if self._connecting is None:
            self._disarm()
            self.hold("connecting")
            self._connecting = asyncio.create_task(self._connect(), name="relay")

    def connection_lost(self, exc: Exception | None) -> None:
        self._client = None
        self._disarm()
        if self._refill is not None:
            self._refill.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._grpc is not None:
            self._grpc.abort()
        self._budget.forget(self)
        self._budget.move(-self._unread)
        self._unread = 0
        self._front.gone(self)

    def pause_writing(self) -> None:
        if self._grpc is not None:
            self._grpc.pause_reading()

    def resume_writing(self) -> None:
        if self._grpc is not None:
            self._grpc.resume_reading()

    # --- gRPC's side

    async def _connect(self) -> None:
        try:
            sock = self._front.dial(self)
            transport, _ = await asyncio.get_running_loop().create_unix_connection(
                lambda: _Relay(self, self._front.buffer), sock=sock
            )
        except OSError:
            self.abort()
            return
        self._grpc = transport
        if self._client is None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=RELAY_BUFFER_BYTES)
        transport.writelines(self._first)
        self._first.clear()
        self.release("connecting")

    def from_grpc(self, data: bytes) -> None:
        """Bytes for the client."""
        if self._client is not None:
            self._client.write(data)

    def grpc_closed(self) -> None:
        """gRPC is done with the connection. What it wrote still goes out, for a moment."""
        if self._client is not None:
            self._client.close()
            self._arm(CLOSING_S)
            if not self.asked:
                self._front.fruitless(self)

    # --- reading from the client, or not

    def hold(self, why: str) -> None:
        """Read nothing more from the client until every `why` is released."""
        if not self._held and self._client is not None:
            self._client.pause_reading()
        self._held.add(why)

    def release(self, why: str) -> None:
        """Undo `hold`."""
        self._held.discard(why)
        if not self._held and self._client is not None and not self._client.is_closing():
            self._client.resume_reading()

    # --- bytes

    def message_taken(self, size: int) -> None:
        """A whole message of `size` bytes went to its handler. They are no longer unread."""
        self._move(-min(self._unread, int(size * MESSAGE_OVERHEAD) + MESSAGE_OVERHEAD_BYTES))
        if self._unread <= self._front.limits.unread_small and self._grpc is not None:
            self._disarm()
        if not self._unread:
            self._budget.forget(self)
            self._budget = self._front.budget(self.address)
            self.release("unread")

    def _count(self, size: int) -> None:
        now = self._front.clock.monotonic()
        leaked = int((now - self._counted_at) * UNREAD_LEAK_PER_S)
        self._counted_at = now
        self._move(size - min(self._unread, leaked))
        if self._unread > self._front.limits.unread_small:
            if self._timer is None:
                self._arm(self._front.limits.unread_s)
            if self._budget.is_full:
                self._budget.wait(self)
        wait_s = self._front.byte_debt_s(self, size, now)
        if wait_s > 0:
            self.hold("bytes")
            loop = asyncio.get_running_loop()
            self._refill = loop.call_later(wait_s, self.release, "bytes")

    def _move(self, change: int) -> None:
        self._unread += change
        self._budget.move(change)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Relay(asyncio.BufferedProtocol):
    """Our end of the Unix socket to gRPC."""

    def __init__(self, connection: FrontConnection, buffer: memoryview) -> None:
        self._connection, self._buffer = connection, buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.from_grpc(bytes(self._buffer[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.grpc_closed()

    def pause_writing(self) -> None:
        self._connection.hold("grpc")

    def resume_writing(self) -> None:
        self._connection.release("grpc")


class Front:
    """The job port's connections. `start` accepts and `close` ends."""

    def __init__(
        self,
        limits: FrontLimits,
        *,
        has_paid: Callable[[str], bool],
        on_refused: OnRefused,
        clock: Clock,
    ) -> None:
        self.limits, self.clock = limits, clock
        self.table = ConnectionTable(limits.connections)
        self.buffer = memoryview(bytearray(READ_BYTES))
        """What every connection reads into. It is copied out before anybody else reads. asyncio's
        own way makes 256 KiB for each read and shrinks it, which takes longer than the read."""
        self._has_paid, self._on_refused = has_paid, on_refused
        self._budgets = {paid: _UnreadBudget(limits.unread_total) for paid in (False, True)}
        self._bytes = RateLimiter(Rate(BYTES_PER_S, BYTES_BURST), keys=MAX_ADDRESSES)
        fruitless = Rate(FRUITLESS_PER_S, FRUITLESS_BURST)
        self._fruitless = RateLimiter(fruitless, keys=MAX_ADDRESSES)
        self._numbers = itertools.count(1)
        self._folder = Path(tempfile.mkdtemp(prefix="piecework-"))
        self._by_name: dict[str, FrontConnection] = {}
        self._relayed: dict[str, ConnectionTable] = {}
        self._listener: Listener | None = None

    @property
    def target(self) -> str:
        """Where gRPC must listen, as it writes addresses."""
        return f"unix:{self._folder / 'grpc'}"

    def start(self, sockets: Sequence[socket.socket]) -> int:
        """Accept on bound sockets from now on. gRPC listens already. Returns the port, or 0 for no
        socket: then everything comes through relays."""
        if not sockets:
            return 0
        self._listener = Listener(
            sockets,
            self.table,
            lambda peer: FrontConnection(peer, self),
            on_refused=self._on_refused,
            clock=self.clock,
        )
        self._listener.start()
        return self._listener.port

    @property
    def unread(self) -> int:
        """Bytes that have arrived and make no whole message yet."""
        return sum(budget.total for budget in self._budgets.values())

    async def close(self) -> None:
        """Accept nothing more, and cut off what is open."""
        if self._listener is not None:
            await self._listener.close()
        for connection in list(self._by_name.values()):
            connection.abort()
        shutil.rmtree(self._folder, ignore_errors=True)

    def admit(self, via: str, peer: str) -> FrontConnection | None:
        """Count a connection that a relay brings, and return its protocol. None: there is no room.

        Its socket is still to come. `gone` undoes it.

        Args:
            via: The relay. No address can be written like it.
            peer: The client's address, by the relay's word.
        """
        address = f"{via}/{peer_key(peer)}"
        brought, now = self._brought(via), self.clock.monotonic()
        refused = self.table.refusal(address, now)
        if refused is None and brought.refusal(address, now) is not None:
            refused = Refused.RELAY
        if refused is not None:
            self._on_refused(refused)
            return None
        connection = FrontConnection(address, self, via)
        self.table.add(connection)
        brought.add(connection)
        return connection

    def _brought(self, via: str) -> ConnectionTable:
        """The connections of one relay. What one address may have, `table` says."""
        if via not in self._relayed:
            most, limits = self.limits.of_one_relay, self.limits.connections
            self._relayed[via] = ConnectionTable(replace(limits, total=most, per_address=most))
        return self._relayed[via]

    def connection(self, grpc_peer: str) -> FrontConnection | None:
        """Return the connection that a request came over. None: it is gone."""
        return self._by_name.get(grpc_peer)

    def cut_off(self, connection: FrontConnection) -> None:
        """End a connection that abuses us. Its address may come back later, if it never paid."""
        if self._has_paid(connection.address) or connection.trusted:
            connection.abort()
        else:
            self.table.bar(connection.address, self.clock.monotonic() + BAR_S)

    # --- for connections

    def fruitless(self, connection: FrontConnection) -> None:
        """gRPC closed a connection that never brought a request."""
        if self._fruitless.take(connection.address, self.clock.monotonic()):
            self.cut_off(connection)

    def dial(self, connection: FrontConnection) -> socket.socket:
        """Connect to gRPC under a name that only this connection has."""
        path = self._folder / f"c{next(self._numbers)}"
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.bind(str(path))
            sock.connect(str(self._folder / "grpc"))
        except OSError:
            sock.close()
            raise
        finally:
            path.unlink(missing_ok=True)
        connection.name = f"unix:{path}"
        self._by_name[connection.name] = connection
        return sock

    def gone(self, connection: FrontConnection) -> None:
        """A client's connection has ended, or never came. It may be told twice."""
        self.table.remove(connection)
        self._by_name.pop(connection.name, None)
        if connection.via in self._relayed:
            self._relayed[connection.via].remove(connection)

    def budget(self, address: str) -> _UnreadBudget:
        """The bytes of unfinished messages that this address shares with others."""
        return self._budgets[self._has_paid(address)]

    def byte_debt_s(self, connection: FrontConnection, size: int, now: float) -> float:
        """Return the seconds for which a connection is not to be read after these bytes."""
        if self._has_paid(connection.address) or connection.trusted:
            return 0.0
        return self._bytes.spend(connection.address, size, now)


def front_of(
    config: WorkerConfig, has_paid: Callable[[str], bool], metrics: Metrics, clock: Clock
) -> Front:
    """Return the front of the job port, with bounds that leave descriptors for everything else."""
    fitting = connections_that_fit(config.max_connections, DESCRIPTORS_EACH)
    limits = ConnectionLimits(
        fitting,
        min(config.connections_per_address, max(1, fitting // 2)),
        opened_per_s=HANDSHAKES_PER_S,
        trusted=parse_networks(config.trusted_proxies),
    )
    relayed = (fitting // 2 if config.listens else fitting) // max(1, len(config.relays))
    return Front(
        FrontLimits(limits, of_one_relay=max(1, relayed)),
        has_paid=has_paid,
        on_refused=lambda why: metrics.connection_refused("jobs", why),
        clock=clock,
    )
