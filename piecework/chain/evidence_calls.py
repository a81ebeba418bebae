"""Evidence as the calls of the verifier, which a dispute contract forwards. Pure.

`prove_*` are proofs, `ask` is the question of a challenge. `chain.disputes` sends them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piecework.chain.abi import interface
from piecework_protocol.disputes import OpenedLeaf, TraceRule
from piecework_protocol.eip712 import TypedData
from piecework_protocol.objects import Acceptance, Channel, Job, ModelOffer, Offer, Receipt
from piecework_protocol.types import Address, Bytes32, Signature


@dataclass(frozen=True, slots=True)
class Subject:
    """The job that evidence is about, and its channel."""

    channel: Channel
    job: Job

    def as_tuple(self) -> tuple[Any, ...]:
        """The Solidity struct JobOfChannel."""
        return struct_tuple(self.channel), struct_tuple(self.job)


@dataclass(frozen=True, slots=True)
class ReceiptEvidence:
    """A receipt with its operator's signature."""

    receipt: Receipt
    signature: Signature

    def as_tuple(self) -> tuple[Any, ...]:
        """The Solidity struct SignedReceipt."""
        return struct_tuple(self.receipt), self.signature


@dataclass(frozen=True, slots=True)
class PinEvidence:
    """A pinned position under the root of a canvas leaf. `index` is its place among the pins."""

    position: int
    token: int
    index: int
    siblings: tuple[Bytes32, ...]

    def as_tuple(self) -> tuple[Any, ...]:
        """The Solidity struct Pin."""
        return self.position, self.token, self.index, list(self.siblings)


@dataclass(frozen=True, slots=True)
class TraceEvidence:
    """What shows that a trace breaks a rule. The contract's `TraceProof` says what each needs."""

    rule: TraceRule
    leaves: tuple[OpenedLeaf, ...]
    position: int = 0
    pin_count: int = 0
    pins: tuple[PinEvidence, ...] = ()
    output: bytes = b""

    def as_tuple(self) -> tuple[Any, ...]:
        """The Solidity struct TraceProof."""
        leaves = [leaf_tuple(leaf) for leaf in self.leaves]
        pins = [pin.as_tuple() for pin in self.pins]
        return int(self.rule), self.position, leaves, self.pin_count, pins, self.output


def prove_equivocation(subject: Subject, one: ReceiptEvidence, other: ReceiptEvidence) -> bytes:
    """Two receipts for one canvas."""
    return _encode("proveEquivocation", subject, one.as_tuple(), other.as_tuple())


def prove_broken_chain(subject: Subject, earlier: ReceiptEvidence, later: ReceiptEvidence) -> bytes:
    """Receipts of two canvases that follow each other and do not form a chain."""
    return _encode("proveBrokenChain", subject, earlier.as_tuple(), later.as_tuple())


def prove_broken_beginning(subject: Subject, first: ReceiptEvidence) -> bytes:
    """A receipt of canvas 0 that does not begin a chain."""
    return _encode("proveBrokenBeginning", subject, first.as_tuple())


def prove_excess(subject: Subject, over: ReceiptEvidence) -> bytes:
    """More steps than the job allows, or more money than its ceiling."""
    return _encode("proveExcess", subject, over.as_tuple())


def prove_overcharge(subject: Subject, over: ReceiptEvidence, offer: Offer) -> bytes:
    """More money than the offer's price.

    Raises:
        IndexError: The offer has no such entry as the job names.
    """
    entry = offer.models[subject.job.entry]
    opening = (_words(offer), [model.struct_hash() for model in offer.models], _words(entry))
    return _encode("proveOvercharge", subject, over.as_tuple(), opening)


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
    return _encode("proveTrace", subject, signed.as_tuple(), evidence.as_tuple())


def ask(
    challenger: Address, subject: Subject, signed: ReceiptEvidence, leaf: int, fields: int
) -> bytes:
    """The question of a challenge: the fields of a leaf, bit i for field i."""
    members = (challenger, subject.as_tuple(), signed.as_tuple(), leaf, fields)
    return interface("EvidenceVerifier").encode("ask", members)


def leaf_tuple(leaf: OpenedLeaf) -> tuple[Any, ...]:
    """The Solidity struct OpenedLeaf."""
    return leaf.index, list(leaf.digests), list(leaf.fields), list(leaf.siblings)


def struct_tuple(value: TypedData) -> tuple[Any, ...]:
    """A signed object as its Solidity struct: the same members in the same order."""
    return tuple(_member(getattr(value, field.name)) for field in dataclasses.fields(value))


def _member(value: Any) -> Any:
    if isinstance(value, TypedData):
        return struct_tuple(value)
    return int(value) if isinstance(value, enum.IntEnum) else value


def _words(value: Offer | ModelOffer) -> list[bytes]:
    """The words that EIP-712 hashes: the type hash, then one for each member."""
    encoded = value.encoded()
    return [encoded[i : i + 32] for i in range(0, len(encoded), 32)]


def _encode(name: str, subject: Subject, *members: Sequence[Any]) -> bytes:
    return interface("EvidenceVerifier").encode(name, (subject.as_tuple(), *members))
