"""A pause: the owner needs the machine, so no job takes a step (clause 3.12). Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from piecework_protocol.types import Timestamp

LONGEST_RETRY_S: Final = 300
"""A client that is told to wait longer would forget us."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause that has begun.

    began: monotonic seconds. causes: why, one line each, for the owner. gives_up_at: when waiting
    jobs are handed back. ends_at: when it ends, if that is known. Both are Unix seconds.
    """

    began: float
    causes: tuple[str, ...]
    gives_up_at: Timestamp
    ends_at: Timestamp | None = None

    @property
    def until(self) -> Timestamp:
        """The time at which a job goes on, or is handed back at the latest."""
        return self.gives_up_at if self.ends_at is None else min(self.ends_at, self.gives_up_at)

    def retry_after_s(self, now: int) -> float:
        """How long a client should wait before it asks again, in seconds."""
        end = self.ends_at if self.ends_at is not None else now + LONGEST_RETRY_S
        return float(min(max(1, end - now), LONGEST_RETRY_S))
