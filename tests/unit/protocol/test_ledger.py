from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from piecework_protocol.errors import InvariantBroken, ProtocolViolation
from piecework_protocol.frames import LeafRef, PayVoucher
from piecework_protocol.ledger import PayerLedger, WorkerLedger, closing_of, empty_voucher
from piecework_protocol.limits import MAX_LEAVES_PER_VOUCHER
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import CloseChannel, Voucher
from piecework_protocol.types import Amount, ChannelId, Digest, JobId, Signature, Uint64, keccak256

CHANNEL = ChannelId(keccak256(b"channel"))
JOB = JobId(keccak256(b"job"))
DEPOSIT = Amount(1000)
UNSIGNED = Signature(bytes(65))


def books(paid: int, issued: int) -> tuple[WorkerLedger, PayerLedger]:
    """The two books after `issued` receipts of 10 base units, of which `paid` are paid and
    acknowledged."""
    worker, payer = WorkerLedger(CHANNEL), PayerLedger(CHANNEL)
    for canvas in range(issued):
        worker = worker.issue(LeafRef(JOB, canvas), digest(canvas), Amount(10))
    for canvas in range(paid):
        payer = payer.pay(LeafRef(JOB, canvas), digest(canvas), Amount(10), DEPOSIT)
        accepted = worker.apply(paying(payer), DEPOSIT)
        assert accepted is not None
        worker, payer = accepted, payer.acknowledge(canvas + 1)
    return worker, payer


def paying(payer: PayerLedger) -> PayVoucher:
    return payer.payment(payer.voucher(), UNSIGNED)


def digest(canvas: int) -> Digest:
    return Digest(keccak256(canvas.to_bytes(4, "big")))


def next_payment(worker: WorkerLedger, payer: PayerLedger) -> PayVoucher:
    canvas = payer.accumulator.count
    return paying(payer.pay(LeafRef(JOB, canvas), digest(canvas), Amount(10), DEPOSIT))


BROKEN: dict[str, tuple[str, Callable[[PayVoucher], PayVoucher]]] = {
    "another channel": ("5.2", lambda p: revoucher(p, channel=ChannelId(bytes(32)))),
    "a count that the leaves do not give": ("5.3", lambda p: revoucher(p, count=Uint64(5))),
    "a receipt that was never issued": ("5.3", lambda p: replace(p, leaves=(LeafRef(JOB, 99),))),
    "a receipt that was paid before": ("5.3", lambda p: replace(p, leaves=(LeafRef(JOB, 0),))),
    "a gap before its leaves": (
        "5.3",
        lambda p: replace(revoucher(p, count=Uint64(4)), base_count=3),
    ),
    "too little": ("5.4", lambda p: revoucher(p, cumulative=Amount(29))),
    "too much": ("5.4", lambda p: revoucher(p, cumulative=Amount(31))),
    "another root": ("5.4", lambda p: revoucher(p, receipts_root=EMPTY_ROOT)),
}


def revoucher(payment: PayVoucher, **changes: object) -> PayVoucher:
    return replace(payment, voucher=payment.voucher.replace(**changes))


@pytest.mark.parametrize("defect", BROKEN, ids=list(BROKEN))
def test_a_broken_voucher_is_refused_with_its_clause_and_changes_nothing(defect: str) -> None:
    worker, payer = books(paid=2, issued=3)
    clause, damage = BROKEN[defect]
    with pytest.raises(ProtocolViolation) as caught:
        worker.apply(damage(next_payment(worker, payer)), DEPOSIT)
    assert caught.value.clause == clause
    assert worker.cumulative == 20 and worker.accumulator.count == 2


def test_a_voucher_above_the_deposit_is_refused() -> None:
    worker, payer = books(paid=2, issued=3)
    with pytest.raises(ProtocolViolation, match=r"5\.5"):
        worker.apply(next_payment(worker, payer), Amount(29))


def test_a_payer_never_promises_more_than_the_deposit() -> None:
    _, payer = books(paid=2, issued=3)
    with pytest.raises(ProtocolViolation, match=r"5\.5"):
        payer.pay(LeafRef(JOB, 2), digest(2), Amount(981), DEPOSIT)


def test_the_same_voucher_again_is_taken_as_known() -> None:
    worker, payer = books(paid=1, issued=2)
    payment = next_payment(worker, payer)
    after = worker.apply(payment, DEPOSIT)
    assert after is not None and after.apply(payment, DEPOSIT) is None


def test_a_voucher_with_a_lower_amount_is_refused_when_it_contradicts_the_book() -> None:
    worker, payer = books(paid=2, issued=2)
    latest = paying(payer)
    assert worker.accepted is not None
    contradiction = revoucher(
        replace(latest, base_count=1, leaves=(LeafRef(JOB, 1),)), cumulative=Amount(19)
    )
    with pytest.raises(ProtocolViolation, match=r"5\.1"):
        worker.apply(contradiction, DEPOSIT)


