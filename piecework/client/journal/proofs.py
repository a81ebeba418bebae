"""Proving that each paid canvas is a leaf under the root that the latest voucher signs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from piecework.client.journal.records import ReceiptRow
from piecework_protocol.eip712 import Domain
from piecework_protocol.merkle import InclusionProof, prove, verify
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Digest


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
    domain: Domain, channel: Channel, voucher: Voucher, rows: Sequence[ReceiptRow]
) -> tuple[ProvenReceipt, ...]:
    """Check the digest, the operator's signature and the inclusion of every receipt of a channel.

    `rows` are all receipts of the channel in leaf order. A journal that lost some can check
    signatures and prove nothing. That happens to a restored copy which the worker's record brought
    up to date.
    """
    leaves = [row.digest for row in rows]
    whole = [row.leaf_index for row in rows] == list(range(voucher.count))
    proven = []
    for row in rows:
        proof = prove(leaves, row.leaf_index) if whole else None
        trouble = ""
        if Digest(domain.digest(row.receipt)) != row.digest:
            trouble = "the recorded digest is not the receipt's"
        elif not signed_by(domain, row.receipt, row.signature, channel.operator):
            trouble = "the receipt is not signed by the channel's operator"
        elif proof is None:
            trouble = "this journal lacks receipts of the channel, so inclusion cannot be proved"
        elif not verify(proof, row.digest, voucher.receipts_root):
            trouble = "the receipt is not under the voucher's root"
        proven.append(ProvenReceipt(row, proof, trouble, voucher.receipts_root))
    return tuple(proven)
