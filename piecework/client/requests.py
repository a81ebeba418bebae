"""What a client can ask for.

`JobRequest` is any of the requests. `Generation` has what is set besides the length, and `Part`
says whose money a job takes.
"""

from __future__ import annotations

from piecework.client.jobs.requests import (
    AuditRequest,
    Generation,
    JobRequest,
    OpenRequest,
    Prompt,
    ReadRequest,
    TextRequest,
)
from piecework.client.journal.records import Part

__all__ = [
    "AuditRequest",
    "Generation",
    "JobRequest",
    "OpenRequest",
    "Part",
    "Prompt",
    "ReadRequest",
    "TextRequest",
]
