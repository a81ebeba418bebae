"""The evidence file of one job, and its canonical bytes (clause 10.1). Pure.

A file is canonical JSON: members in order, no white space, ASCII, one line. So a file has exactly
one form, and a changed byte is another file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from piecework.base.jsons import loads
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.members import (
    address,
    data,
    entries,
    hexed,
    number,
    of_names,
    taken,
    written,
)
from piecework_protocol.limits import (
    MAX_CANVASES_PER_JOB,
    MAX_CONTENT_BYTES,
    MAX_DENOISING_STEPS,
    MAX_EVIDENCE_BYTES,
    MAX_EVIDENCE_ENTRIES,
    MAX_OPENING_BYTES,
    MAX_PROOF_SIBLINGS,
)
from piecework_protocol.merkle import InclusionProof
from piecework_protocol.objects import Acceptance, Channel, Job, Offer, Receipt, Voucher
from piecework_protocol.types import (
    DIGEST_BYTES,
    SIGNATURE_BYTES,
    Address,
    Bytes32,
    Digest,
    Signature,
)

FORMAT: Final = "piecework-evidence/1"
MEMBERS: Final = (
    "format",
    "chain",
    "escrow",
    "channel",
    "offer",
    "job",
    "acceptance",
    "receipts",
    "vouchers",
    "contradictions",
    "content",
)

_S = TypeVar("_S", bound=TypedData)
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class ShownOffer:
    """The offer that the job names. `signer` is its operator, or a session key of that."""

    offer: Offer
    signature: Signature
    signer: Address


@dataclass(frozen=True, slots=True)
class ShownJob:
    """The job with its authorizer's signature."""

    job: Job
    signature: Signature


@dataclass(frozen=True, slots=True)
class ShownAcceptance:
    """The acceptance with the operator's signature."""

    acceptance: Acceptance
    signature: Signature


@dataclass(frozen=True, slots=True)
class CanvasEvidence:
    """A receipt with the operator's signature, and what it commits to.

    leaves: those of the trace, or None where they were not kept.
    output: its bytes, or None where the text is left out.
    """

    receipt: Receipt
    signature: Signature
    leaves: tuple[Digest, ...] | None
    output: bytes | None


@dataclass(frozen=True, slots=True)
class PaidCanvas:
    """The proof that a voucher pays for a canvas of the job."""

    canvas: int
    proof: InclusionProof


@dataclass(frozen=True, slots=True)
class ShownPayment:
    """A voucher with the authorizer's signature, and the canvases of the job that it pays for."""

    voucher: Voucher
    signature: Signature
    paid: tuple[PaidCanvas, ...]


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two objects that one key signed and must not have signed both, each with its signature."""

    first: Acceptance | Receipt | Voucher
    first_signature: Signature
    second: Acceptance | Receipt | Voucher
    second_signature: Signature


CONTRADICTORY: Final[Mapping[str, type[Acceptance | Receipt | Voucher]]] = {
    kind.__name__: kind for kind in (Acceptance, Receipt, Voucher)
}
"""What can contradict another of its type, by the name of the type."""


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """What proves one job. Nothing in it is checked yet.

    content: the bytes of the content, or None where the text is left out.
    """

    domain: Domain
    channel: Channel
    offer: ShownOffer
    job: ShownJob
    acceptance: ShownAcceptance | None
    canvases: tuple[CanvasEvidence, ...]
    payments: tuple[ShownPayment, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    content: bytes | None = None


def canonical(value: Any) -> bytes:
    """Give the one form of a JSON value: members in order, no white space, ASCII, a line break."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def write_evidence(evidence: EvidenceFile) -> bytes:
    """Give the bytes of a file.

    Raises:
        MalformedInput: It would be too long.
    """
    found = canonical(evidence_json(evidence))
    if len(found) > MAX_EVIDENCE_BYTES:
        raise MalformedInput(f"an evidence file is at most {MAX_EVIDENCE_BYTES} bytes")
    return found


def read_evidence(found: bytes) -> EvidenceFile:
    """Read a file. Only its form is checked here.

    Raises:
        EvidenceRefused: It is not such a file, or not in its one form.
    """
    raw = read_json(found, MAX_EVIDENCE_BYTES)
    evidence = evidence_of(raw)
    require_one_form(raw, found)
    return evidence


def read_json(found: bytes, most: int) -> Any:
    """Read the JSON of a file of at most so many bytes.

    Raises:
        EvidenceRefused: It has more, or is not JSON.
    """
    if len(found) > most:
        raise EvidenceRefused("file", f"it has more than {most} bytes")
    try:
        return loads(found)
    except ValueError:
        raise EvidenceRefused("file", "it is not JSON") from None


def require_one_form(raw: Any, found: bytes) -> None:
    """Refuse bytes that say `raw` in another way than the format does.

    Raises:
        EvidenceRefused: They do.
    """
    if canonical(raw) != found:
        raise EvidenceRefused("file", "its JSON is not in the one form that the format has")


# --- values to JSON


def evidence_json(evidence: EvidenceFile) -> dict[str, Any]:
    """Give the JSON object of a file."""
    offer, job = evidence.offer, evidence.job
    accepted = evidence.acceptance
    return {
        "format": FORMAT,
        "chain": written(evidence.domain.chain_id),
        "escrow": written(evidence.domain.verifying_contract),
        "channel": written(evidence.channel),
        "offer": {**_signed(offer.offer, offer.signature), "signer": written(offer.signer)},
        "job": _signed(job.job, job.signature),
        "acceptance": accepted and _signed(accepted.acceptance, accepted.signature),
        "receipts": [_canvas_json(canvas) for canvas in evidence.canvases],
        "vouchers": [_payment_json(payment) for payment in evidence.payments],
        "contradictions": [_contradiction_json(one) for one in evidence.contradictions],
        "content": _text_json(evidence.content),
    }


