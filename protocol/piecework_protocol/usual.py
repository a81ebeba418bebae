"""What a million output tokens usually cost, denoising steps included (clause 3.11).

Prices have two parts for a text: one for its tokens, one for the steps that they take. How many
steps a token takes depends on the model, its machine and the prompts. A worker says in the
`details` of its offer what its own receipts show. That is a claim: no price depends on it, and a
client holds it against the bills of its own jobs.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from piecework.base.jsons import loads
from piecework_protocol.objects import ModelOffer, Offer, Service
from piecework_protocol.types import Amount

MEMBER: Final = "usual"
"""The member of an offer's `details`: a list with one object for each entry of its models."""
ENOUGH_JOBS: Final = 20
"""Fewer jobs say too little, and too much about one client."""
MEAN_STEPS: Final = 27
"""Mean denoising steps of a canvas on real prompts (docs/model.md), where nobody says anything."""
MAX_JOBS: Final = 1 << 32
_MILLION: Final = 1_000_000
_PARSED: Final = 1_024
"""Offers whose details stay parsed. A ranking looks at each of them again."""


class Source(enum.Enum):
    """Where a figure comes from."""

    RECEIPTS = "receipts"
    """The receipts of the worker's own jobs, as it says."""
    BENCHMARK = "benchmark"
    """The worker's measurement at its start: an estimate."""
    ASSUMED = "assumed"
    """The mean of real prompts. The worker says nothing that can be believed."""


@dataclass(frozen=True, slots=True)
class UsualJobs:
    """What jobs of text usually take.

    Attributes:
        steps_p50: Denoising steps for a million output tokens, at the median of the jobs.
        steps_p90: The same for the job that takes more than nine of ten.
        jobs: How many jobs were counted. 0: none.
        output_tokens: How long an answer is that ended by itself, at the median. None: not known.
        source: Where the figures come from.
    """

    steps_p50: int
    steps_p90: int
    jobs: int
    output_tokens: int | None
    source: Source

    def members(self) -> dict[str, Any]:
        """Give the object that an offer's details have."""
        return {
            "steps_per_million_output_tokens": {"p50": self.steps_p50, "p90": self.steps_p90},
            "jobs": self.jobs,
            "output_tokens": self.output_tokens,
        }


@dataclass(frozen=True, slots=True)
class JobTotals:
    """What one job of text was charged. `ended`: it ended by itself, not at a limit."""

    steps: int
    output_tokens: int
    ended: bool


def of_receipts(jobs: Sequence[JobTotals]) -> UsualJobs | None:
    """Summarize recent jobs, or give None while there are too few."""
    ratios = sorted(job.steps * _MILLION // job.output_tokens for job in jobs if job.output_tokens)
    if len(ratios) < ENOUGH_JOBS:
        return None
    lengths = [job.output_tokens for job in jobs if job.ended and job.output_tokens]
    return UsualJobs(
        steps_p50=statistics.median_low(ratios),
        steps_p90=ratios[(9 * len(ratios) - 1) // 10],
        jobs=len(ratios),
        output_tokens=statistics.median_low(lengths) if len(lengths) >= ENOUGH_JOBS else None,
        source=Source.RECEIPTS,
    )


def of_benchmark(steps: float, output_tokens: float, answer_tokens: int | None) -> UsualJobs | None:
    """Summarize a measurement of so many steps for so many tokens.

    answer_tokens: how long its answers were that ended by themselves. None: not known.
    """
    if output_tokens <= 0:
        return None
    ratio = int(steps * _MILLION / output_tokens)
    return UsualJobs(ratio, ratio, 0, answer_tokens or None, Source.BENCHMARK)


def assumed(model: ModelOffer) -> UsualJobs:
    """Give what real prompts take at the mean, for a model about which nothing is known."""
    steps = mean_steps(model.max_steps, model.canvas_size)
    return UsualJobs(steps, steps, 0, None, Source.ASSUMED)


def mean_steps(max_steps: int, canvas_size: int) -> int:
    """Give the steps of a million output tokens of a model at the mean of real prompts."""
    return min(max_steps, MEAN_STEPS) * _MILLION // max(1, canvas_size)


def usual_jobs(offer: Offer, model: ModelOffer) -> UsualJobs:
    """Give what a worker says of its jobs of a model, if it can be believed, else an assumption.

    Fewer steps than one a canvas, and more than the model's limit on a single token, cannot be.
    """
    said = _said(offer.details)
    place = offer.models.index(model) if model in offer.models else len(said)
    claim = said[place] if place < len(said) else None
    if claim is None:
        return assumed(model)
    least = _MILLION // model.canvas_size if model.service is Service.REPLAYABLE else 0
    if not least <= claim.steps_p50 <= claim.steps_p90 <= model.max_steps * _MILLION:
        return assumed(model)
    return claim


def price_with_steps(model: ModelOffer, steps_per_million: float) -> Amount:
    """Give base units for a million output tokens and the steps that they take."""
    steps = int(steps_per_million * model.price_per_thousand_steps) // 1_000
    return Amount(model.price_per_million_output_tokens + steps)


@lru_cache(maxsize=_PARSED)
def _said(details: str) -> tuple[UsualJobs | None, ...]:
    """What the details say of each entry. None stands for what is not as it should be."""
    try:
        rows = loads(details)[MEMBER]
    except (ValueError, KeyError, TypeError):
        return ()
    return tuple(_row(row) for row in rows) if isinstance(rows, list) else ()


def _row(row: Any) -> UsualJobs | None:
    steps = row.get("steps_per_million_output_tokens") if isinstance(row, dict) else None
    if not isinstance(steps, dict):
        return None
    low, high = _count(steps.get("p50")), _count(steps.get("p90"))
    jobs, length = _count(row.get("jobs")), _count(row.get("output_tokens"))
    if low is None or high is None or jobs is None:
        return None
    return UsualJobs(low, high, jobs, length, Source.RECEIPTS if jobs else Source.BENCHMARK)


def _count(value: Any) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < MAX_JOBS * _MILLION else None
