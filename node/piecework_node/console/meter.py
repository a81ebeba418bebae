"""Windows over counters that only grow: what happened in a second, and energy by the hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from piecework_node.console.model import ConsoleRates
from piecework_node.owner.readings import GpuReading

WINDOW_S: Final = 60.0
HOUR_S: Final = 3600
MAX_HOURS: Final = 24 * 8


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    tokens: int
    steps: int
    joules: float
    untold: int
    """Samples until now that did not tell what was drawn."""


@dataclass(slots=True)
class JobEnergy:
    """Joules that the cards drew while jobs ran, and the tokens that were charged meanwhile."""

    joules: float | None = None
    """None: the cards have not told."""
    tokens: int = 0
    _seen: int | None = None

    def add(self, drawn: float | None, tokens: int, *, busy: bool) -> None:
        """Take what was drawn since the sample before, and all tokens until now.

        drawn: None where a card did not tell. The tokens of that time count nothing then. busy:
        whether a job took steps. Tokens are charged at the end of a canvas, and its job may be over
        then.
        """
        before, self._seen = self._seen, tokens
        if drawn is None or before is None:
            return
        self.joules = (self.joules or 0.0) + (drawn if busy else 0.0)
        self.tokens += tokens - before


@dataclass(slots=True)
class ConsoleMeter:
    """Takes a sample about once a second. Times are monotonic seconds."""

    _samples: deque[_Sample] = field(default_factory=deque)
    _energy: dict[str, tuple[float, GpuReading]] = field(default_factory=dict)
    """Of each GPU: its last reading, and when that was."""
    _joules: float = 0.0
    _untold: int = 0
    hours: dict[int, float] = field(default_factory=dict)
    """Joules by hour since the epoch, only of hours in which the card told."""

    def remember(self, hours: Mapping[int, float]) -> None:
        """Add what earlier runs drew, in joules by hour since the epoch."""
        for hour, joules in hours.items():
            self.hours[hour] = self.hours.get(hour, 0.0) + joules

    def sample(
        self,
        at: float,
        wall: float,
        *,
        tokens: int,
        steps: int,
        gpus: Mapping[str, GpuReading | None],
        ours: Collection[str],
    ) -> float | None:
        """Take the counters of now, and each GPU's reading by what tells it from the others.

        ours: the GPUs that work for us, not for their owner. If one of them does not tell what it
        draws, the sum is not known.

        Returns joules that ours drew since the sample before. None: not known.
        """
        by_gpu = {name: self._drawn(name, at, gpu) for name, gpu in gpus.items()}
        known = [by_gpu[name] for name in ours]
        drawn = None if not known or None in known else sum(one or 0.0 for one in known)
        if drawn is not None:
            self._joules += drawn
            hour = int(wall) // HOUR_S
            self.hours[hour] = self.hours.get(hour, 0.0) + drawn
            while len(self.hours) > MAX_HOURS:
                del self.hours[min(self.hours)]
        self._untold += drawn is None
        self._samples.append(_Sample(at, tokens, steps, self._joules, self._untold))
        while len(self._samples) > 2 and at - self._samples[1].at >= WINDOW_S:
            self._samples.popleft()
        return drawn

    def _drawn(self, name: str, at: float, gpu: GpuReading | None) -> float | None:
        """Joules since the sample before. None: the card did not tell at both times."""
        before = self._energy.pop(name, None)
        if gpu is not None:
            self._energy[name] = (at, gpu)
        if before is None or gpu is None:
            return None
        then, last = before
        if gpu.energy_j is not None and last.energy_j is not None:
            return max(0.0, gpu.energy_j - last.energy_j)
        if gpu.power_w is None or last.power_w is None:
            return None
        return (gpu.power_w + last.power_w) / 2 * (at - then)

    @property
    def rates(self) -> ConsoleRates:
        """What happened in the window."""
        if len(self._samples) < 2:
            return ConsoleRates()
        first, last = self._samples[0], self._samples[-1]
        span = last.at - first.at
        if span <= 0:
            return ConsoleRates()
        tokens = last.tokens - first.tokens
        joules = None
        if tokens and last.untold == first.untold:
            joules = 1000 * (last.joules - first.joules) / tokens
        return ConsoleRates(tokens / span, (last.steps - first.steps) / span, joules)
