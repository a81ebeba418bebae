"""Wall time as the protocol counts it."""

from __future__ import annotations

from piecework.base.clock import Clock
from piecework_protocol.types import Timestamp


def now(clock: Clock) -> Timestamp:
    """Return whole seconds since the Unix epoch, to compare with deadlines and expiries."""
    return Timestamp(int(clock.wall()))
