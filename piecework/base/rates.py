"""Token buckets, one per key, bounded in number. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Self
from urllib.parse import unquote

from piecework.base.text import one_line

_ROUNDING: Final = 1e-9
"""Tokens. Whoever waits as long as it was told must not find that a rounding error is missing."""
MAX_KEY_CHARACTERS: Final = 64
MAX_HOPS: Final = 32
"""Addresses looked at in a forwarding header."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` a second on average, `burst` at once.

    Raises:
        ValueError: `per_s` is not above 0, or `burst` is below 1.
    """

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not 0 < self.per_s < float("inf") or not 1 <= self.burst < float("inf"):
            raise ValueError("a rate is above 0 a second, with a burst of at least 1")

    @classmethod
    def per_minute(cls, count: float, burst: float) -> Self:
        """`count` a minute on average."""
        return cls(count / 60, burst)


class RateLimiter:
    """How much each key may still do.

    At most `keys` buckets are kept. The one that was idle longest is forgotten first. A forgotten
    key starts with a full bucket, as every new key does.
    """

    def __init__(self, rate: Rate, *, keys: int) -> None:
        if keys < 1:
            raise ValueError("a rate limiter keeps at least one key")
        self._rate, self._keys = rate, keys
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> float:
        """Take one token and return 0, or take none and return the seconds until one is there.

        `now` is monotonic time in seconds. A `now` before the last one counts as no time passed.
        """
        level, at = self._refilled(key, now)
        passes = level >= 1 - _ROUNDING
        self._keep(key, max(0.0, level - 1) if passes else level, at)
        return 0.0 if passes else (1 - level) / self._rate.per_s

    def forgive(self, key: Hashable, wait_s: float, now: float) -> None:
        """Let a key take a token again in `wait_s` seconds, or earlier if it may.

        For one that took a token and was not served, through no fault of its own.
        """
        level, at = self._refilled(key, now)
        self._keep(key, max(level, 1 - wait_s * self._rate.per_s), at)

    def spend(self, key: Hashable, amount: float, now: float) -> float:
        """Take `amount` tokens that are used already, and return the seconds until it is paid off.

        For what can only be counted after the fact, such as bytes that were read. A debt is at
        most one burst, so that no pause is longer than the time to fill a bucket twice.
        """
        level, at = self._refilled(key, now)
        level = max(-self._rate.burst, level - amount)
        self._keep(key, level, at)
        return max(0.0, -level / self._rate.per_s)

    def _refilled(self, key: Hashable, now: float) -> tuple[float, float]:
        level, at = self._buckets.pop(key, (self._rate.burst, now))
        filled = min(self._rate.burst, level + max(0.0, now - at) * self._rate.per_s)
        return filled, max(at, now)

    def _keep(self, key: Hashable, level: float, at: float) -> None:
        self._buckets[key] = (level, at)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)


def peer_key(peer: str) -> str:
    """Return the key under which a peer is counted.

    `peer` is an address ("10.0.0.1", "2001:db8::1%eth0"), with a port or without, or gRPC's form
    ("ipv4:10.0.0.1:5000", "ipv6:%5B::1%5D:5000"). An IPv4 address is its own key, also inside
    IPv6. An IPv6 address is counted by its /64, because one host has all of that. Anything else,
    such as a Unix socket, is its own key, cut to a bounded length.
    """
    address = _address(peer)
    if address is None:
        return one_line(peer, MAX_KEY_CHARACTERS)
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))


def client_behind(
    peer: str, forwarded_for: str, trusted: Sequence[IPv4Network | IPv6Network]
) -> str:
    """Return the address of the client that a chain of trusted proxies speaks for.

    `forwarded_for` is the X-Forwarded-For header, all its lines joined by commas. Each proxy adds
    the address that it saw at the right. The header is believed from the right, as long as the
    one who added to it is in `trusted`. A peer that is not trusted is itself the client.
    """
    client = peer
    hops = forwarded_for.split(",")[-MAX_HOPS:] if forwarded_for else []
    while hops and is_in(client, trusted):
        hop = hops.pop().strip()
        if _address(hop) is None:
            break
        client = hop
    return client


def is_in(peer: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether a peer's address lies in one of the networks."""
    address = _address(peer)
    return address is not None and any(address in network for network in networks)


def _address(peer: str) -> IPv4Address | IPv6Address | None:
    """The IP address in a peer's name. An IPv4 address inside an IPv6 one comes out as IPv4."""
    text = unquote(peer[:128])
    for scheme in ("ipv4:", "ipv6:"):
        text = text.removeprefix(scheme)
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