def _signed(value: TypedData, signature: bytes) -> dict[str, Any]:
    return {"object": written(value), "signature": hexed(signature)}


def _text_json(text: bytes | None) -> str | None:
    return None if text is None else hexed(text)


def _canvas_json(canvas: CanvasEvidence) -> dict[str, Any]:
    leaves = canvas.leaves
    return {
        **_signed(canvas.receipt, canvas.signature),
        "leaves": None if leaves is None else [hexed(leaf) for leaf in leaves],
        "output": _text_json(canvas.output),
    }


def _payment_json(payment: ShownPayment) -> dict[str, Any]:
    paid = [
        {
            "canvas": one.canvas,
            "index": written(one.proof.index),
            "siblings": [hexed(sibling) for sibling in one.proof.siblings],
        }
        for one in payment.paid
    ]
    return {**_signed(payment.voucher, payment.signature), "paid": paid}


def _contradiction_json(one: Contradiction) -> dict[str, Any]:
    return {
        "type": type(one.first).__name__,
        "first": _signed(one.first, one.first_signature),
        "second": _signed(one.second, one.second_signature),
    }


# --- JSON to values


def evidence_of(raw: Any) -> EvidenceFile:
    """Read the JSON object of a file. Only its form is checked here.

    Raises:
        EvidenceRefused: A member is not in its one form. The error names it.
    """
    given = of_names(raw, "file", *MEMBERS)
    if given["format"] != FORMAT:
        raise EvidenceRefused("format", f"it is not {FORMAT}")
    offer = of_names(given["offer"], "offer", "object", "signature", "signer")
    job, job_signature = _taken_signed(Job, given["job"], "job")
    return EvidenceFile(
        domain=Domain(number(given["chain"], "chain"), address(given["escrow"], "escrow")),
        channel=taken(Channel, given["channel"], "channel"),
        offer=ShownOffer(
            taken(Offer, offer["object"], "offer"),
            _signature(offer["signature"], "offer.signature"),
            address(offer["signer"], "offer.signer"),
        ),
        job=ShownJob(job, job_signature),
        acceptance=_optional(given["acceptance"], _acceptance_of),
        canvases=_list(given["receipts"], "receipts", MAX_CANVASES_PER_JOB, _canvas_of),
        payments=_list(given["vouchers"], "vouchers", MAX_EVIDENCE_ENTRIES, _payment_of),
        contradictions=_list(
            given["contradictions"], "contradictions", MAX_EVIDENCE_ENTRIES, _contradiction_of
        ),
        content=_optional(given["content"], lambda x: data(x, "content", MAX_CONTENT_BYTES)),
    )


def _optional(raw: Any, read: Callable[[Any], _V]) -> _V | None:
    return None if raw is None else read(raw)


def _list(raw: Any, where: str, most: int, read: Callable[[Any, str], _V]) -> tuple[_V, ...]:
    found = entries(raw, where, most)
    return tuple(read(one, f"{where}[{i}]") for i, one in enumerate(found))


def _signature(raw: Any, where: str) -> Signature:
    return Signature(data(raw, where, SIGNATURE_BYTES, least=SIGNATURE_BYTES))


def _digest(raw: Any, where: str) -> Digest:
    return Digest(data(raw, where, DIGEST_BYTES, least=DIGEST_BYTES))


def _taken_signed(kind: type[_S], raw: Any, where: str, *more: str) -> tuple[_S, Signature]:
    given = of_names(raw, where, "object", "signature", *more)
    signature = _signature(given["signature"], f"{where}.signature")
    return taken(kind, given["object"], where), signature


def _acceptance_of(raw: Any) -> ShownAcceptance:
    return ShownAcceptance(*_taken_signed(Acceptance, raw, "acceptance"))


def _canvas_of(raw: Any, where: str) -> CanvasEvidence:
    receipt, signature = _taken_signed(Receipt, raw, where, "leaves", "output")
    most = MAX_DENOISING_STEPS + 1
    leaves = _optional(raw["leaves"], lambda x: _list(x, f"{where}.leaves", most, _digest))
    output = _optional(raw["output"], lambda x: data(x, f"{where}.output", MAX_OPENING_BYTES))
    return CanvasEvidence(receipt, signature, leaves, output)


def _payment_of(raw: Any, where: str) -> ShownPayment:
    voucher, signature = _taken_signed(Voucher, raw, where, "paid")

    def paid(one: Any, at: str) -> PaidCanvas:
        given = of_names(one, at, "canvas", "index", "siblings")
        siblings = _list(given["siblings"], f"{at}.siblings", MAX_PROOF_SIBLINGS, _digest)
        index = number(given["index"], f"{at}.index")
        try:
            proof = InclusionProof(index, voucher.count, tuple(Bytes32(s) for s in siblings))
        except MalformedInput as error:
            raise EvidenceRefused(at, str(error)) from None
        return PaidCanvas(number(given["canvas"], f"{at}.canvas"), proof)

    found = _list(raw["paid"], f"{where}.paid", MAX_CANVASES_PER_JOB, paid)
    return ShownPayment(voucher, signature, found)


def _contradiction_of(raw: Any, where: str) -> Contradiction:
    given = of_names(raw, where, "type", "first", "second")
    kind = CONTRADICTORY.get(given["type"]) if isinstance(given["type"], str) else None
    if kind is None:
        raise EvidenceRefused(f"{where}.type", f"it is not among {', '.join(CONTRADICTORY)}")
    first, first_signature = _taken_signed(kind, given["first"], f"{where}.first")
    second, second_signature = _taken_signed(kind, given["second"], f"{where}.second")
    return Contradiction(first, first_signature, second, second_signature)
