"""What auditors say of one canvas, and what follows from it. Pure.

A pass proves itself: the auditor's own step leaves lead to the trace root that the worker signed,
and it was not told them. A failure is a word. It counts once a second auditor has computed the same
leaves and found the same. Honest auditors on one profile compute the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from piecework_protocol.kinds.audit import AuditOutput
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.types import Address, Amount, Digest, JobId


@dataclass(frozen=True, slots=True)
class Opinion:
    """One auditor's report on a canvas.

    Attributes:
        operator: Who says it.
        report: What it says, under its receipt.
        step_leaves: Of its own computation, under the same receipt.
        job: The job that bought it.
        cost: What that has cost, in base units.
        seconds: What it took.
    """

    operator: Address
    report: AuditOutput
    step_leaves: tuple[Digest, ...]
    job: JobId
    cost: Amount
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the canvas passed."""
        return self.report.outcome is AuditOutcome.PASS

    def agrees(self, other: Opinion) -> bool:
        """Whether two auditors found the same and computed the same."""
        if self.passed or other.passed:
            return self.passed and other.passed
        mine = (self.report.canvas_leaf, self.report.steps, self.step_leaves)
        return mine == (other.report.canvas_leaf, other.report.steps, other.step_leaves)


@dataclass(frozen=True, slots=True)
class PanelDecision:
    """What follows from the opinions so far.

    Attributes:
        verdict: An opinion that counts, or None.
        odd: Those that are proven to be alone.
        wants_more: Whether one more opinion may decide.
    """

    verdict: Opinion | None
    odd: tuple[Opinion, ...] = ()
    wants_more: bool = False


def decide(opinions: Sequence[Opinion], most: int) -> PanelDecision:
    """Judge a canvas by what auditors of different owners say of it, at most so many.

    The first pass counts alone, unless somebody has said before that the canvas fails. Then two
    must agree. Those that say otherwise are odd.
    """
    if not opinions:
        return PanelDecision(None, wants_more=True)
    if len(opinions) == 1 and opinions[0].passed:
        return PanelDecision(opinions[0])
    for opinion in opinions:
        same = [one for one in opinions if one.agrees(opinion)]
        if len(same) > 1:
            return PanelDecision(opinion, tuple(one for one in opinions if one not in same))
    return PanelDecision(None, wants_more=len(opinions) < most)
