"""A worker's link to the relay: who it is, which clients wait for it, and what the two say."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, cast

from piecework.base.clock import Clock
from piecework.base.connections import ConnectionLimits, ConnectionTable, Refused
from piecework.base.errors import PieceworkError
from piecework.base.rates import Rate, RateLimiter
from piecework.relay.connection import RelayConnection
from piecework.relay.limits import (
    CLIENTS_BURST,
    CLIENTS_PER_S,
    LINES_BURST,
    LINES_PER_S,
    LINK_SILENCE_S,
    LINK_WAITING_BYTES,
    RETRY_S,
    RelayLimits,
)
from piecework.relay.operators import RegisteredOperators, RegistryAway
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CLOCK_SKEW_S
from piecework_protocol.relaying import (
    MAX_LINE_BYTES,
    TOKEN_BYTES,
    Admitted,
    ChallengeAnswer,
    ClientDeclined,
    Incoming,
    NotAdmitted,
    Ping,
    RelayAdmission,
    RelayChallenge,
    RelayLine,
    decode_line,
    encode_line,
)
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Address, Bytes32, Uint32

SHARE_OF_ONE_ADDRESS: Final = 4
"""One client address gets at most this part of a worker's clients."""


class LinkEnded(PieceworkError):
    """A worker's link is over. The text says why."""


class JoinRefused(PieceworkError):
    """A worker is not admitted. The text is for its owner."""


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Decides who may be reached through this relay."""

    name: str
    """The relay's address as workers and clients write it."""
    domain: Domain
    operators: RegisteredOperators
    clock: Clock

    async def admit(
        self, operator: Address, challenge: RelayChallenge, answer: ChallengeAnswer
    ) -> None:
        """Check a worker's answer. The signature comes first, because it costs no call.

        Raises:
            JoinRefused: the worker is not admitted.
        """
        signed = RelayAdmission(self.name, challenge.nonce, answer.at)
        if not signed_by(self.domain, signed, answer.signature, operator):
            raise JoinRefused(f"the operator did not sign for the relay {self.name} of this market")
        if abs(answer.at - self.clock.wall()) > MAX_CLOCK_SKEW_S:
            raise JoinRefused("the worker's clock and the relay's differ. Check both")
        try:
            registered = await self.operators.is_registered(operator)
        except RegistryAway as error:
            raise JoinRefused(f"{error}. Try again later") from None
        if not registered:
            raise JoinRefused("the operator has no active stake. Register first")


class JoinedWorker:
    """One worker behind the relay. `serve` lives as long as its link."""

    def __init__(
        self,
        operator: Address,
        link: RelayConnection,
        gatekeeper: Gatekeeper,
        limits: RelayLimits,
    ) -> None:
        self.operator, self._link = operator, link
        self._gatekeeper, self._limits, self._clock = gatekeeper, limits, gatekeeper.clock
        self._waiting: dict[bytes, RelayConnection] = {}
        most = limits.clients_per_worker
        self.clients = ConnectionTable(
            ConnectionLimits(
                most, max(1, most // SHARE_OF_ONE_ADDRESS), CLIENTS_PER_S, CLIENTS_BURST
            )
        )
        self._reader, self._writer = link.streams(MAX_LINE_BYTES)

    # --- clients

    @property
    def waiting(self) -> int:
        """Clients that the worker has not taken over yet."""
        return len(self._waiting)

    def call(self, client: RelayConnection) -> tuple[bytes, str]:
        """Tell the worker of a client. Returns its token, or no bytes and why not."""
        if self._is_behind or self.waiting >= self._limits.waiting_per_worker:
            return b"", "worker_slow"
        refused = self.clients.refusal(client.peer, self._clock.monotonic())
        if refused is not None and not (refused is Refused.TOTAL and self._make_room(client.peer)):
            return b"", f"worker_{refused}"
        token = secrets.token_bytes(TOKEN_BYTES)
        self._waiting[token] = client
        self.clients.add(client)
        client.arm(self._limits.take_s)
        self._say(Incoming(token, client.peer))
        return token, ""

    def _make_room(self, newcomer: str) -> bool:
        """Close the longest quiet client of the address that has most, if it has more.

        Nobody sees here whether it has a job. But a few addresses must not keep out all others.
        """
        for held in self.clients.above(newcomer):
            longest = min(cast(Collection[RelayConnection], held), key=lambda c: c.moved_at)
            self.clients.remove(longest)
            longest.abort()
            return True
        return False

    @property
    def _is_behind(self) -> bool:
        """Whether the worker does not read what is said to it."""
        return bool(self._writer.transport.get_write_buffer_size() > LINK_WAITING_BYTES)

    def taken(self, token: bytes) -> RelayConnection | None:
        """Hand over the client of a token, once."""
        client = self._waiting.pop(token, None)
        return client if client is not None and client.is_open else None

    def gone(self, token: bytes, client: RelayConnection) -> None:
        """A client has ended."""
        self._waiting.pop(token, None)
        self.clients.remove(client)

    # --- the link

    async def authenticate(self) -> None:
        """Let the worker prove who it is.

        Raises:
            LinkEnded: it did not, and was told why if it listens.
        """
        challenge = RelayChallenge(self._gatekeeper.name, Bytes32(secrets.token_bytes(32)))
        self._say(challenge)
        answer = await self._hear()
        self._link.disarm()
        if not isinstance(answer, ChallengeAnswer):
            raise LinkEnded("no answer to the challenge")
        try:
            await self._gatekeeper.admit(self.operator, challenge, answer)
        except JoinRefused as error:
            self.refuse(str(error))
            raise LinkEnded(str(error)) from None

    def refuse(self, why: str) -> None:
        """Tell the worker that it is not admitted."""
        self._say(NotAdmitted(why, Uint32(RETRY_S)))

    async def serve(self, count: Callable[[str], None]) -> None:
        """Live with an admitted worker until its link is over.

        Raises:
            LinkEnded: it is. The text says why.
        """
        self._say(Admitted(Uint32(self._limits.clients_per_worker)))
        rate = RateLimiter(Rate(LINES_PER_S, LINES_BURST), keys=1)
        while True:
            line = await self._hear()
            if rate.take(None, self._clock.monotonic()):
                raise LinkEnded("too many lines")
            match line:
                case Ping():
                    if self._is_behind:
                        raise LinkEnded("the worker reads nothing")
                    await self._check_again()
                    self._say(Ping())
                case ClientDeclined(token):
                    client = self.taken(token)
                    if client is not None:
                        count("worker_declined")
                        client.abort()
                case _:
                    raise LinkEnded("a line that is not for a relay")

    async def _check_again(self) -> None:
        try:
            if not await self._gatekeeper.operators.is_registered(self.operator):
                raise LinkEnded("the operator has no active stake any more")
        except RegistryAway:
            return  # admitted earlier; whether it still is will show later

    async def _hear(self) -> RelayLine:
        try:
            async with asyncio.timeout(LINK_SILENCE_S):
                data = await self._reader.readuntil(b"\n")
            return decode_line(data)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise LinkEnded("the worker hung up") from None
        except TimeoutError:
            raise LinkEnded("the worker is silent") from None
        except (asyncio.LimitOverrunError, MalformedInput):
            raise LinkEnded("a line that is none") from None

    def _say(self, line: RelayLine) -> None:
        self._writer.write(encode_line(line))

    def close(self) -> None:
        """End the link, and every client that the worker has not taken over."""
        for client in list(self._waiting.values()):
            client.abort()
        self._waiting.clear()
        self._link.finish()
