"""Which canvas of a job is audited.

It comes from the client's own randomness, drawn after the receipt was signed. The worker is not
asked and cannot know.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.objects import Kind

T = TypeVar("T")


def choose_canvas(evidence: EvidenceFile, entropy: Callable[[int], bytes]) -> int | None:
    """Draw a canvas among those with denoising steps. None: there is none.

    Draw after the receipts are signed, or the worker could know which one it will be.
    """
    numbers = traced(evidence)
    if not numbers:
        return None
    return numbers[int.from_bytes(entropy(8), "big") % len(numbers)]


def traced(evidence: EvidenceFile) -> list[int]:
    """List the canvases of a job that have denoising steps."""
    return [int(c.receipt.canvas) for c in evidence.canvases if c.receipt.steps]


def judgeable(evidence: EvidenceFile) -> list[int]:
    """List the canvases of a job that a forced audit can judge.

    Of an answer with a form that is the first one: the evidence does not tell the ids before the
    others.
    """
    numbers = traced(evidence)
    content, kind = evidence.content, evidence.job.job.kind
    if kind is Kind.TEXT and content is not None and TextContent.decode(content).template:
        return [0] if 0 in numbers else []
    return numbers


def shuffled(items: Sequence[T]) -> list[T]:
    """Put items into an order that no worker can know."""
    return secrets.SystemRandom().sample(items, len(items))
