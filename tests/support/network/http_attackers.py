"""Clients that break HTTP's manners, for tests of deadlines and bounds."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class RawConnection:
    """A TCP connection that says exactly what a test wants. Use it in a `with` block."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, source: str = "127.0.0.1") -> Self:
        """Connect to this machine from one of its loopback addresses."""
        streams = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        return cls(*streams)

    async def send(self, data: bytes) -> None:
        """Write and flush."""
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the server closes. A reset counts as the end."""
        got = b""
        try:
            while part := await self.reader.read(65536):
                got += part
        except ConnectionError:
            pass
        return got

    async def is_closed(self) -> bool:
        """Whether the server closed without an answer. It waits for one or the other."""
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True

    async def close(self) -> None:
        """Hang up."""
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
