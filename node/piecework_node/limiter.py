"""Token buckets per peer: cheap, bounded, and judged before anything is parsed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from piecework_node.clock import Clock

MAX_PEERS: Final = 10_000
"""Buckets kept; the one that was idle longest is forgotten first, which only ever favours that
peer."""
BURST_S: Final = 10.0
"""A peer may save up this many seconds' worth of requests."""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimiter:
    """`rate` requests a second for each peer."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(1.0, rate * BURST_S)
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def wait_s(self, peer: str) -> float:
        """0 when the request may pass (and is counted), else seconds until it might."""
        now = self._clock.monotonic()
        bucket = self._buckets.pop(peer, None) or _Bucket(self._burst, now)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        self._buckets[peer] = bucket
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) / self._rate


def peer_address(peer: str) -> str:
    """gRPC's "ipv4:10.0.0.1:5000" without the port; an IPv6 peer by its /64, which one host has
    whole."""
    kind, _, rest = peer.partition(":")
    host = rest.rpartition(":")[0]
    if kind != "ipv6":
        return host or peer
    from ipaddress import IPv6Address, IPv6Network
    from urllib.parse import unquote

    address = unquote(host).strip("[]").partition("%")[0]
    try:
        return str(IPv6Network((int(IPv6Address(address)) >> 64 << 64, 64)))
    except ValueError:
        return host
