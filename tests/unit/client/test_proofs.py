"""Receipts proved against the voucher."""

from __future__ import annotations

from dataclasses import replace

from piecework.client.journal.proofs import prove_receipts
from piecework.client.journal.records import ReceiptRow
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Voucher
from piecework_protocol.types import Amount, Digest, Signature, Uint64
from tests.support.fake_chain import DOMAIN
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
