"""Sections of a long measurement: each may fail or be left out for want of time, and the rest
runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, Any]
Clock = Callable[[], float]


@dataclass(slots=True)
class Budget:
    """Seconds that a whole run may take, from the making of this object on."""

    seconds: float
    clock: Clock = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left_s(self) -> float:
        """What is left; negative when it is overdrawn."""
        return self.seconds - (self.clock() - self._start)


def _unheard(results: Mapping[str, Any]) -> None:
    """Tell nobody."""


class Sections:
    """The results of sections by name, in the order in which they were asked for."""

    def __init__(
        self, budget: Budget, note: Callable[[Mapping[str, Any]], None] = _unheard
    ) -> None:
        """note: told all results whenever there is another one, so that none is lost with a run
        that ends early.
        """
        self.budget = budget
        self.results: dict[str, dict[str, Any]] = {}
        self._note = note

    def run(self, name: str, expected_s: float, measure: Callable[[], Figures]) -> bool:
        """Runs a section unless it is expected to need more than is left; whether it gave
        figures."""
        left = self.budget.left_s
        if expected_s > left:
            self.skip(name, f"needs about {expected_s:.0f} s, {max(left, 0):.0f} s are left")
            return False
        start = self.budget.clock()
        try:
            figures = dict(measure())
        except Exception as error:  # noqa: BLE001  a section that fails is a result of the run, told by name
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            self._keep(name, {"status": "failed", "error": reason, "seconds": self._since(start)})
            return False
        self._keep(name, {"status": "ok", "seconds": self._since(start), **figures})
        return True

    def skip(self, name: str, reason: str) -> None:
        """Records that a section was not tried."""
        self._keep(name, {"status": "skipped", "reason": reason})

    def _keep(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        self._note(self.results)

    def _since(self, start: float) -> float:
        return round(self.budget.clock() - start, 2)
