"""What output costs at a worker with its denoising steps, and how long answers are. Pure.

A worker says what its own receipts show. That is a claim until the client has bills of its own:
after twenty of its own jobs they alone count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from piecework.client.journal.learning import blended_steps, own_jobs, usual_length
from piecework.client.journal.records import AnswerLength, Measured, Memories
from piecework_protocol.objects import ModelOffer, Offer
from piecework_protocol.types import Address, Amount, Digest, Timestamp
from piecework_protocol.usual import Source, UsualJobs, assumed, price_with_steps, usual_jobs
from piecework_protocol.wire import SignedOffer


@dataclass(frozen=True, slots=True)
class OutputRate:
    """What a million output tokens and their denoising steps cost at one worker, in base units.

    Attributes:
        expected: By the worker's claim at first, and by the client's own jobs after twenty.
        claimed_p50: For the median of the worker's jobs, by its own word or an assumption.
        claimed_p90: For the job that is dearer than nine of ten.
        claim: What the worker says, with its source.
        own_jobs: How many jobs of the client's own count.
    """

    expected: Amount
    claimed_p50: Amount
    claimed_p90: Amount
    claim: UsualJobs
    own_jobs: float

    @classmethod
    def of(cls, offer: Offer, model: ModelOffer, memories: Memories, now: Timestamp) -> OutputRate:
        """Give the rate of one model of an offer, as the client sees it now."""
        claim = usual_jobs(offer, model)
        measured = measured_at(memories, offer.operator, model.digest)
        steps = blended_steps(measured, now, claim.steps_p50, assumed(model).steps_p50)
        return cls(
            expected=price_with_steps(model, steps),
            claimed_p50=price_with_steps(model, claim.steps_p50),
            claimed_p90=price_with_steps(model, claim.steps_p90),
            claim=claim,
            own_jobs=own_jobs(measured, now),
        )


def measured_at(memories: Memories, operator: Address, digest: Digest) -> Measured:
    """What the client's own jobs took at a worker with a model."""
    return memories.measured.get((operator, digest), Measured(operator, digest))


def answer_lengths(
    served: Iterable[tuple[SignedOffer, ModelOffer]], memories: Memories, now: Timestamp
) -> dict[Digest, float | None]:
    """Return how long the answers of each model usually are, in tokens. None: nobody knows.

    It is one figure for all workers, so that none of them looks cheaper by claiming short answers.
    Before the client's own jobs it is the median of what the workers claim. A benchmark, which has
    one prompt, counts only where nobody's receipts say anything.
    """
    claims: dict[Digest, dict[Source, list[int]]] = {}
    for signed, model in served:
        claim = usual_jobs(signed.offer, model)
        said = claims.setdefault(model.digest, {})
        if claim.output_tokens is not None:
            said.setdefault(claim.source, []).append(claim.output_tokens)
    return {
        digest: usual_length(
            memories.lengths.get(digest, AnswerLength(digest)), now, _claimed_length(said)
        )
        for digest, said in claims.items()
    }


def _claimed_length(said: Mapping[Source, list[int]]) -> float | None:
    best = said.get(Source.RECEIPTS) or said.get(Source.BENCHMARK)
    return statistics.median_low(best) if best else None


RateOf = Callable[[Offer, ModelOffer], OutputRate]
"""Gives the rate of a model of an offer, as one client sees it now."""
