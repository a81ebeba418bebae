"""A relay that does its worst with the bytes that pass it.

It stands in front of an honest relay, so that what it passes on arrives somewhere. Bytes are all
that a relay has.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

from tests.support.waiting import pass_time

CHUNK_BYTES = 64 * 1024
QUIET_CHUNKS = 2
"""Of each direction, which pass. So some sessions get beyond their handshake."""


class Mischief(enum.Enum):
    """What it does to the bytes of one direction."""

    DROP = "drop"
    REPLAY = "replay"
    REORDER = "reorder"
    CHANGE = "change"
    CUT = "cut"
    STALL = "stall"


class HostileRelay:
    """One of these, with a kind of mischief. `done` counts how often it did it."""

    def __init__(self, port: int, mischief: Mischief, chance: Random, quiet: int) -> None:
        self.name, self.done = "", 0
        self.recorded: list[bytes] = []
        """What each client said, from its first byte on."""
        self._port, self._mischief, self._chance = port, mischief, chance
        self._quiet = quiet
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a client on, with mischief in both directions."""
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, ahead}
        number = len(self.recorded)
        self.recorded.append(b"")

        def record(data: bytes) -> None:
            self.recorded[number] += data

        ways = (self._pass(reader, ahead, record), self._pass(behind, writer, lambda _: None))
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in (writer, ahead):
            one.transport.abort()
            self._writers.discard(one)

    def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        record: Callable[[bytes], None],
    ) -> None:
        held, passed = b"", 0
        while data := await reader.read(CHUNK_BYTES):
            record(data)
            passed += 1
            if held:
                data, held = data + held, b""
            elif passed > self._quiet and self._chance.random() < 0.5:
                self.done += 1
                if self._mischief is Mischief.CUT:
                    return
                if self._mischief is Mischief.STALL:
                    await pass_time(3600)
                if self._mischief is Mischief.REORDER:
                    held, data = data, b""
                data = self._spoil(data)
            writer.write(data)
            await writer.drain()

    def _spoil(self, data: bytes) -> bytes:
        match self._mischief:
            case Mischief.DROP:
                return b""
            case Mischief.REPLAY:
                return data + data
            case Mischief.CHANGE:
                at = self._chance.randrange(len(data))
                return (
                    data[:at] + bytes([data[at] ^ 1 << self._chance.randrange(8)]) + data[at + 1 :]
                )
            case _:
                return data


@asynccontextmanager
async def hostile_relay(
    port: int, mischief: Mischief, *, quiet: int = QUIET_CHUNKS
) -> AsyncIterator[HostileRelay]:
    """Run one in front of an honest relay's port. It lets so many chunks a direction pass."""
    relay = HostileRelay(port, mischief, Random(mischief.value), quiet)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        relay.close()
        await server.wait_closed()
