"""Dial an address that somebody else named, and see only whose TLS certificate answers.

Whoever names an address may name one that is none of its business. So a name is resolved once, all
of its addresses are judged, and a judged address is dialled, never the name again. Nothing is sent
but a TLS handshake, nothing is read but one, and both end within seconds.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, Final

from piecework.base.errors import PieceworkError
from piecework.base.hosts import is_address, is_public

DIAL_S: Final = 2.0
"""For the name, and again for connection and handshake."""
MAX_HANDSHAKE_BYTES: Final = 64 * 1024
"""Read of whatever answers. A handshake with a chain of certificates takes less than 10 KiB."""
MAX_DIALLED: Final = 4
"""Addresses of one name that are tried. More are judged."""
MAX_LOOKUPS: Final = 32
"""Names looked up at once. One that hangs holds its place until the system gives up, which takes
half a minute. Whoever asks may name a server of names that hangs, so there are many places."""
PLACE_S: Final = 1.0
"""To wait for such a place."""
_READ_BYTES: Final = 16 * 1024

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Gives the IP addresses of a host.

Raises:
    OSError: it has none, or nobody says.
    LookupsBusy: nobody was asked.
"""


class LookupsBusy(PieceworkError):
    """All places for lookups are taken. That says nothing about the host."""


class Dialled(enum.Enum):
    """What became of a dial."""

    REACHED = "reached"
    """The certificate that was expected answers."""
    NO_NAME = "no-name"
    """The host name has no address, or nobody says one in time."""
    NOT_PUBLIC = "not-public"
    """The host has an address that cannot be reached from everywhere."""
    NO_ANSWER = "no-answer"
    """No connection is taken, or not in time."""
    NO_TLS = "no-tls"
    """Something takes connections and does not speak TLS."""
    OTHER_CERTIFICATE = "other-certificate"
    """Something speaks TLS with another certificate."""


class SystemResolver:
    """Asks the system, in threads of its own: one that hangs must not hold up anything else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, thread_name_prefix="lookup")
        self._places = asyncio.Semaphore(MAX_LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a host, IPv4 first."""
        try:
            async with asyncio.timeout(PLACE_S):
                await self._places.acquire()
        except TimeoutError:
            raise LookupsBusy("too many names are being looked up") from None
        try:
            found = asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except BaseException:
            self._places.release()
            raise
        # A caller that gives up leaves the thread behind, and the place with it.
        found.add_done_callback(self._ended)
        answers = await asyncio.shield(found)
        by_family = sorted(answers, key=lambda answer: answer[0] != socket.AF_INET)
        return list(dict.fromkeys(str(answer[4][0]) for answer in by_family))

    def _ended(self, lookup: asyncio.Future[Any]) -> None:
        self._places.release()
        if not lookup.cancelled():
            lookup.exception()  # nobody else may be left to take it


class Dialler:
    """Dials addresses of others. `public_only`: no address that only some machines reach."""

    def __init__(
        self, *, public_only: bool, resolve: Resolve | None = None, seconds: float = DIAL_S
    ) -> None:
        self._public_only, self._seconds = public_only, seconds
        self._resolve = resolve

    async def look_up(self, host: str, port: int) -> Sequence[str] | Dialled:
        """Give the addresses that a host has, or why they are not dialled. Nobody is dialled.

        Raises:
            LookupsBusy: the name was not looked up, for want of a place.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._addresses(host, port)
        except TimeoutError:
            return Dialled.NO_NAME

    async def dial(
        self, addresses: Sequence[str] | Dialled, port: int, server_name: str, pin: bytes
    ) -> Dialled:
        """Say whether a certificate with this SHA-256 answers to a TLS server name at an address.

        It raises nothing that comes from the other side. `addresses`: what `look_up` gave.
        """
        if isinstance(addresses, Dialled):
            return addresses
        found = Dialled.NO_ANSWER
        try:
            async with asyncio.timeout(self._seconds):
                sock = await self._connect(addresses, port)
                if sock is None:
                    return found
                found = Dialled.NO_TLS
                with sock:
                    certificate = await _certificate(sock, server_name)
        except TimeoutError:
            return found
        if certificate is None:
            return Dialled.NO_TLS
        same = sha256(certificate).digest() == pin
        return Dialled.REACHED if same else Dialled.OTHER_CERTIFICATE

    async def _addresses(self, host: str, port: int) -> Sequence[str] | Dialled:
        found: Sequence[str]
        try:
            found = [host] if _is_plain(host) else await self._looked_up(host, port)
        except (OSError, UnicodeError):
            return Dialled.NO_NAME
        if not found:
            return Dialled.NO_NAME
        if self._public_only and not all(map(is_public, found)):
            return Dialled.NOT_PUBLIC
        return found

    async def _looked_up(self, host: str, port: int) -> Sequence[str]:
        if self._resolve is None:  # here, because it belongs to the running loop
            self._resolve = SystemResolver()
        return await self._resolve(host, port)

    async def _connect(self, addresses: Sequence[str], port: int) -> socket.socket | None:
        """Connect to the first address that takes a connection. Each gets its share of the time."""
        tried = addresses[:MAX_DIALLED]
        for address in tried:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                async with asyncio.timeout(self._seconds / len(tried)):
                    await asyncio.get_running_loop().sock_connect(sock, (address, port))
            except (OSError, TimeoutError):
                sock.close()
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        return None


def _is_plain(host: str) -> bool:
    """Whether a host is an IP address, without a zone. It waits for no lookup of a name."""
    return "%" not in host and is_address(host)


async def _certificate(sock: socket.socket, server_name: str) -> bytes | None:
    """Make a TLS handshake by hand, and return the certificate. None: it is not one of TLS.

    By hand, because then not a byte beyond the handshake is asked for. TLS itself proves that the
    other side has the certificate's key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the pin is what counts
    context.set_alpn_protocols(["h2"])
    loop, read = asyncio.get_running_loop(), 0
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await loop.sock_sendall(sock, outgoing.read())
            data = await loop.sock_recv(sock, _READ_BYTES)
            read += len(data)
            if not data or read > MAX_HANDSHAKE_BYTES:
                return None
            incoming.write(data)
        await loop.sock_sendall(sock, outgoing.read())
        return tls.getpeercert(binary_form=True)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return None
