"""The worker's side of relays (clause 2.7): join each one, and take over the clients that it has.

A worker behind a router dials out and listens on no network address. What arrives through a relay
goes to the front as what arrives at the job port does, under bounds of its own. A relay is not
trusted: it says where a client comes from, so that address counts within this relay alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.base.rates import Rate, RateLimiter
from piecework.base.text import one_line
from piecework.chain.errors import SignerError
from piecework_node.endpoints import split_endpoint
from piecework_node.job_port.front import Front, FrontConnection
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.times import now
from piecework_protocol.dialling import MAX_DIAL_BYTES
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import (
    MAX_LINE_BYTES,
    MAX_REFUSAL_CHARACTERS,
    Admitted,
    ChallengeAnswer,
    ClientDeclined,
    Dial,
    Incoming,
    Join,
    NotAdmitted,
    Ping,
    RelayAdmission,
    RelayChallenge,
    RelayLine,
    Take,
    decode_line,
    encode_line,
    encode_opening,
)
from piecework_protocol.signing import AsyncSigner

CONNECT_S: Final = 10.0
ANSWER_S: Final = 20.0
"""For the relay to admit the worker. It may have to ask the chain."""
DIAL_ANSWER_S: Final = 15.0
"""For a relay to dial. It may have to ask the chain, and dials for two seconds."""
PING_S: Final = 15.0
SILENCE_S: Final = 45.0
"""A link over which nothing came for so long is dead. Routers forget silent ones sooner."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
STEADY_S: Final = 60.0
"""A link that lived so long starts with the shortest pause again."""
INCOMING_PER_S: Final = 50.0
INCOMING_BURST: Final = 200.0
"""Clients of one relay. Each costs a TLS handshake."""
LINES_PER_S: Final = 10 * INCOMING_PER_S
LINES_BURST: Final = 10 * INCOMING_BURST
"""Of one relay. More are read later."""
UNREAD_BYTES: Final = 64 * 1024
"""Lines that a relay has not read. With more, it is left."""
JOIN_CHECK: Final = "relay {}"
REACHABLE_CHECK: Final = "reachable"


class RelayAway(PieceworkError):
    """A relay does not answer, or hung up."""


class RelayDeclines(PieceworkError):
    """A relay does not admit this worker. `retry_s`: when to ask again."""

    def __init__(self, message: str, retry_s: float = LONGEST_PAUSE_S) -> None:
        super().__init__(message)
        self.retry_s = retry_s


@dataclass(frozen=True, slots=True)
class RelayCredentials:
    """What a worker proves itself with."""

    operator: AsyncSigner
    domain: Domain
    """Of admissions in this market (`relaying.relay_domain`)."""
    clock: Clock


