"""What a running job tells, in the order in which it happens.

`JobEvent` is any of them. `client.run` and `client.resume` give them.
"""

from __future__ import annotations

from piecework.client.jobs.events import (
    CanvasAudited,
    CanvasText,
    DraftText,
    FinishReason,
    JobEvent,
    JobFinished,
    JobResuming,
    JobStarted,
    ReadAnswers,
    StepOpened,
)

__all__ = [
    "CanvasAudited",
    "CanvasText",
    "DraftText",
    "FinishReason",
    "JobEvent",
    "JobFinished",
    "JobResuming",
    "JobStarted",
    "ReadAnswers",
    "StepOpened",
]
