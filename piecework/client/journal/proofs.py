"""Proving receipts: that each paid canvas is a leaf under the root that the latest voucher signs.
Pure."""

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
    """A receipt with its inclusion proof. `trouble` says what does not hold, empty when all
    does."""

    row: ReceiptRow
    proof: InclusionProof | None
    trouble: str


def prove_receipts(
    domain: Domain, channel: Channel, voucher: Voucher, rows: Sequence[ReceiptRow]
) -> tuple[ProvenReceipt, ...]:
    """Check every receipt of a channel against the voucher: digest, operator's signature,
    inclusion.

    `rows` are all receipts of the channel in leaf order. A journal that lost some (restored from a
    copy, then brought up to date by the worker's record) can check signatures but prove nothing.
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
        proven.append(ProvenReceipt(row, proof, trouble))
    return tuple(proven)
