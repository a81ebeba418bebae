"""Bounds on the connections of a server: in total, for each address, and for each second.

Pure bookkeeping: the caller accepts and closes, and time is an argument. An address is what
`piecework.base.rates.peer_key` makes of a peer: an IPv4 address or an IPv6 /64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Protocol

from piecework.base.rates import Rate, RateLimiter, is_in, peer_key

MAX_ADDRESSES: Final = 10_000
"""Addresses whose rates are kept. The longest idle one is forgotten first."""

Networks = Sequence[IPv4Network | IPv6Network]


def parse_networks(texts: Sequence[str]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks that are written as "10.0.0.0/8" or "10.0.0.1".

    Raises:
        ValueError: one is neither a network nor an address.
    """
    try:
        return tuple(ip_network(text) for text in texts)
    except ValueError as error:
        raise ValueError(f"a trusted proxy is an address or a network: {error}") from None


class Refused(StrEnum):
    """Why a connection was closed as soon as it came. Also a label of metrics."""

    TOTAL = "total"
    ADDRESS = "address"
    RATE = "rate"
    BARRED = "barred"
    DESCRIPTORS = "descriptors"
    RELAY = "relay"


class Connection(Protocol):
    """An open connection, as far as its bounds need it."""

    @property
    def address(self) -> str: ...

    @property
    def is_idle(self) -> bool:
        """Whether closing it would break off nothing."""
        ...

    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections a server holds, and how fast one address may open them.

    trusted: proxies and relays that speak for many clients. The bounds of one address do not
    apply to them.
    """

    total: int
    per_address: int
    opened_per_s: float = 50.0
    opened_burst: float = 200.0
    trusted: Networks = ()


class ConnectionTable:
    """Every open connection of a server, by address."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._open: dict[str, OrderedDict[Connection, None]] = {}
        self._count = 0
        rate = Rate(limits.opened_per_s, limits.opened_burst)
        self._opened = RateLimiter(rate, keys=MAX_ADDRESSES)
        self._barred: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def refusal(self, peer: str, now: float) -> Refused | None:
        """Return why a new connection of `peer` cannot be taken, or None.

        Makes room at the cost of the address that holds most, if that has an idle connection.
        now: monotonic seconds.
        """
        address = peer_key(peer)
        trusted = is_in(peer, self._limits.trusted)
        if not trusted:
            if self._is_barred(address, now):
                return Refused.BARRED
            if len(self._open.get(address, ())) >= self._limits.per_address:
                return Refused.ADDRESS
            if self._opened.take(address, now):
                return Refused.RATE
        if self._count >= self._limits.total and not self._make_room(address):
            return Refused.TOTAL
        return None

    def add(self, connection: Connection) -> None:
        """Count a connection."""
        self._open.setdefault(connection.address, OrderedDict())[connection] = None
        self._count += 1

    def remove(self, connection: Connection) -> None:
        """Count a connection no longer. It may be called twice."""
        mine = self._open.get(connection.address)
        if mine is None or connection not in mine:
            return
        del mine[connection]
        self._count -= 1
        if not mine:
            del self._open[connection.address]

    def bar(self, address: str, until: float) -> None:
        """Take no connection of an address until a moment, and abort those that it has."""
        self._barred.pop(address, None)
        self._barred[address] = until
        if len(self._barred) > MAX_ADDRESSES:
            self._barred.popitem(last=False)
        for connection in list(self._open.get(address, ())):
            connection.abort()

    def abort_all(self) -> None:
        """Abort every connection that is open."""
        for mine in list(self._open.values()):
            for connection in list(mine):
                connection.abort()

    def _is_barred(self, address: str, now: float) -> bool:
        until = self._barred.get(address)
        if until is None:
            return False
        if now >= until:
            del self._barred[address]
            return False
        return True

    def above(self, peer: str) -> Iterator[Collection[Connection]]:
        """The connections of each address that has more than a newcomer would, most first."""
        mine = len(self._open.get(peer_key(peer), ())) + 1
        yield from sorted(
            (held for held in self._open.values() if len(held) > mine), key=len, reverse=True
        )

    def _make_room(self, newcomer: str) -> bool:
        """Close an idle connection of the address that has most of them, if it has more.

        Those that have most may have no idle one, such as a busy worker behind a relay.
        """
        for held in self.above(newcomer):
            for connection in held:
                if connection.is_idle:
                    self.remove(connection)
                    connection.abort()
                    return True
        return False
