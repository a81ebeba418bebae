"""Something that listens on loopback and answers as told: TLS, or anything else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from piecework_node.keys.tls import create_tls, load_tls
from piecework_protocol.types import Address, Digest, Timestamp

_NO_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)
"""It says that it is data of TLS 1.3."""


def _context(operator: Address) -> tuple[ssl.SSLContext, Digest]:
    """A worker's certificate as a server shows it, and its pin."""
    certificate, key = create_tls(operator, Timestamp(1_750_000_000))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as folder:
        files = Path(folder, "tls.pem"), Path(folder, "tls.key")
        for file, content in zip(files, (certificate, key), strict=True):
            file.write_bytes(content)
        context.load_cert_chain(*files)
        return context, load_tls(*files, operator).digest


@asynccontextmanager
async def tls_listener(operator: Address) -> AsyncIterator[tuple[int, Digest, list[str]]]:
    """Answer TLS with a worker's certificate. Gives port, pin, and the server names asked for."""
    context, pin = _context(operator)
    names: list[str] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    server = await asyncio.start_server(
        lambda _, writer: writer.transport.abort(), "127.0.0.1", 0, ssl=context
    )
    try:
        yield server.sockets[0].getsockname()[1], pin, names
    finally:
        server.close()


@asynccontextmanager
async def spoilt_tls_listener(operator: Address) -> AsyncIterator[int]:
    """Answer TLS, with a record behind the handshake that no key fits. Gives the port.

    Both come in one piece. So the client's TLS has failed before its caller knows that it was up.
    """
    context, _ = _context(operator)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await reader.read(2**14))
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read() + _NO_RECORD)
        await reader.read()

    async with _listening(answer) as port:
        yield port


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    """Take connections, say these bytes again and again, and give the port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer:
            writer.write(answer)
            await writer.drain()
        await reader.read()

    async with _listening(talk) as port:
        yield port


@asynccontextmanager
async def _listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
