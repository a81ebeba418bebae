"""Proving that each paid canvas is a leaf under the root that the latest voucher signs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from piecework.client.journal.records import ReceiptRow
from piecework_protocol.eip712 import Domain
from piecework_protocol.merkle import InclusionProof, prove_all
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Digest, JobId


@dataclass(frozen=True, slots=True)
class ProvenReceipt:
    """A paid receipt with its inclusion proof.

    Attributes:
        row: The receipt as the journal has it.
        proof: The way from the receipt to the root, or None if this journal cannot show it.
        trouble: What does not hold. Empty if the receipt is proved.
        receipts_root: The root that the latest voucher of the channel signs.
    """

    row: ReceiptRow
    proof: InclusionProof | None
    trouble: str
    receipts_root: Digest


def prove_receipts(
    domain: Domain,
    channel: Channel,
    voucher: Voucher,
    rows: Sequence[ReceiptRow],
    *,
    job: JobId | None = None,
) -> tuple[ProvenReceipt, ...]:
    """Check the digest, the operator's signature and the inclusion of receipts of a channel.

    The tree is built once, so the time grows with the number of receipts and not with its square.

    Args:
        domain: What the client's signatures are under.
        channel: The channel's terms.
        voucher: The latest voucher of the channel.
        rows: All receipts of the channel in leaf order. A journal that lost some can check
            signatures and prove nothing. That happens to a restored copy which the worker's record
            brought up to date.
        job: Only this job's receipts are checked and returned.
    """
    root, proofs = prove_all([row.digest for row in rows])
    whole = [row.leaf_index for row in rows] == list(range(voucher.count))
    proven = []
    for row, proof in zip(rows, proofs, strict=True):
        if job is not None and row.receipt.job != job:
            continue
        trouble = ""
        if Digest(domain.digest(row.receipt)) != row.digest:
            trouble = "the recorded digest is not the receipt's"
        elif not signed_by(domain, row.receipt, row.signature, channel.operator):
            trouble = "the receipt is not signed by the channel's operator"
        elif not whole:
            trouble = "this journal lacks receipts of the channel, so inclusion cannot be proved"
        elif root != voucher.receipts_root:
            trouble = "the receipt is not under the voucher's root"
        shown = proof if whole else None
        proven.append(ProvenReceipt(row, shown, trouble, voucher.receipts_root))
    return tuple(proven)
