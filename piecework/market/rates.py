"""Token buckets, one per peer, bounded in number. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a minute on average, so many at once."""

    per_minute: float
    burst: int


class Buckets:
    """How much each key may still do."""

    def __init__(self, rate: Rate, most: int) -> None:
        self._rate, self._most = rate, most
        self._levels: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def take(self, key: object, now: float) -> float:
        """Take one; 0 if it was there, else the seconds until one will be."""
        per_second = self._rate.per_minute / 60
        level, at = self._levels.pop(key, (float(self._rate.burst), now))
        level = min(float(self._rate.burst), level + max(0.0, now - at) * per_second)
        wait = 0.0 if level >= 1 else (1 - level) / per_second
        self._levels[key] = (level - 1 if wait == 0 else level, now)
        while len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return wait
