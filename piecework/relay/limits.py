"""The relay's bounds, each with its unit in the name and its reason beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from piecework.base.connections import ConnectionLimits

READ_BYTES: Final = 64 * 1024
WAITING_BYTES: Final = 64 * 1024
"""What waits for a slow reader, in each direction, before the other side is no longer read."""
CLOSING_S: Final = 5.0
"""For the last bytes of a connection whose other side has ended."""
CLIENTS_PER_S: Final = 20.0
CLIENTS_BURST: Final = 60.0
"""New connections of one client address to one worker."""
WORKER_CLIENTS_PER_S: Final = 25.0
WORKER_CLIENTS_BURST: Final = 100.0
"""New connections of all clients of one worker together, whatever their addresses. Each costs the
relay a ClientHello and two connections."""
SPARE_SHARE: Final = 8
"""This part of all connections is kept free of clients: for workers, and for what has not said yet
what it wants."""
JOINS_PER_S: Final = 0.2
JOINS_BURST: Final = 20.0
"""Of one address. Each costs a signature check, and a stranger's one call to the chain as well."""
LINES_PER_S: Final = 50.0
LINES_BURST: Final = 500.0
"""Of a worker's link. It says one line for each client that it declines."""
LINK_WAITING_BYTES: Final = 64 * 1024
"""Lines that a worker's link has not read. With more, clients are told that it is away."""
LINK_SILENCE_S: Final = 45.0
"""A worker says something every 15 seconds."""
SWEEP_S: Final = 5.0
"""Between two looks for connections that are idle."""
REGISTERED_S: Final = 600.0
UNREGISTERED_S: Final = 15.0
"""What the registry said is asked again after this. A new operator need not wait long."""
STALE_S: Final = 24 * 3600.0
"""While the chain does not answer, what it said may be as old as this."""
MAX_OPERATORS: Final = 10_000
"""Operators whose registration is remembered. The one asked longest ago is forgotten first."""
REGISTRY_CALLS: Final = 8
"""At once. More wait, as long as they may."""
REGISTRY_S: Final = 10.0
RETRY_S: Final = 30
"""What a worker that was not admitted waits before it asks again."""


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a relay holds. Times in seconds."""

    connections: ConnectionLimits
    workers: int = 1024
    clients_per_worker: int = 256
    waiting_per_worker: int = 64
    """Clients that the worker has not taken over yet."""
    opening_s: float = 5.0
    """For a ClientHello, or for a worker's first line and its answer to the challenge."""
    take_s: float = 10.0
    """For the worker to take a client over."""
    idle_s: float = 120.0
    """A client's connection without a byte is closed. Workers and clients ping more often."""
