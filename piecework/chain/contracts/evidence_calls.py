"""Evidence as the calls of the verifier, which a dispute contract forwards. Pure.

`prove_*` are proofs, `ask` is the question of a challenge. `chain.disputes` sends them.
"""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.contracts.abi import interface
from piecework_protocol.disputes import OpenedLeaf, TraceRule
from piecework_protocol.objects import Acceptance, Channel, Job, ModelOffer, Offer, Receipt
from piecework_protocol.types import Address, Bytes32, Signature


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that evidence is about, and its channel: the Solidity struct JobOfChannel."""

    channel: Channel
    job: Job


@dataclass(frozen=True, slots=True)
class ReceiptEvidence:
    """A receipt with its operator's signature: the Solidity struct SignedReceipt."""

    receipt: Receipt
    signature: Signature


@dataclass(frozen=True, slots=True)
class PinEvidence:
    """A pinned position under the root of a canvas leaf: the Solidity struct Pin.

    `index` is its place among the pins.
    """

    position: int
    token: int
    index: int
    siblings: tuple[Bytes32, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvidence:
    """What shows that a trace breaks a rule. The contract's `TraceProof` says what each needs."""

    rule: TraceRule
    position: int = 0
    leaves: tuple[OpenedLeaf, ...]
    pin_count: int = 0
    pins: tuple[PinEvidence, ...] = ()
    output: bytes = b""


def prove_equivocation(subject: Subject, one: ReceiptEvidence, other: ReceiptEvidence) -> bytes:
    """Two receipts for one canvas."""
    return _encode("proveEquivocation", subject, one, other)


def prove_broken_chain(subject: Subject, earlier: ReceiptEvidence, later: ReceiptEvidence) -> bytes:
    """Receipts of two canvases that follow each other and do not form a chain."""
    return _encode("proveBrokenChain", subject, earlier, later)


def prove_broken_beginning(subject: Subject, first: ReceiptEvidence) -> bytes:
    """A receipt of canvas 0 that does not begin a chain."""
    return _encode("proveBrokenBeginning", subject, first)


def prove_excess(subject: Subject, over: ReceiptEvidence) -> bytes:
    """More steps than the job allows, or more money than its ceiling."""
    return _encode("proveExcess", subject, over)


def prove_overcharge(subject: Subject, over: ReceiptEvidence, offer: Offer) -> bytes:
    """More money than the offer's price.

    Raises:
        IndexError: The offer has no such entry as the job names.
    """
    entry = offer.models[subject.job.entry]
    opening = (_words(offer), [model.struct_hash() for model in offer.models], _words(entry))
    return _encode("proveOvercharge", subject, over, opening)


def prove_acceptances(
    subject: Subject,
    one: tuple[Acceptance, Signature],
    other: tuple[Acceptance, Signature],
) -> bytes:
    """Two acceptances of one job with different prompt tokens."""
    pair = [(a.prompt_tokens, a.accepted_at, signature) for a, signature in (one, other)]
    return _encode("proveAcceptances", subject, *pair)


def prove_trace(subject: Subject, signed: ReceiptEvidence, evidence: TraceEvidence) -> bytes:
    """A trace that breaks an exact rule."""
    return _encode("proveTrace", subject, signed, evidence)


def ask(
    challenger: Address, subject: Subject, signed: ReceiptEvidence, leaf: int, fields: int
) -> bytes:
    """The question of a challenge: the fields of a leaf, bit i for field i."""
    members = (challenger, subject, signed, leaf, fields)
    return interface("EvidenceVerifier").encode("ask", members)


def _words(value: Offer | ModelOffer) -> list[bytes]:
    """The words that EIP-712 hashes: the type hash, then one for each member."""
    encoded = value.encoded()
    return [encoded[i : i + 32] for i in range(0, len(encoded), 32)]


def _encode(name: str, subject: Subject, *members: object) -> bytes:
    return interface("EvidenceVerifier").encode(name, (subject, *members))
