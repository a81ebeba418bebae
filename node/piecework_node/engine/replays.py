"""Canvases that are computed again, in the engine's process beside its jobs.

Some are the worker's own, for openings and challenges. Some are other workers', for audits that it
sells. A replay takes a pass of the executor between two steps of the jobs. It begins once no job
runs, or once it has waited for `PATIENCE_S`: a challenge has a deadline. So a job is slower for the
length of one canvas at most, and waits for one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from piecework_node.engine.wire import (
    Audit,
    Audited,
    Prefilled,
    Replay,
    Replayed,
    ShownStep,
)
from piecework_protocol.kinds.audit import AuditOutput
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Digest

if TYPE_CHECKING:
    from piecework_model.audit.job import JobAudit
    from piecework_model.audit.replay import Replayer
    from piecework_model.checkpoint.loading import LoadedModel
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.engine.engine import Engine
    from piecework_model.engine.executor import SequenceStep
    from piecework_model.engine.scheduler import PrefillChunk

PATIENCE_S: Final = 60.0
"""A replay that has waited so long goes on beside the jobs."""
SEQUENCE: Final = "replay"
"""The name of its sequence in the executor. Those of jobs are longer."""


@dataclass(frozen=True, slots=True)
class PreparedAudit:
    """An audit whose prompt is encoded. job: None if it cannot be, and `refused` says why."""

    asked: Audit
    job: JobAudit | None
    refused: str = ""


class ReplayRunner:
    """At most one replay. One that comes while another waits or runs ends that one."""

    def __init__(
        self,
        replayer: Replayer,
        executor: BatchedExecutor,
        engine: Engine,
        say: Callable[[Prefilled | ShownStep | Replayed | Audited], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`replayer` works on `executor`, which `engine` works on too."""
        self._replayer, self._executor, self._engine = replayer, executor, engine
        self._say, self._monotonic = say, monotonic
        self._asked: Replay | Audit | None = None
        self._asked_at = 0.0
        self._walk: Generator[SequenceStep | None, None, None] | None = None
        self._last: SequenceStep | None = None
        self._job: JobAudit | None = None
        """What an audit is about."""
        self._records: list[StepRecord] = []
        self._shown = 0
        self._chunks: Iterator[PrefillChunk] = iter(())
        """What is prefilled by the next passes."""
        self._prefilled = 0
        self._dropped = -1
        """The latest number. Numbers grow. An audit may be dropped while it is prepared."""

    def take(self, given: Replay | PreparedAudit) -> None:
        """Take a replay or an audit in. `step` does it."""
        asked = given.asked if isinstance(given, PreparedAudit) else given
        if isinstance(given, PreparedAudit) and asked.number <= self._dropped:
            return
        if self._asked is not None:
            self._end("another canvas was asked for")
        self._asked, self._asked_at = asked, self._monotonic()
        if isinstance(given, PreparedAudit):
            self._job = given.job
            if given.job is None:
                self._end(given.refused)

    def drop(self, number: int) -> None:
        """Give up a replay or an audit that nobody waits for any more. It says nothing more."""
        self._dropped = max(self._dropped, number)
        if self._asked is not None and self._asked.number == number:
            self._clear()

    @property
    def is_due(self) -> bool:
        """Whether `step` has anything to do now."""
        if self._asked is None:
            return False
        waited = self._monotonic() - self._asked_at
        # What has begun goes on: its client takes a replay that stands still for a dead worker.
        begun = self._walk is not None
        return begun or not self._engine.has_runnable or waited >= PATIENCE_S

    def step(self) -> None:
        """Do one pass. What a replay comes to is said once."""
        from piecework_model.errors import AuditError, NonFiniteError, RequestError

        if self._asked is None:
            return
        try:
            if self._walk is None:
                self._walk = self._begin(self._asked)
            taken = next(self._walk)
            self._last = taken or self._last
            if taken is None:
                self._prefilled += len(next(self._chunks, ()))
                self._say(Prefilled(self._asked.number, self._prefilled))
        except StopIteration:
            self._finish(self._asked)
        except (RequestError, AuditError, NonFiniteError, ValueError) as error:
            self._end(str(error))

    def _begin(self, asked: Replay | Audit) -> Generator[SequenceStep | None, None, None]:
        from piecework_model.audit.replay import alone
        from piecework_model.engine.scheduler import known_chunks
        from piecework_model.errors import ReplayError

        if isinstance(asked, Audit):
            if self._job is None:
                raise ReplayError("it was not prepared")
            request, steps = self._job.request_of(asked.content.canvas), asked.content.steps
        else:
            request, steps = asked.request, asked.steps
        request = replace(request, request_id=SEQUENCE)
        one = alone(request, self._replayer.loaded.limits)
        if not self._engine.reserve(self._executor.footprint(one)):
            raise ReplayError("the memory for it is not free now")
        self._chunks = iter(known_chunks(request, self._executor.chunk_tokens))
        return self._replayer.walk(request, steps=steps, observe=self._observe)

    def _observe(self, request_id: str, record: StepRecord, soft: Any) -> None:
        from piecework_model.audit.opening import write_soft

        asked = self._asked
        if isinstance(asked, Audit):
            self._say(ShownStep(asked.number, StepOpening(record.fields())))
        elif asked is not None and record.step in asked.wanted:
            rows = write_soft(soft) if asked.soft else None
            self._say(ShownStep(asked.number, StepOpening(record.fields(), rows)))
            self._shown += 1
        self._records.append(record)

    def _finish(self, asked: Replay | Audit) -> None:
        """Say what it came to."""
        if isinstance(asked, Audit):
            self._judge(asked)
            return
        whole = self._shown == len(asked.wanted)
        self._end("" if whole else f"it ends after {len(self._records)} steps")

    def _judge(self, asked: Audit) -> None:
        from piecework_model.audit.auditors import report_of

        job, last, content = self._job, self._last, asked.content
        if job is None or last is None:
            self._end("the engine took no step")
            return
        report = report_of(job, content, tuple(self._records), last)
        self._clear()
        self._say(Audited(asked.number, report))

    def _end(self, refused: str) -> None:
        asked, leaves = self._asked, tuple(record.leaf() for record in self._records)
        self._clear()
        if isinstance(asked, Audit):
            self._say(Audited(asked.number, AuditOutput(), refused or "it was not finished"))
        elif asked is not None:
            self._say(Replayed(asked.number, () if refused else leaves, refused))

    def _clear(self) -> None:
        if self._walk is not None:
            self._walk.close()
        self._asked, self._walk, self._last, self._job = None, None, None, None
        self._shown = self._prefilled = 0
        self._chunks = iter(())
        self._records.clear()
        self._engine.reserve(0)


def prepare(asked: Audit, loaded: LoadedModel) -> PreparedAudit:
    """Encode the prompt of a canvas that somebody else's worker made. A long one takes a while."""
    from piecework_model.audit.claims import ClaimedJob
    from piecework_model.audit.job import JobAudit
    from piecework_model.errors import AuditError, RequestError

    claimed = ClaimedJob.of_content(asked.content, Digest(loaded.digest))
    try:
        return PreparedAudit(asked, JobAudit(claimed, loaded))
    except (AuditError, RequestError, ValueError) as error:
        return PreparedAudit(asked, None, str(error))
