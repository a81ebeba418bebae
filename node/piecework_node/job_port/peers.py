"""How much each address, each paying channel and all strangers together may ask of the job port.

Pure bookkeeping: time is an argument. A stranger is an address that no paying channel has come
from lately. Strangers together get half of the streams, so that they cannot shut out who pays. A
stream counts against its address until its job is admitted. From then on the worker's slots and
queue bound it.

Of a client behind a relay only the relay says where it comes from, and a relay may lie. So such
addresses count within their relay, and all that never paid has, for each relay, a bound on its
streams and its rate.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from piecework.base.clock import Clock
from piecework.base.errors import PieceworkError
from piecework.base.rates import Rate, RateLimiter
from piecework_node.job_port.front import Front, FrontConnection
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.types import ChannelId

MAX_PEERS: Final = 10_000
"""Addresses and channels whose rates are kept. The longest idle one is forgotten first, which only
favours it."""
BURST_S: Final = 10.0
"""A peer may save up this many seconds' worth of requests."""
ABUSE: Final = 10
"""An address that asks this many times faster than its rate is cut off."""
ABUSE_BURST_S: Final = 2.0
"""At that speed. A refusal costs as much as a small answer."""
PAID_STREAMS: Final = 4
"""An address that has paid may hold this many times the streams of a stranger."""
RELAY_STREAMS: Final = 4
"""All strangers of one relay together get at most one in so many streams."""
RELAY_RATE: Final = 16
"""And so many times the rate of one address."""
FULL_RETRY_S: Final = 1.0


class Abuse(PieceworkError):
    """A peer whose connection is to be cut off."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """How much may be asked.

    streams: at once, over all addresses.
    streams_per_address: of a stranger, apart from admitted jobs.
    requests_per_minute: of one address.
    paid_requests_per_minute: of one channel that has paid.
    standing_s: how long an address counts as having paid, in seconds.
    """

    streams: int
    streams_per_address: int
    requests_per_minute: float
    paid_requests_per_minute: float
    standing_s: float = 3600.0


class Visit(Protocol):
    """One open stream, as its handler sees it."""

    @property
    def wait_s(self) -> float:
        """Above 0: the address has used up its rate, and has to wait for so long."""
        ...

    def channel_wait_s(self, channel: ChannelId) -> float:
        """Count a request of a channel that has paid. Returns how long it has to wait, or 0."""
        ...

    def message_taken(self, size: int) -> None:
        """A whole message of `size` bytes has arrived."""
        ...

    def admit(self) -> None:
        """The stream carries an admitted job from now on."""
        ...

    def paid(self) -> None:
        """The stream's channel has paid."""
        ...

    def cut_off(self) -> None:
        """Close the connection. Its client broke a bound."""
        ...


class Entrance(Protocol):
    """Where streams come in."""

    def visit(self, peer: str) -> AbstractContextManager[Visit]:
        """Count a stream while it is open. `peer` is what gRPC calls its other end.

        Raises:
            Abuse: the connection was cut off.
            Refusal: there are too many streams.
        """
        ...


@dataclass(slots=True)
class Stream:
    """An open stream of a connection."""

    connection: FrontConnection
    wait_s: float
    stranger: bool
    """Its address had not paid when it came."""
    admitted: bool = False