class RelayLink:
    """An admitted link to one relay."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def join(cls, name: str, credentials: RelayCredentials) -> RelayLink:
        """Dial a relay and prove who we are.

        Raises:
            RelayAway: it does not answer.
            RelayDeclines: it does not admit us.
        """
        host, port = split_endpoint(name)
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(host, port, limit=MAX_LINE_BYTES)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise RelayAway(_why(error)) from None
        link = cls(reader, writer)
        try:
            async with asyncio.timeout(ANSWER_S):
                await link._authenticate(name, credentials)
        except TimeoutError:
            link.close()
            raise RelayAway("it does not answer in time") from None
        except BaseException:
            link.close()
            raise
        return link

    async def _authenticate(self, name: str, credentials: RelayCredentials) -> None:
        self._writer.write(encode_opening(Join(credentials.operator.address)))
        challenge = await self.hear()
        if not isinstance(challenge, RelayChallenge):
            raise RelayDeclines("it does not speak as a relay does")
        if challenge.relay != name:
            calls = one_line(challenge.relay, MAX_REFUSAL_CHARACTERS)
            raise RelayDeclines(f"it calls itself {calls}. Write that name in relays")
        admission = RelayAdmission(name, challenge.nonce, now(credentials.clock))
        try:
            signature = await credentials.operator.typed(credentials.domain, admission)
        except SignerError as error:
            raise RelayAway(str(error)) from None
        self.say(ChallengeAnswer(admission.at, signature))
        verdict = await self.hear()
        if isinstance(verdict, NotAdmitted):
            why = one_line(verdict.why, MAX_REFUSAL_CHARACTERS)
            raise RelayDeclines(why, max(verdict.retry_s, FIRST_PAUSE_S))
        if not isinstance(verdict, Admitted):
            raise RelayDeclines("it does not speak as a relay does")

    @property
    def address(self) -> tuple[str, int]:
        """IP address and port of the relay. Clients are taken over from the very same machine."""
        peer = self._writer.get_extra_info("peername")
        return str(peer[0]), int(peer[1])

    async def hear(self) -> RelayLine:
        """Return the next line.

        Raises:
            RelayAway: the link is over, or what came is not a line.
        """
        try:
            return decode_line(await self._reader.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, OSError):
            raise RelayAway("it hung up") from None
        except (asyncio.LimitOverrunError, MalformedInput):
            raise RelayAway("it said what no relay says") from None

    def say(self, line: RelayLine) -> None:
        """Write a line.

        Raises:
            RelayAway: the relay does not read what is said to it.
        """
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            raise RelayAway("it reads nothing")
        self._writer.write(encode_line(line))

    def close(self) -> None:
        """Hang up."""
        self._writer.transport.abort()


async def ask_to_dial(name: str, request: bytes) -> bytes:
    """Send a relay a signed request to dial, and return its answer (clause 2.8).

    Raises:
        RelayAway: it does not answer, or not as a relay does.
    """
    host, port = split_endpoint(name)
    try:
        async with asyncio.timeout(DIAL_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_DIAL_BYTES)
            try:
                writer.write(encode_opening(Dial()) + request + b"\n")
                return await reader.readuntil(b"\n")
            finally:
                writer.transport.abort()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        raise RelayAway("it hung up, or is of an earlier release") from None
    except (OSError, TimeoutError, UnicodeError) as error:
        raise RelayAway(_why(error)) from None


class RelayDialer:
    """Keeps the link to one relay, and takes over its clients."""

    def __init__(
        self,
        name: str,
        number: int,
        credentials: RelayCredentials,
        front: Front,
        on_change: Callable[[], None],
    ) -> None:
        self.name, self._credentials, self._front = name, credentials, front
        self._via, self._on_change = f"relay{number}", on_change
        self._clients: set[asyncio.Task[None]] = set()
        self._rate = RateLimiter(Rate(INCOMING_PER_S, INCOMING_BURST), keys=1)
        self.trouble: RelayAway | RelayDeclines | None = None
        """Why the worker is not reached through this relay. None: not known yet, or it is."""
        self.admitted = False

    @property
    def is_settled(self) -> bool:
        """Whether the first attempt is over."""
        return self.admitted or self.trouble is not None

    async def run(self) -> None:
        """Join, and join again whenever the link is over."""
        pause_s = FIRST_PAUSE_S
        while True:
            began = self._credentials.clock.monotonic()
            try:
                await self._live()
            except (RelayAway, RelayDeclines) as error:
                self._note(error)
                if self._credentials.clock.monotonic() - began > STEADY_S:
                    pause_s = FIRST_PAUSE_S
                least = error.retry_s if isinstance(error, RelayDeclines) else 0.0
            # Workers that lost a relay together must not come back together.
            await asyncio.sleep(max(least, pause_s) * random.uniform(0.5, 1.5))  # noqa: S311
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _live(self) -> None:
        link = await RelayLink.join(self.name, self._credentials)
        lines = RateLimiter(Rate(LINES_PER_S, LINES_BURST), keys=1)
        pinging = asyncio.create_task(self._ping(link), name="relay ping")
        try:
            self._note(None)
            while True:
                try:
                    async with asyncio.timeout(SILENCE_S):
                        line = await link.hear()
                except TimeoutError:
                    raise RelayAway("it is silent") from None
                if isinstance(line, Incoming):
                    self._incoming(link, line)
                await asyncio.sleep(lines.spend(None, 1, self._credentials.clock.monotonic()))
        finally:
            pinging.cancel()
            link.close()

    def _note(self, trouble: RelayAway | RelayDeclines | None) -> None:
        self.admitted, self.trouble = trouble is None, trouble
        self._on_change()

    async def _ping(self, link: RelayLink) -> None:
        while True:
            await asyncio.sleep(PING_S)
            with contextlib.suppress(RelayAway):
                link.say(Ping())

    # --- clients

    def _incoming(self, link: RelayLink, client: Incoming) -> None:
        too_fast = self._rate.take(None, self._credentials.clock.monotonic())
        connection = None if too_fast else self._front.admit(self._via, client.peer)
        if connection is None:
            link.say(ClientDeclined(client.token))
            return
        work = self._take(link.address, client.token, connection)
        task = asyncio.create_task(work, name="relay client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _take(
        self, address: tuple[str, int], token: bytes, connection: FrontConnection
    ) -> None:
        """Dial the relay for one client, and hand the connection to the front."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:  # no descriptor is left
            self._front.gone(connection)
            return
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(sock, address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_sendall(sock, encode_opening(Take(token)))
                await loop.create_connection(lambda: connection, sock=sock)
        except (OSError, TimeoutError):
            sock.close()
            self._front.gone(connection)
        except asyncio.CancelledError:
            sock.close()
            self._front.gone(connection)
            raise

    async def close(self) -> None:
        """End the dials that are under way. Clients that were taken over stay with the front."""
        tasks = list(self._clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Relays:
    """All relays of a worker, and what the offer says of them."""

    def __init__(
        self,
        names: Sequence[str],
        credentials: RelayCredentials,
        front: Front,
        board: FaultBoard,
        *,
        listens: bool,
    ) -> None:
        """`listens`: clients can also dial the worker itself."""
        self._board, self._listens = board, listens
        self._changed = asyncio.Event()
        self.dialers = tuple(
            RelayDialer(name, number, credentials, front, self._note)
            for number, name in enumerate(names)
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The relays through which clients reach the worker now.

        A worker that has nothing else names all of them: an offer needs an address, and a link that
        broke comes back.
        """
        joined = [dialer.name for dialer in self.dialers if dialer.admitted]
        if not joined and not self._listens:
            joined = [dialer.name for dialer in self.dialers]
        return tuple(Endpoint(Route.RELAYED, name) for name in joined)

    @property
    def states(self) -> dict[str, str]:
        """By relay: "joined", or why not."""
        return {
            d.name: "joined" if d.admitted else str(d.trouble or "not asked yet")
            for d in self.dialers
        }

    async def run(self) -> None:
        """Keep every link until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for dialer in self.dialers:
                    group.create_task(dialer.run(), name=f"relay {dialer.name}")
        finally:
            for dialer in self.dialers:
                await dialer.close()

    async def settled(self, within_s: float) -> None:
        """Wait until each relay was tried once, at most so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                while not all(dialer.is_settled for dialer in self.dialers):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def _note(self) -> None:
        self._changed.set()
        for dialer in self.dialers:
            check, trouble = JOIN_CHECK.format(dialer.name), dialer.trouble
            if isinstance(trouble, RelayDeclines):
                detail = f"{dialer.name} does not admit this worker ({trouble})"
                self._board.failed(check, Code.RELAY_DECLINES, detail)
            elif isinstance(trouble, RelayAway):
                detail = f"{dialer.name} does not answer ({trouble})"
                self._board.failed(check, Code.RELAY_AWAY, detail)
            else:
                self._board.passed(check)
        unsettled = any(not dialer.is_settled for dialer in self.dialers)
        if self._listens or unsettled or any(dialer.admitted for dialer in self.dialers):
            self._board.passed(REACHABLE_CHECK)
        else:
            detail = "no relay is joined, and the worker listens on no address"
            self._board.failed(REACHABLE_CHECK, Code.UNREACHABLE, detail)


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, UnicodeError):
        return "the host is not a name"
    return getattr(error, "strerror", None) or type(error).__name__
