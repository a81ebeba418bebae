"""Sources that failed rest, longer after each failure in a row. Pure."""

from __future__ import annotations

from collections.abc import Hashable


class Rests:
    """Who rests until when. Times are seconds of one monotonic clock."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._known: dict[Hashable, tuple[int, float]] = {}

    def left(self, who: Hashable, now: float) -> float:
        """Return the seconds for which a source still rests, 0 when it may be asked."""
        return max(0.0, self._known.get(who, (0, now))[1] - now)

    def failed(self, who: Hashable, now: float) -> None:
        """Let a source rest: the first pause, doubled for each failure in a row."""
        failures = self._known.get(who, (0, now))[0]
        pause = min(self._longest_s, self._first_s * 2 ** min(failures, 32))
        self._known[who] = (failures + 1, now + pause)

    def worked(self, who: Hashable) -> None:
        """Forget the failures of a source."""
        self._known.pop(who, None)