def test_a_lost_voucher_is_covered_by_the_next() -> None:
    worker, payer = books(paid=1, issued=3)
    payer = payer.pay(LeafRef(JOB, 1), digest(1), Amount(10), DEPOSIT)
    payer = payer.pay(LeafRef(JOB, 2), digest(2), Amount(10), DEPOSIT)
    after = worker.apply(paying(payer), DEPOSIT)
    assert after is not None and after.accumulator.count == 3 and not after.unpaid


def test_a_voucher_that_builds_on_receipts_the_worker_never_saw_paid_is_refused() -> None:
    worker, _ = books(paid=0, issued=3)
    _, ahead = books(paid=2, issued=3)
    with pytest.raises(ProtocolViolation, match=r"5\.3"):
        worker.apply(next_payment(worker, ahead), DEPOSIT)


def test_a_payer_that_lost_its_newest_entries_adopts_the_workers_record() -> None:
    worker, payer = books(paid=3, issued=3)
    account = worker.account()
    assert account is not None
    _, behind = books(paid=1, issued=1)
    adopted = behind.adopt(account)
    assert adopted.cumulative == payer.cumulative and adopted.accumulator == payer.accumulator


def test_a_record_that_lies_before_our_own_is_not_adopted() -> None:
    worker, _ = books(paid=1, issued=1)
    _, payer = books(paid=3, issued=3)
    account = worker.account()
    assert account is not None
    with pytest.raises(ProtocolViolation, match=r"5\.7"):
        payer.adopt(account)


def test_a_record_whose_peaks_do_not_give_its_root_is_not_adopted() -> None:
    worker, _ = books(paid=3, issued=3)
    account = worker.account()
    assert account is not None
    with pytest.raises(ProtocolViolation, match=r"5\.7"):
        PayerLedger(CHANNEL).adopt(replace(account, peaks=account.peaks[::-1]))


@pytest.mark.parametrize("peaks", [0, 1, 3, 64])
def test_a_record_with_another_number_of_peaks_is_not_adopted(peaks: int) -> None:
    worker, _ = books(paid=3, issued=3)
    account = worker.account()
    assert account is not None
    with pytest.raises(ProtocolViolation, match=r"5\.7"):
        PayerLedger(CHANNEL).adopt(replace(account, peaks=account.peaks[:1] * peaks))


def test_an_acknowledgement_of_receipts_never_paid_is_refused() -> None:
    _, payer = books(paid=1, issued=1)
    with pytest.raises(ProtocolViolation, match=r"5\.6"):
        payer.acknowledge(2)


def test_a_receipt_cannot_be_issued_twice() -> None:
    worker, _ = books(paid=0, issued=1)
    with pytest.raises(InvariantBroken):
        worker.issue(LeafRef(JOB, 0), digest(0), Amount(10))


def test_the_empty_voucher_states_an_empty_book() -> None:
    assert PayerLedger(CHANNEL).voucher() == empty_voucher(CHANNEL)


def test_money_may_reach_the_deposit_and_not_pass_it() -> None:
    worker, payer = books(paid=0, issued=1)
    payer = payer.pay(LeafRef(JOB, 0), digest(0), Amount(10), Amount(10))
    assert worker.apply(paying(payer), Amount(10)) is not None
    with pytest.raises(ProtocolViolation, match=r"5\.5"):
        worker.apply(paying(payer), Amount(9))
    with pytest.raises(ProtocolViolation, match=r"5\.5"):
        PayerLedger(CHANNEL).pay(LeafRef(JOB, 0), digest(0), Amount(10), Amount(9))


def test_a_voucher_names_as_many_receipts_as_the_protocol_allows_and_one_more_is_refused() -> None:
    worker, payer = WorkerLedger(CHANNEL), PayerLedger(CHANNEL)
    for canvas in range(MAX_LEAVES_PER_VOUCHER):
        ref = LeafRef(JOB, canvas)
        worker = worker.issue(ref, digest(canvas), Amount(0))
        payer = payer.pay(ref, digest(canvas), Amount(0), DEPOSIT)
    assert worker.apply(paying(payer), DEPOSIT) is not None
    ref = LeafRef(JOB, MAX_LEAVES_PER_VOUCHER)
    worker = worker.issue(ref, digest(ref.canvas), Amount(0))
    with pytest.raises(ProtocolViolation, match=r"5\.3"):
        worker.apply(paying(payer.pay(ref, digest(ref.canvas), Amount(0), DEPOSIT)), DEPOSIT)


def test_an_empty_voucher_says_nothing_to_an_empty_book() -> None:
    payment = PayVoucher(empty_voucher(CHANNEL), UNSIGNED, 0, ())
    assert WorkerLedger(CHANNEL).apply(payment, DEPOSIT) is None


def test_the_record_that_the_worker_shows_carries_the_payers_own_signature() -> None:
    signature = Signature(bytes([1]) * 65)
    worker, payer = books(paid=0, issued=1)
    payer = payer.pay(LeafRef(JOB, 0), digest(0), Amount(10), DEPOSIT)
    applied = worker.apply(replace(paying(payer), signature=signature), DEPOSIT)
    assert applied is not None
    account = applied.account()
    assert account is not None and account.signature == signature
    assert account.voucher == payer.voucher()


