"""A server that takes anything and does nothing: `python -m bench.hostile_sink tls|tcp`.

An attacker sends it the same load as it sends to us. What an honest client then loses, it loses to
the load on the machine and not to our handling of it. So the TCP sink closes connections that come
faster than our servers take them: closed ones come back, and that is load too. It prints its port.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import sys
import tempfile
import time
from pathlib import Path

from bench.hostile_http2 import SETTING_INITIAL_WINDOW, SETTINGS, WINDOW_UPDATE, frame
from piecework.base.connections import ConnectionLimits
from piecework.base.listener import raise_descriptor_limit
from piecework.base.rates import Rate, RateLimiter
from piecework_node.keys.tls import create_tls
from piecework_protocol.types import Address, Timestamp

OPEN_WINDOW = 2**31 - 1
"""So that flow control never stops the attacker."""


class Sink(asyncio.Protocol):
    """Reads and forgets. `opened` bounds how fast connections come. None: it takes all."""

    def __init__(self, greeting: bytes, opened: RateLimiter | None) -> None:
        self._greeting, self._opened = greeting, opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._opened is not None and self._opened.take("", time.monotonic()):
            transport.close()
        elif isinstance(transport, asyncio.WriteTransport) and self._greeting:
            transport.write(self._greeting)


def tls_context() -> ssl.SSLContext:
    """A certificate as a worker has one."""
    certificate, key = create_tls(Address(bytes(20)), Timestamp(int(time.time())))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "both.pem"
        both.write_bytes(certificate + key)
        context.load_cert_chain(both)
    return context


async def serve(kind: str) -> None:
    """Sink until killed."""
    raise_descriptor_limit()
    windows = struct.pack(">HI", SETTING_INITIAL_WINDOW, OPEN_WINDOW)
    more = struct.pack(">I", OPEN_WINDOW - 65_535)
    hello = frame(SETTINGS, 0, 0, windows) + frame(WINDOW_UPDATE, 0, 0, more)
    tls = kind == "tls"
    limits = ConnectionLimits(1, 1)
    rate = RateLimiter(Rate(limits.opened_per_s, limits.opened_burst), keys=1)
    server = await asyncio.get_running_loop().create_server(
        lambda: Sink(hello, None) if tls else Sink(b"", rate),
        "127.0.0.1",
        0,
        ssl=tls_context() if tls else None,
        backlog=1024,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
