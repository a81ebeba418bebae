"""Canvases that are computed again, in the engine's process beside its jobs.

A replay takes a pass of the executor between two steps of the jobs. It begins once no job runs, or
once it has waited for `PATIENCE_S`: a challenge has a deadline. So a job is slower for the length
of one canvas at most, and waits for one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from piecework_node.engine.wire import Replay, Replayed, ShownStep
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import StepRecord

if TYPE_CHECKING:
    from piecework_model.audit.replay import Replayer
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.engine.engine import Engine
    from piecework_model.engine.executor import SequenceStep

PATIENCE_S: Final = 60.0
"""A replay that has waited so long goes on beside the jobs."""
SEQUENCE: Final = "replay"
"""The name of its sequence in the executor. Those of jobs are longer."""


class ReplayDesk:
    """At most one replay. One that comes while another waits or runs ends that one."""

    def __init__(
        self,
        replayer: Replayer,
        executor: BatchedExecutor,
        engine: Engine,
        say: Callable[[ShownStep | Replayed], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replayer` works on `executor`, which `engine` works on too."""
        self._replayer, self._executor, self._engine = replayer, executor, engine
        self._say, self._monotonic = say, monotonic
        self._asked: Replay | None = None
        self._asked_at = 0.0
        self._walk: Generator[SequenceStep | None, None, None] | None = None
        self._leaves: list[bytes] = []
        self._shown = 0

    def take(self, asked: Replay) -> None:
        """Take a replay in. `step` does it."""
        if self._asked is not None:
            self._end("another canvas was asked for")
        self._asked, self._asked_at = asked, self._monotonic()

    @property
    def is_due(self) -> bool:
        """Whether `step` has anything to do now."""
        if self._asked is None:
            return False
        waited = self._monotonic() - self._asked_at
        return not self._engine.has_runnable or waited >= PATIENCE_S

    def step(self) -> None:
        """Do one pass. What a replay comes to is said once."""
        from piecework_model.errors import ReplayError, RequestError

        if self._asked is None:
            return
        try:
            if self._walk is None:
                self._walk = self._begin(self._asked)
            next(self._walk)
        except StopIteration:
            whole = self._shown == len(self._asked.wanted)
            self._end("" if whole else f"it ends after {len(self._leaves)} steps")
        except (RequestError, ReplayError, ValueError) as error:
            self._end(str(error))

    def _begin(self, asked: Replay) -> Generator[SequenceStep | None, None, None]:
        from piecework_model.errors import ReplayError

        request = replace(asked.request, request_id=SEQUENCE)
        if not self._engine.reserve(self._executor.footprint(request)):
            raise ReplayError("the memory for it is not free now")
        return self._replayer.walk(request, steps=asked.steps, observe=self._observe)

    def _observe(self, request_id: str, record: StepRecord, soft: Any) -> None:
        from piecework_model.audit.opening import write_soft

        asked = self._asked
        if asked is not None and record.step in asked.wanted:
            rows = write_soft(soft) if asked.soft else None
            self._say(ShownStep(asked.number, StepOpening(record.fields(), rows)))
            self._shown += 1
        self._leaves.append(record.leaf())

    def _end(self, refused: str) -> None:
        asked, leaves = self._asked, tuple(self._leaves)
        if self._walk is not None:
            self._walk.close()
        self._asked, self._walk, self._shown = None, None, 0
        self._leaves.clear()
        self._engine.reserve(0)
        if asked is not None:
            self._say(Replayed(asked.number, () if refused else leaves, refused))