def test_an_acknowledgement_leaves_exactly_what_came_after_it() -> None:
    payer = PayerLedger(CHANNEL)
    for canvas in range(5):
        payer = payer.pay(LeafRef(JOB, canvas), digest(canvas), Amount(1), DEPOSIT)
    payer = payer.acknowledge(2)
    assert payer.unacknowledged == tuple(LeafRef(JOB, n) for n in (2, 3, 4))
    payer = payer.acknowledge(4)
    assert payer.unacknowledged == (LeafRef(JOB, 4),)
    assert payer.acknowledge(3) is payer and payer.acknowledge(4) is payer


def test_an_adopted_record_of_the_same_length_is_complete() -> None:
    worker, payer = books(paid=3, issued=3)
    account = worker.account()
    assert account is not None
    assert payer.adopt(account) == payer
    richer = replace(payer, cumulative=Amount(payer.cumulative + 1))
    with pytest.raises(ProtocolViolation, match=r"5\.7"):
        richer.adopt(account)
    fresh = PayerLedger(CHANNEL).adopt(account)
    assert (fresh.channel, fresh.acknowledged) == (CHANNEL, 3)


def test_issuing_or_paying_a_receipt_twice_names_what_was_broken() -> None:
    worker, payer = books(paid=0, issued=1)
    with pytest.raises(InvariantBroken, match=r"^a receipt is issued once$"):
        worker.issue(LeafRef(JOB, 0), digest(0), Amount(10))
    payer = payer.pay(LeafRef(JOB, 0), digest(0), Amount(10), DEPOSIT)
    with pytest.raises(InvariantBroken, match=r"^a receipt is paid once$"):
        payer.pay(LeafRef(JOB, 0), digest(0), Amount(10), DEPOSIT)


def test_a_rewound_book_names_again_what_the_worker_lacks() -> None:
    _, payer = books(paid=3, issued=3)
    since = (LeafRef(JOB, 1), LeafRef(JOB, 2))
    rewound = payer.rewind(1, since)
    assert (rewound.acknowledged, rewound.unacknowledged) == (1, since)
    assert rewound.voucher() == payer.voucher()
    with pytest.raises(InvariantBroken):
        payer.rewind(2, since)


def test_a_voucher_of_another_book_is_not_sent() -> None:
    _, payer = books(paid=1, issued=1)
    with pytest.raises(InvariantBroken):
        payer.payment(empty_voucher(CHANNEL), UNSIGNED)


def test_the_unpaid_canvases_of_a_job_are_its_own() -> None:
    worker = WorkerLedger(CHANNEL)
    other = JobId(bytes([7]) * 32)
    for ref in (LeafRef(JOB, 0), LeafRef(other, 0), LeafRef(JOB, 1)):
        worker = worker.issue(ref, digest(ref.canvas + ref.job[0]), Amount(10))
    assert (worker.unpaid_canvases(JOB), worker.unpaid_canvases(other)) == (2, 1)
    assert worker.unpaid_canvases(JobId(bytes(32))) == 0


@pytest.mark.parametrize(
    ("changes", "contradiction"),
    [
        ({}, False),
        ({"cumulative": Amount(19)}, True),
        ({"cumulative": Amount(21)}, True),
        ({"receipts_root": EMPTY_ROOT}, True),
        ({"count": Uint64(3)}, False),
        ({"count": Uint64(3), "cumulative": Amount(21)}, False),
        ({"count": Uint64(3), "cumulative": Amount(19)}, True),
        ({"count": Uint64(1)}, False),
        ({"count": Uint64(1), "cumulative": Amount(19)}, False),
        ({"count": Uint64(1), "cumulative": Amount(21)}, True),
    ],
)
def test_amount_and_count_of_two_vouchers_grow_together(
    changes: dict[str, int], contradiction: bool
) -> None:
    """The latest one pays 20 base units for two receipts."""
    worker, payer = books(paid=2, issued=2)
    assert worker.contradicts(payer.voucher().replace(**changes)) is contradiction


def test_nothing_contradicts_a_book_without_a_voucher() -> None:
    assert WorkerLedger(CHANNEL).contradicts(empty_voucher(CHANNEL)) is False


def test_a_closing_states_what_its_voucher_does_and_the_fee() -> None:
    voucher = Voucher(CHANNEL, Amount(20), Uint64(2), digest(1))
    assert closing_of(voucher, fee=3) == CloseChannel(
        CHANNEL, Amount(20), Uint64(2), digest(1), Amount(3)
    )
    assert closing_of(voucher).fee == 0


def test_a_payment_carries_the_signature_that_it_was_given() -> None:
    _, payer = books(paid=1, issued=1)
    signature = Signature(bytes([7]) * 65)
    assert payer.payment(payer.voucher(), signature).signature == signature
