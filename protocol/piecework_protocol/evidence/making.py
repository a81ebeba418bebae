"""Putting an evidence file together, for clients and workers alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from piecework_protocol.eip712 import Domain
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    PaidCanvas,
    ShownAcceptance,
    ShownJob,
    ShownOffer,
    ShownPayment,
)
from piecework_protocol.merkle import prove_all
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.signing import recover
from piecework_protocol.types import Digest, Signature
from piecework_protocol.wire import SignedOffer


def make_file(
    domain: Domain,
    channel: Channel,
    offer: SignedOffer,
    job: ShownJob,
    *,
    acceptance: ShownAcceptance | None,
    canvases: Sequence[CanvasEvidence],
    payment: ShownPayment | None,
    contradictions: Sequence[Contradiction] = (),
    content: bytes | None = None,
) -> EvidenceFile:
    """Make the file of a job, and check it.

    Raises:
        EvidenceRefused: The parts do not hold together.
    """
    signer = recover(domain.digest(offer.offer), offer.signature)
    file = EvidenceFile(
        domain=domain,
        channel=channel,
        offer=ShownOffer(offer.offer, offer.signature, signer),
        job=job,
        acceptance=acceptance,
        canvases=tuple(canvases),
        payments=() if payment is None else (payment,),
        contradictions=tuple(contradictions),
        content=content,
    )
    check_evidence(file)
    return file


def payment_of(
    voucher: Voucher, signature: Signature, paid: Sequence[Digest], mine: Mapping[Digest, int]
) -> ShownPayment | None:
    """Prove which of a job's canvases a voucher pays for. None: none of them.

    paid: the digests of all receipts that the voucher pays for, in their order. mine: the canvases
    of the job, by the digest of their receipt.
    """
    root, proofs = prove_all(paid)
    if root != voucher.receipts_root or len(paid) != voucher.count:
        return None
    shown = tuple(
        PaidCanvas(mine[digest], proof)
        for digest, proof in zip(paid, proofs, strict=True)
        if digest in mine
    )
    return ShownPayment(voucher, signature, shown) if shown else None
