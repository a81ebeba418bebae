"""A cable that a test can pull: a port of loopback that leads to another one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.network.namespace import join_streams


class Wire:
    """Leads from `port` to `leads_to`, which may be set later."""

    def __init__(self) -> None:
        self.port = self.leads_to = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where it begins."""
        return f"127.0.0.1:{self.port}"

    async def up(self) -> None:
        """Take connections, at the same port as before."""
        if self._server is not None and self._server.is_serving():
            return
        self._server = await asyncio.start_server(self._lead, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End every connection. New ones pass."""
        for writer in self._writers:
            writer.transport.abort()

    async def down(self) -> None:
        """End every connection, and take no more."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other = await asyncio.open_connection("127.0.0.1", self.leads_to)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, other[1]}
        self._writers |= both
        try:
            await join_streams((reader, writer), other)
        finally:
            self._writers -= both


@asynccontextmanager
async def running_wire(leads_to: int) -> AsyncIterator[Wire]:
    """A wire to this port."""
    wire = Wire()
    wire.leads_to = leads_to
    await wire.up()
    try:
        yield wire
    finally:
        await wire.down()
