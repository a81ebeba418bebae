"""Receipts proved against the voucher."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType

import pytest

from piecework.client.journal.proofs import prove_receipts
from piecework.client.journal.records import ReceiptRow
from piecework_protocol.merkle import Accumulator, leaf_hash, node_hash
from piecework_protocol.objects import Voucher
from piecework_protocol.types import Amount, Digest, Signature, Uint64
from tests.support.chain.fake_chain import DOMAIN
from tests.unit.client.test_store import CHANNEL, canvas, job_row, terms


def rows(count: int) -> tuple[ReceiptRow, ...]:
    events = [canvas(job_row(1, 1000), i, 5) for i in range(count)]
    return tuple(
        ReceiptRow(CHANNEL, e.receipt, e.signature, e.digest, i, None) for i, e in enumerate(events)
    )


def voucher(receipts: tuple[ReceiptRow, ...]) -> Voucher:
    tree = Accumulator().extend([r.digest for r in receipts])
    return Voucher(CHANNEL, Amount(5 * len(receipts)), Uint64(len(receipts)), tree.root())


def test_every_receipt_is_proved_under_the_latest_voucher() -> None:
    for count in (1, 2, 7, 8):
        proven = prove_receipts(DOMAIN, terms(), voucher(rows(count)), rows(count))
        assert [p.trouble for p in proven] == [""] * count
        assert all(p.proof is not None and p.proof.count == count for p in proven)


class TreeHashes:
    """Counts the hashes of leaves and nodes that a piece of work takes."""

    CODES = (leaf_hash.__code__, node_hash.__code__)

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        self.count += event == "call" and frame.f_code in self.CODES


@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_tree_of_all_receipts_is_built_once(count: int) -> None:
    receipts = rows(count)
    latest, hashes = voucher(receipts), TreeHashes()
    sys.setprofile(hashes)
    try:
        prove_receipts(DOMAIN, terms(), latest, receipts)
    finally:
        sys.setprofile(None)
    assert hashes.count == 2 * count - 1


def test_one_jobs_receipts_are_proved_alone() -> None:
    mine, other = rows(2), [canvas(job_row(2, 1000), i, 5) for i in range(2)]
    theirs = tuple(
        ReceiptRow(CHANNEL, e.receipt, e.signature, e.digest, 2 + i, None)
        for i, e in enumerate(other)
    )
    whole = (*mine, *theirs)
    job = theirs[0].receipt.job
    proven = prove_receipts(DOMAIN, terms(), voucher(whole), whole, job=job)
    assert [p.row for p in proven] == list(theirs)
    assert not any(p.trouble for p in proven)


def test_a_changed_receipt_is_found() -> None:
    good = rows(4)
    forged = replace(good[2], receipt=good[2].receipt.replace(amount=Amount(6)))
    proven = prove_receipts(DOMAIN, terms(), voucher(good), (*good[:2], forged, good[3]))
    assert [bool(p.trouble) for p in proven] == [False, False, True, False]


def test_a_receipt_signed_by_somebody_else_is_found() -> None:
    good = rows(2)
    forged = replace(good[1], signature=Signature(bytes(65)))
    proven = prove_receipts(DOMAIN, terms(), voucher(good), (good[0], forged))
    assert "not signed" in proven[1].trouble


def test_a_root_that_does_not_commit_to_them_is_found() -> None:
    good = rows(3)
    other = voucher(good).replace(receipts_root=Digest(bytes(32)))
    assert all(
        "not under the voucher's root" in p.trouble
        for p in prove_receipts(DOMAIN, terms(), other, good)
    )


def test_missing_receipts_are_said_not_hidden() -> None:
    good = rows(4)
    proven = prove_receipts(DOMAIN, terms(), voucher(good), good[1:])
    assert all("lacks receipts" in p.trouble for p in proven)
