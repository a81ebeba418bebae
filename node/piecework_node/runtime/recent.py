"""The newest jobs of this worker, for what it says of its usual jobs. A window in memory.

It is filled from the journal at the start and grows with every job that ends. Its size is fixed, so
that a figure takes the same time after a million jobs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from piecework_node.engine.link import EngineFacts
from piecework_node.journal.records import EndedJob
from piecework_protocol.objects import Finish
from piecework_protocol.usual import JobTotals, UsualJobs, of_benchmark, of_receipts

RECENT_JOBS: Final = 256
"""Enough for a steady p90. A busy worker turns them over within minutes."""
COUNTED: Final = (Finish.END_OF_TEXT, Finish.TOKEN_LIMIT)
"""What a client cancelled says nothing of a whole answer."""


class RecentJobs:
    """Totals of the newest jobs that wrote text to their end."""

    def __init__(self) -> None:
        self._jobs: deque[EndedJob] = deque(maxlen=RECENT_JOBS)

    def load(self, jobs: Iterable[EndedJob]) -> None:
        """Take jobs of an earlier run, oldest first."""
        for job in jobs:
            self.ended(job)

    def ended(self, job: EndedJob) -> None:
        """Take one more job. One without output tokens, such as a read, has no price for them."""
        if job.last.finish in COUNTED and job.last.total_units:
            self._jobs.append(job)

    def usual(self, facts: EngineFacts) -> UsualJobs | None:
        """What the jobs of this model took, or what the benchmark did while they are too few."""
        totals = [
            JobTotals(
                job.last.total_steps, job.last.total_units, job.last.finish is Finish.END_OF_TEXT
            )
            for job in self._jobs
            if job.model == facts.digest
        ]
        measured = of_benchmark(
            facts.steps_per_second, facts.tokens_per_second, facts.answer_tokens
        )
        return of_receipts(totals) or measured
