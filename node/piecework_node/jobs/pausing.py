"""Stop a card's jobs between two steps while the owner needs it, and go on afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from piecework_node.engine.link import EnginePaused
from piecework_node.runtime.cards import EngineCard
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveJob
from piecework_node.runtime.pause import Pause
from piecework_node.times import now
from piecework_protocol.types import Timestamp


class Pausing:
    """Pauses and resumes one card, and tells its clients at once (clause 3.12)."""

    def __init__(
        self,
        runtime: JobRuntime,
        card: EngineCard,
        jobs: Callable[[], Iterable[LiveJob]],
        *,
        longest_s: int,
        log: Any,
    ) -> None:
        """Start unpaused. longest_s: after which waiting jobs are handed back."""
        self._runtime, self._card, self._jobs = runtime, card, jobs
        self._longest_s, self._log = longest_s, log
        self._ending = False
        self.freed_bytes = 0
        """Bytes of the device that wait on the host."""

    @property
    def now(self) -> Pause | None:
        """The pause that lasts. It lasts until the engine has its memory back."""
        return self._card.pause

    def pause(self, causes: tuple[str, ...], ends_at: Timestamp | None) -> None:
        """Pause, or bring the causes and the known end of the pause up to date."""
        runtime, card, known = self._runtime, self._card, self._card.pause
        began = runtime.clock.monotonic() if known is None else known.began
        gives_up = Timestamp(now(runtime.clock) + self._longest_s)
        if known is not None:
            gives_up = known.gives_up_at
        card.pause = Pause(began, causes, gives_up, ends_at)
        if known is None or self._ending:
            self._ending = False
            card.engine.pause(free_memory=card.frees_memory)
            self._log.info("paused", card=card.name, reason="; ".join(causes))
            runtime.metrics.paused(card.name)
        for job in self._jobs():
            runtime.report(job)

    def resume(self) -> None:
        """Go on, as soon as the engine has its memory back."""
        if self._card.pause is not None and not self._ending:
            self._ending = True
            self._card.engine.resume()

    def paused(self, event: EnginePaused) -> None:
        """Note that the engine takes no step any more."""
        pause = self._card.pause
        if pause is None:
            return
        self.freed_bytes = event.freed_bytes
        took_s = round(self._runtime.clock.monotonic() - pause.began, 4)
        freed = event.freed_bytes
        self._log.info("engine paused", card=self._card.name, seconds=took_s, bytes=freed)

    def resumed(self) -> None:
        """Note that the engine goes on, and tell every client before it takes a step's frames."""
        pause = self._card.pause
        if pause is None or not self._ending:
            return
        self._card.pause, self._ending, self.freed_bytes = None, False, 0
        lasted = self._runtime.clock.monotonic() - pause.began
        self._runtime.metrics.resumed(self._card.name, lasted)
        self._log.info("resumed", card=self._card.name, seconds=round(lasted, 3))
        for job in self._jobs():
            self._runtime.report(job)