class Peers:
    """Every open stream, and what may still be asked."""

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._soft = _limiter(limits.requests_per_minute)
        self._hard = _limiter(limits.requests_per_minute * ABUSE, ABUSE_BURST_S)
        self._relays = _limiter(limits.requests_per_minute * RELAY_RATE)
        self._channels = _limiter(limits.paid_requests_per_minute)
        self._paid: OrderedDict[str, float] = OrderedDict()
        self._now = 0.0
        self._waiting: dict[str, Counter[FrontConnection]] = {}
        self._strangers_of: Counter[str] = Counter()
        """By relay: streams of addresses that had not paid, apart from admitted jobs."""
        self._strangers = 0
        self._total = 0

    # --- who pays

    def paid(self, address: str, now: float) -> None:
        """A channel that has paid came from this address."""
        self._paid.pop(address, None)
        self._paid[address] = self._now = now
        if len(self._paid) > MAX_PEERS:
            self._paid.popitem(last=False)

    def has_paid(self, address: str) -> bool:
        """Whether a paying channel came from this address lately."""
        at = self._paid.get(address)
        return at is not None and self._now - at < self._limits.standing_s

    # --- rates

    def channel_wait_s(self, channel: ChannelId, now: float) -> float:
        """Count a request of a channel that has paid. Returns how long it has to wait, or 0."""
        return self._channels.take(channel, now)

    def _wait_s(self, address: str, now: float) -> float:
        if self._hard.take(address, now):
            raise Abuse
        return self._soft.take(address, now)

    # --- streams

    @property
    def strangers(self) -> int:
        """Open streams of addresses that had not paid, apart from admitted jobs."""
        return self._strangers

    @contextmanager
    def stream(self, connection: FrontConnection, now: float) -> Iterator[Stream]:
        """Count a stream while it is open.

        Raises:
            Abuse: the connection is to be cut off.
            Refusal: there are too many streams.
        """
        self._now = max(self._now, now)
        connection.asked = True
        address, paid = connection.address, self.has_paid(connection.address)
        wait_s = 0.0 if connection.trusted else self._wait_s(address, now)
        if connection.via and not paid and not wait_s:
            # One that has used up its own rate takes nothing from the others of its relay.
            wait_s = self._relays.take(connection.via, now)
        self._check_room(connection, paid=paid)
        stream = Stream(connection, 0.0 if paid else wait_s, stranger=not paid)
        connection.streams += 1
        self._total += 1
        self._strangers += stream.stranger
        self._strangers_of[connection.via] += stream.stranger
        self._waiting.setdefault(address, Counter())[connection] += 1
        try:
            yield stream
        finally:
            connection.streams -= 1
            self._total -= 1
            self.admit(stream)

    def admit(self, stream: Stream) -> None:
        """Count a stream no longer against its address. It may be called twice."""
        if stream.admitted:
            return
        stream.admitted = True
        connection = stream.connection
        self._strangers -= stream.stranger
        self._strangers_of[connection.via] -= stream.stranger
        mine = self._waiting[connection.address]
        mine[connection] -= 1
        if not mine[connection]:
            del mine[connection]
        if not mine:
            del self._waiting[connection.address]

    def _check_room(self, connection: FrontConnection, *, paid: bool) -> None:
        most = self._limits.streams_per_address * (PAID_STREAMS if paid else 1)
        here = self._waiting.get(connection.address, Counter()).total()
        if not connection.trusted and here >= most:
            raise _full("too many open requests of this address")
        if self._total >= self._limits.streams:
            raise _full("the worker has too many open requests")
        of_relay = self._strangers_of[connection.via] if connection.via and not paid else 0
        if of_relay >= max(1, self._limits.streams // RELAY_STREAMS):
            self._make_room(here, connection.via)
            raise _full("too many open requests of this relay")
        if not paid and self._strangers >= max(1, self._limits.streams // 2):
            self._make_room(here)
            raise _full("too many open requests of addresses that have not paid yet")

    def _make_room(self, newcomer: int, via: str = "") -> None:
        """Cut off the connection that holds most, if its address holds more than the newcomer.

        Args:
            newcomer: Streams of its address.
            via: Look among the addresses of this relay that have not paid. Empty: among all.
        """
        holders = [
            mine
            for address, mine in self._waiting.items()
            if not via or (address.startswith(f"{via}/") and not self.has_paid(address))
        ]
        largest = max(holders, key=lambda mine: mine.total(), default=Counter())
        if largest.total() > newcomer + 1:
            largest.most_common(1)[0][0].abort()


def _limiter(per_minute: float, burst_s: float = BURST_S) -> RateLimiter:
    return RateLimiter(
        Rate.per_minute(per_minute, max(1.0, per_minute / 60 * burst_s)), keys=MAX_PEERS
    )


def _full(message: str) -> Refusal:
    return Refusal(Reason.RATE_LIMITED, message, retry_after_s=FULL_RETRY_S)


class _FrontVisit:
    """One stream behind the front. Implements `Visit`."""

    def __init__(self, stream: Stream, entrance: FrontEntrance) -> None:
        self._stream, self._entrance = stream, entrance

    @property
    def wait_s(self) -> float:
        return self._stream.wait_s

    def channel_wait_s(self, channel: ChannelId) -> float:
        return self._entrance.peers.channel_wait_s(channel, self._entrance.now())

    def message_taken(self, size: int) -> None:
        self._stream.connection.message_taken(size)

    def admit(self) -> None:
        self._entrance.peers.admit(self._stream)

    def paid(self) -> None:
        # A relay that many clients share is never in good standing itself.
        if not self._stream.connection.trusted:
            self._entrance.peers.paid(self._stream.connection.address, self._entrance.now())

    def cut_off(self) -> None:
        self._stream.connection.abort()


class FrontEntrance:
    """Streams that come through the front. Implements `Entrance`."""

    def __init__(self, front: Front, peers: Peers, clock: Clock) -> None:
        self._front, self.peers, self._clock = front, peers, clock

    def now(self) -> float:
        return self._clock.monotonic()

    @contextmanager
    def visit(self, peer: str) -> Iterator[Visit]:
        connection = self._front.connection(peer)
        if connection is None:
            raise Abuse
        try:
            with self.peers.stream(connection, self.now()) as stream:
                yield _FrontVisit(stream, self)
        except Abuse:
            self._front.cut_off(connection)
            raise
