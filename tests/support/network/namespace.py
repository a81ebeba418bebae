"""A network namespace of a process's own, as the inside of a router that lets nothing in.

Inside there is a loopback and nothing else, so nobody outside can dial it. The way out is a
forwarder for each port of the outside loopback: it listens on the same port inside and leads out
over a Unix socket. `python -m tests.support.network.namespace FOLDER PORTS COMMAND…` is that
inside.
"""

from __future__ import annotations

import asyncio
import fcntl
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

UNSHARE = ("unshare", "--user", "--map-root-user", "--net")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def is_allowed() -> bool:
    """Whether this system lets us make a network namespace."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@asynccontextmanager
async def ways_out(folder: Path, ports: Sequence[int]) -> AsyncIterator[tuple[str, ...]]:
    """Lead from inside to these ports of the outside. Yields how a command line inside begins.

    folder: where the Unix sockets lie. It is there.
    """
    servers = []
    for port in ports:
        dial = partial(asyncio.open_connection, "127.0.0.1", port)
        servers.append(await asyncio.start_unix_server(_forward(dial), folder / str(port)))
    inside = (sys.executable, "-P", "-m", "tests.support.network.namespace")
    try:
        yield (*UNSHARE, *inside, str(folder), ",".join(map(str, ports)))
    finally:
        for server in servers:
            server.close()


def listening(pid: int) -> set[str]:
    """The addresses on which anything in a process's namespace takes TCP connections, in hex."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(fields[1].partition(":")[0])
    return found


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _forward(
    dial: Callable[[], Awaitable[Streams]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other = await dial()
        except OSError:
            writer.transport.abort()
            return
        await join_streams((reader, writer), other)

    return pass_on


async def join_streams(one: Streams, other: Streams) -> None:
    """Pass on what comes, both ways, until both have ended."""

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(2**16):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        sink.close()

    await asyncio.gather(copy(one[0], other[1]), copy(other[0], one[1]))


async def _inside(folder: Path, ports: Sequence[int], command: Sequence[str]) -> int:
    _raise_loopback()
    for port in ports:
        dial = partial(asyncio.open_unix_connection, folder / str(port))
        await asyncio.start_server(_forward(dial), "127.0.0.1", port)
    child = await asyncio.create_subprocess_exec(*command)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, child.terminate)
    return await child.wait()


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(sock, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))


if __name__ == "__main__":
    ways = [int(port) for port in sys.argv[2].split(",")]
    sys.exit(asyncio.run(_inside(Path(sys.argv[1]), ways, sys.argv[3:])))
