"""The two books of a channel as a state machine: an honest pair, and a peer that sends anything."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from piecework_protocol import merkle
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import LeafRef, PayVoucher
from piecework_protocol.ledger import PayerLedger, WorkerLedger
from piecework_protocol.limits import MAX_LEAVES_PER_VOUCHER
from piecework_protocol.types import (
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Signature,
    Uint64,
    keccak256,
)

CHANNEL = ChannelId(keccak256(b"channel"))
JOBS = tuple(JobId(keccak256(bytes([n]))) for n in range(3))
DEPOSIT = Amount(500)
UNSIGNED = Signature(bytes(65))
AMOUNTS = st.integers(0, 40)


def digest_of(ref: LeafRef) -> Digest:
    return Digest(keccak256(ref.job + ref.canvas.to_bytes(4, "big")))


class TwoLedgers(RuleBasedStateMachine):
    """`paid` is the model: every receipt that the payer promised money for, in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.worker = WorkerLedger(CHANNEL)
        self.payer = PayerLedger(CHANNEL)
        self.paid: list[LeafRef] = []
        self.amounts: dict[LeafRef, Amount] = {}
        self.delivered: deque[LeafRef] = deque()
        self.vouchers: list[PayVoucher] = []
        self.confirmations: list[int] = []

    # --- honest steps, in any order

    @rule(job=st.sampled_from(JOBS), amount=AMOUNTS)
    def deliver(self, job: JobId, amount: int) -> None:
        """The worker issues a receipt; it is on its way to the payer."""
        ref = LeafRef(job, sum(known.job == job for known in self.amounts))
        self.amounts[ref] = Amount(amount)
        self.worker = self.worker.issue(ref, digest_of(ref), Amount(amount))
        self.delivered.append(ref)

    @precondition(lambda self: self.delivered)
    @rule(turn=st.integers(0, 3))
    def pay(self, turn: int) -> None:
        """The payer takes any receipt that is under way, and promises money for it or refuses."""
        self.delivered.rotate(-turn)
        ref = self.delivered.popleft()
        before = self.payer
        total = before.cumulative + self.amounts[ref]
        try:
            self.payer = before.pay(ref, digest_of(ref), self.amounts[ref], DEPOSIT)
        except ProtocolViolation as violation:
            assert violation.clause == "5.5" and total > DEPOSIT
            return
        assert total <= DEPOSIT
        self.paid.append(ref)
        self.vouchers.append(self.payer.payment(self.payer.voucher(), UNSIGNED))

    @precondition(lambda self: self.vouchers)
    @rule(data=st.data())
    def voucher_arrives(self, data: st.DataObject) -> None:
        """Any voucher that was ever sent arrives: late, twice, or overtaking another."""
        payment = data.draw(st.sampled_from(self.vouchers))
        known = self.worker.accumulator.count
        applied = self.worker.apply(payment, DEPOSIT)
        if payment.voucher.count <= known:
            assert applied is None
            return
        assert applied is not None and applied.accepted == payment
        self.worker = applied
        self.confirmations.append(applied.accumulator.count)

    @precondition(lambda self: self.confirmations)
    @rule(data=st.data())
    def confirmation_arrives(self, data: st.DataObject) -> None:
        """Any confirmation arrives, old ones too. The record never goes back."""
        count = data.draw(st.sampled_from(self.confirmations))
        before = self.payer.acknowledged
        self.payer = self.payer.acknowledge(count)
        assert self.payer.acknowledged == max(before, count)

    @rule()
    def reconnect(self) -> None:
        """A new stream: the payer names again what the worker's record lacks."""
        count = self.worker.accumulator.count
        self.payer = self.payer.rewind(count, tuple(self.paid[count:]))
        if len(self.paid) > count:
            self.vouchers.append(self.payer.payment(self.payer.voucher(), UNSIGNED))

    @precondition(lambda self: self.worker.accepted)
    @rule()
    def payer_restores_an_old_copy(self) -> None:
        """An older book takes over the worker's record, if that is not behind its own."""
        account = self.worker.account()
        assert account is not None
        adopted = PayerLedger(CHANNEL).adopt(account)
        assert adopted.cumulative == self.worker.cumulative
        assert adopted.accumulator == self.worker.accumulator
        if self.payer.accumulator.count > self.worker.accumulator.count:
            with pytest.raises(ProtocolViolation, match=r"5\.7"):
                self.payer.adopt(account)

    # --- a hostile payer

    @rule(
        count=st.integers(0, 12),
        base=st.integers(0, 12),
        cumulative=st.integers(0, 600),
        refs=st.lists(st.tuples(st.sampled_from(JOBS), st.integers(0, 6)), max_size=6),
        root=st.sampled_from(["right", "wrong"]),
    )
    def hostile_voucher(
        self, count: int, base: int, cumulative: int, refs: list[tuple[JobId, int]], root: str
    ) -> None:
        """Any voucher at all is refused with its clause, known already, or exactly what is owed."""
        leaves = tuple(LeafRef(job, canvas) for job, canvas in refs)
        added = leaves[max(0, self.worker.accumulator.count - base) :]
        accumulator = self.worker.accumulator.extend([digest_of(ref) for ref in added])
        voucher = self.payer.voucher().replace(
            cumulative=Amount(cumulative),
            count=Uint64(count),
            receipts_root=accumulator.root() if root == "right" else Digest(bytes(32)),
        )
        before = self.worker
        try:
            applied = before.apply(PayVoucher(voucher, UNSIGNED, base, leaves), DEPOSIT)
        except ProtocolViolation as violation:
            assert violation.clause in {"5.1", "5.3", "5.4", "5.5"}
        else:
            if applied is None:
                assert count <= before.accumulator.count and cumulative <= before.cumulative
            else:
                self._is_exactly_owed(before, applied, added)
        assert self.worker is before  # refused or not, the hostile voucher is not kept

    def _is_exactly_owed(
        self, before: WorkerLedger, after: WorkerLedger, added: tuple[LeafRef, ...]
    ) -> None:
        assert len(set(added)) == len(added) and set(added) <= set(before.unpaid)
        assert after.cumulative == before.cumulative + sum(self.amounts[r] for r in added)
        assert after.cumulative <= DEPOSIT
        assert set(after.unpaid) == set(before.unpaid) - set(added)
        assert after.accumulator.count == before.accumulator.count + len(added)

    @precondition(lambda self: self.vouchers)
    @rule(data=st.data(), other=st.binary(min_size=32, max_size=32))
    def damaged_voucher(self, data: st.DataObject, other: bytes) -> None:
        """A real voucher with one field changed is refused or changes nothing."""
        payment = data.draw(st.sampled_from(self.vouchers))
        v = payment.voucher
        damaged = data.draw(
            st.sampled_from(
                [
                    replace(payment, voucher=v.replace(channel=ChannelId(other))),
                    replace(payment, voucher=v.replace(cumulative=Amount(v.cumulative + 1))),
                    replace(payment, voucher=v.replace(receipts_root=Digest(other))),
                    replace(payment, base_count=payment.base_count + 1),
                    replace(payment, leaves=payment.leaves * (MAX_LEAVES_PER_VOUCHER + 1)),
                ]
            )
        )
        try:
            applied = self.worker.apply(damaged, DEPOSIT)
        except ProtocolViolation:
            return
        assert applied is None, "a voucher that states something else was accepted"
        assert damaged.voucher.count <= self.worker.accumulator.count

    # --- what always holds

    @invariant()
    def promises_bound_claims(self) -> None:
        assert self.worker.cumulative <= self.payer.cumulative <= DEPOSIT
        assert self.worker.accumulator.count <= self.payer.accumulator.count == len(self.paid)

    @invariant()
    def every_base_unit_has_its_receipt(self) -> None:
        settled = self.paid[: self.worker.accumulator.count]
        assert self.worker.cumulative == sum(self.amounts[ref] for ref in settled)
        assert self.payer.cumulative == sum(self.amounts[ref] for ref in self.paid)
        assert set(self.worker.unpaid) == set(self.amounts) - set(settled)

    @invariant()
    def every_paid_receipt_proves_into_the_root(self) -> None:
        digests = [digest_of(ref) for ref in self.paid]
        root = self.payer.voucher().receipts_root
        assert root == merkle.root(digests)
        for index in range(0, len(digests), 3):
            assert merkle.verify(merkle.prove(digests, index), Bytes32(digests[index]), root)

    @invariant()
    def the_next_voucher_covers_what_is_not_confirmed(self) -> None:
        assert list(self.payer.unacknowledged) == self.paid[self.payer.acknowledged :]


TestTwoLedgers = TwoLedgers.TestCase
TestTwoLedgers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
