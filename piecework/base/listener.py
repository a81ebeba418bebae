"""Accept TCP connections within bounds.

asyncio's own accept loop has none. Without a free descriptor it writes a traceback for each place
in the backlog, again and again. This one waits for a second and counts.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Final

from piecework.base.clock import Clock
from piecework.base.connections import ConnectionTable, Refused
from piecework.base.errors import PieceworkError
from piecework.base.rates import peer_key

BACKLOG: Final = 128
"""Connections that wait to be accepted. The accept loop empties it within milliseconds."""
BATCH: Final = 16
"""Connections accepted before other tasks get their turn."""
PAUSE_S: Final = 1.0
"""After an accept that failed."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
RESERVED_DESCRIPTORS: Final = 128
"""Kept for the journal, the chain, the engine, indexes and logs."""

OnRefused = Callable[[Refused], None]


class CannotListen(PieceworkError):
    """The address is taken or not ours."""


class AcceptedConnection(asyncio.Protocol):
    """The protocol of an accepted connection. It is a `Connection`.

    address: what the connection counts under.
    """

    def __init__(self, peer: str) -> None:
        self.address = peer_key(peer)

    @property
    def is_idle(self) -> bool:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError


def raise_descriptor_limit() -> int:
    """Raise the process's limit of open files to the hard limit, and return it.

    A system that has no such limit returns a large number.
    """
    if sys.platform == "win32":
        return 1 << 20
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
    return wanted


def connections_that_fit(wanted: int, descriptors_each: int) -> int:
    """Return how many connections to hold at most, so that descriptors for the rest remain."""
    free = raise_descriptor_limit() - RESERVED_DESCRIPTORS
    return max(8, min(wanted, free // descriptors_each))


def bind(host: str, port: int) -> list[socket.socket]:
    """Bind and listen on every address of a host; port 0 picks a free one.

    Connections wait in the backlog until a `Listener` takes them.

    Raises:
        CannotListen: the address is taken, or is not ours. The text is one line.
    """
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        for family, _, _, _, address in dict.fromkeys(found):
            actual = made[0].getsockname()[1] if made else port
            made.append(_listening(family, (str(address[0]), actual)))
    except OSError as error:
        for sock in made:
            sock.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {_why(error)}") from None
    return made


def _listening(family: int, address: tuple[str, int]) -> socket.socket:
    sock = socket.create_server(
        address, family=family, backlog=BACKLOG, reuse_port=False, dualstack_ipv6=False
    )
    sock.setblocking(False)
    return sock


def _why(error: OSError) -> str:
    """Python's own text repeats the address as Python writes it."""
    if isinstance(error, socket.gaierror):
        return "the host name was not found"
    return os.strerror(error.errno).lower() if error.errno else str(error)


class Listener:
    """Accepts on bound sockets, within the bounds of a table.

    connect: makes the protocol of one connection of a peer.
    on_refused: told of each connection that was closed at once.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        table: ConnectionTable,
        connect: Callable[[str], AcceptedConnection],
        *,
        on_refused: OnRefused,
        clock: Clock,
    ) -> None:
        self.sockets, self.table = list(sockets), table
        self._connect, self._on_refused, self._clock = connect, on_refused, clock
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port of the first socket."""
        return int(self.sockets[0].getsockname()[1])

    def start(self) -> None:
        """Accept from now on."""
        for sock in self.sockets:
            self._spawn(asyncio.get_running_loop().create_task(self._accept(sock), name="accept"))

    async def close(self) -> None:
        """Accept nothing more. Open connections stay."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self.sockets:
            sock.close()

    def _spawn(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, sock: socket.socket) -> None:
        loop, taken = asyncio.get_running_loop(), 0
        while True:
            try:
                accepted, peer = await loop.sock_accept(sock)
            except ConnectionError:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._on_refused(Refused.DESCRIPTORS)
                await asyncio.sleep(PAUSE_S)
                continue
            self._take(accepted, str(peer[0]))
            taken += 1
            if taken % BATCH == 0:
                await asyncio.sleep(0)

    def _take(self, accepted: socket.socket, peer: str) -> None:
        refused = self.table.refusal(peer, self._clock.monotonic())
        if refused is not None:
            accepted.close()
            self._on_refused(refused)
            return
        protocol = self._connect(peer)
        self.table.add(protocol)
        loop = asyncio.get_running_loop()
        self._spawn(loop.create_task(self._attach(protocol, accepted), name="connection"))

    async def _attach(self, protocol: AcceptedConnection, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            # asyncio does this only for sockets that name TCP as their protocol, and ours name
            # none. Without it a small answer waits 40 ms for the acknowledgement of the one before.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: protocol, accepted)
        except OSError:
            self._drop(protocol, accepted)
        except asyncio.CancelledError:
            self._drop(protocol, accepted)
            raise

    def _drop(self, protocol: AcceptedConnection, accepted: socket.socket) -> None:
        accepted.close()
        self.table.remove(protocol)
