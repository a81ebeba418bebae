"""What an evidence file proves by itself, as a proof that the dispute contract takes. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from piecework.chain.contracts.evidence_calls import (
    ReceiptEvidence,
    Subject,
    prove_acceptances,
    prove_broken_beginning,
    prove_broken_chain,
    prove_equivocation,
    prove_excess,
    prove_overcharge,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.evidence.file import Contradiction, EvidenceFile
from piecework_protocol.objects import Acceptance, Finish, Receipt, Service
from piecework_protocol.pricing import price, usage_of


@dataclass(frozen=True, slots=True)
class FoundProof:
    """A fault that needs no challenge. proof: the call that the dispute contract forwards."""

    fault: str
    proof: bytes


def subject_of(evidence: EvidenceFile) -> Subject:
    """The job that an evidence file is about."""
    return Subject(evidence.channel, evidence.job.job)


def find_proof(evidence: EvidenceFile) -> FoundProof | None:
    """Return the first fault that the evidence proves alone, or None.

    Signatures are not checked here: a proof with a wrong one is refused when it is simulated.
    """
    subject = subject_of(evidence)
    return next(
        itertools.chain(
            _contradictions(evidence, subject),
            _chains(evidence, subject),
            _overcharges(evidence, subject),
        ),
        None,
    )


def _contradictions(evidence: EvidenceFile, subject: Subject) -> Iterator[FoundProof]:
    job_id = evidence.job.job.id(evidence.domain)
    for pair in evidence.contradictions:
        first, second = pair.first, pair.second
        if isinstance(first, Receipt) and isinstance(second, Receipt):
            same = first.canvas == second.canvas and first.job == second.job == job_id
            if same and first != second:
                yield _equivocation(subject, pair, first, second)
        if not isinstance(first, Acceptance) or not isinstance(second, Acceptance):
            continue
        if first.prompt_tokens != second.prompt_tokens and first.job == job_id:
            one, other = (first, pair.first_signature), (second, pair.second_signature)
            proof = prove_acceptances(subject, one, other)
            yield FoundProof("two acceptances with different prompt tokens", proof)


def _equivocation(
    subject: Subject, pair: Contradiction, first: Receipt, second: Receipt
) -> FoundProof:
    one = ReceiptEvidence(first, pair.first_signature)
    other = ReceiptEvidence(second, pair.second_signature)
    text = f"two receipts for canvas {first.canvas}"
    return FoundProof(text, prove_equivocation(subject, one, other))


def _chains(evidence: EvidenceFile, subject: Subject) -> Iterator[FoundProof]:
    signed = [ReceiptEvidence(shown.receipt, shown.signature) for shown in evidence.canvases]
    for one in signed[:1]:
        if one.receipt.canvas == 0 and not _begins(one.receipt):
            yield FoundProof(
                "a first receipt with other totals", prove_broken_beginning(subject, one)
            )
    for one, other in itertools.pairwise(signed):
        follows = other.receipt.canvas == one.receipt.canvas + 1
        if follows and not _is_chain(evidence.domain, one.receipt, other.receipt):
            text = f"a broken chain between canvas {one.receipt.canvas} and the next"
            yield FoundProof(text, prove_broken_chain(subject, one, other))


def _begins(first: Receipt) -> bool:
    own = (first.units, first.steps, first.amount)
    totals = (first.total_units, first.total_steps, first.total_amount)
    return bytes(first.job) == bytes(first.previous) and own == totals


def _is_chain(domain: Domain, earlier: Receipt, later: Receipt) -> bool:
    """Say whether one receipt follows another, as the contract does."""
    return (
        bytes(later.previous) == bytes(domain.digest(earlier))
        and earlier.finish is Finish.MORE
        and later.total_prompt_tokens == earlier.total_prompt_tokens
        and later.total_units == earlier.total_units + later.units
        and later.total_steps == earlier.total_steps + later.steps
        and later.total_amount == earlier.total_amount + later.amount
    )


def _overcharges(evidence: EvidenceFile, subject: Subject) -> Iterator[FoundProof]:
    job, offer = subject.job, evidence.offer.offer
    model = offer.entry(job)
    for shown in evidence.canvases:
        receipt, signed = shown.receipt, ReceiptEvidence(shown.receipt, shown.signature)
        if receipt.steps > job.parameters.max_steps or receipt.total_amount > job.max_amount:
            yield FoundProof("more than the job allows", prove_excess(subject, signed))
        if model is not None and receipt.total_amount > price(model, usage_of(receipt)):
            proof = prove_overcharge(subject, signed, offer)
            yield FoundProof("more than the offer's price", proof)


def can_be_challenged(evidence: EvidenceFile, canvas: int) -> bool:
    """Say whether a canvas has a trace that the worker promised to open."""
    replayable = evidence.job.job.parameters.service is Service.REPLAYABLE
    return replayable and any(
        shown.receipt.canvas == canvas and shown.receipt.steps for shown in evidence.canvases
    )
