"""The two books of a payment channel: what the worker is owed, and what the payer has promised.

Both are immutable values. An operation returns the next book. The shell makes it durable and then
uses it. The payer decides the order of the receipts in the accumulator. So jobs that share a
channel never wait for one another (docs/adr/0002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from piecework_protocol.errors import ProtocolViolation, invariant
from piecework_protocol.frames import Account, LeafRef, PayVoucher
from piecework_protocol.limits import MAX_LEAVES_PER_VOUCHER
from piecework_protocol.merkle import EMPTY_ROOT, Accumulator
from piecework_protocol.objects import CloseChannel, Voucher
from piecework_protocol.types import Amount, ChannelId, Digest, JobId, Signature, Uint64


@dataclass(frozen=True, slots=True)
class Unpaid:
    """A receipt that was issued and not yet paid for."""

    digest: Digest
    amount: Amount


@dataclass(frozen=True, slots=True)
class WorkerLedger:
    """The worker's book of one channel. Amounts and counts only grow (clause 5.1)."""

    channel: ChannelId
    accepted: PayVoucher | None = None
    accumulator: Accumulator = field(default_factory=Accumulator)
    unpaid: Mapping[LeafRef, Unpaid] = field(default_factory=dict)

    @property
    def cumulative(self) -> Amount:
        """Give the base units that the latest accepted voucher promises."""
        return self.accepted.voucher.cumulative if self.accepted else Amount(0)

    def account(self) -> Account | None:
        """Give what the worker tells a client about the channel, or None before any payment."""
        if self.accepted is None:
            return None
        return Account(self.accepted.voucher, self.accepted.signature, self.accumulator.peaks)

    def contradicts(self, voucher: Voucher) -> bool:
        """Say whether a voucher of this channel contradicts the latest one (clause 5.1).

        Amount and count grow together, and one count has one amount and one root.
        """
        if self.accepted is None:
            return False
        latest = self.accepted.voucher
        if voucher.count == latest.count:
            return voucher != latest
        later, paid = voucher.count > latest.count, voucher.cumulative
        return paid < latest.cumulative if later else paid > latest.cumulative

    def unpaid_canvases(self, job: JobId) -> int:
        """Count the delivered canvases of `job` that await payment."""
        return sum(ref.job == job for ref in self.unpaid)

    def issue(self, ref: LeafRef, digest: Digest, amount: Amount) -> WorkerLedger:
        """Give the book after a receipt was issued."""
        invariant(ref not in self.unpaid, "a receipt is issued once")
        return replace(self, unpaid={**self.unpaid, ref: Unpaid(digest, amount)})

    def apply(self, payment: PayVoucher, deposit: Amount) -> WorkerLedger | None:
        """Give the book after `payment`, or None when an accepted voucher already covers it.

        The caller checks the signature. `deposit` bounds what a voucher may promise, in base units.

        Raises:
            ProtocolViolation: The voucher breaks a clause.
        """
        voucher = payment.voucher
        if voucher.channel != self.channel:
            raise ProtocolViolation("5.2", "the voucher is for another channel")
        if len(payment.leaves) > MAX_LEAVES_PER_VOUCHER:
            raise ProtocolViolation(
                "5.3", f"a voucher adds at most {MAX_LEAVES_PER_VOUCHER} receipts"
            )
        if payment.base_count + len(payment.leaves) != voucher.count:
            raise ProtocolViolation(
                "5.3", "the receipts named do not add up to the voucher's count"
            )
        if voucher.count <= self.accumulator.count:
            self._check_stale(voucher)
            return None
        if payment.base_count > self.accumulator.count:
            raise ProtocolViolation(
                "5.3", "the voucher builds on receipts that were never paid here"
            )
        return self._extend(
            payment, payment.leaves[self.accumulator.count - payment.base_count :], deposit
        )

    def _check_stale(self, voucher: Voucher) -> None:
        """Take an older voucher, which may arrive late. Refuse one that contradicts the book."""
        if voucher.cumulative > self.cumulative:
            raise ProtocolViolation("5.1", "the voucher pays more for fewer receipts")
        latest = self.accepted.voucher if self.accepted else None
        if latest is not None and voucher.count == latest.count and voucher != latest:
            raise ProtocolViolation("5.1", "two vouchers with one count contradict each other")

    def _extend(
        self, payment: PayVoucher, added: Sequence[LeafRef], deposit: Amount
    ) -> WorkerLedger:
        voucher, remaining = payment.voucher, dict(self.unpaid)
        accumulator, owed = self.accumulator, int(self.cumulative)
        for ref in added:
            receipt = remaining.pop(ref, None)
            if receipt is None:
                raise ProtocolViolation(
                    "5.3", f"canvas {ref.canvas} of job {ref.job.hex()} is not owed"
                )
            accumulator = accumulator.append(receipt.digest)
            owed += receipt.amount
        if voucher.cumulative != owed:
            raise ProtocolViolation(
                "5.4", f"the voucher pays {voucher.cumulative}, its receipts sum to {owed}"
            )
        if voucher.cumulative > deposit:
            raise ProtocolViolation(
                "5.5", f"the voucher exceeds the channel's deposit of {deposit}"
            )
        if voucher.receipts_root != accumulator.root():
            raise ProtocolViolation(
                "5.4", "the voucher's receipts root does not follow from its receipts"
            )
        return replace(self, accepted=payment, accumulator=accumulator, unpaid=remaining)


@dataclass(frozen=True, slots=True)
class PayerLedger:
    """The payer's book of one channel.

    `acknowledged` is a count of receipts. `unacknowledged` are those paid since. Every voucher
    names them, so the next voucher covers one that was lost on the way.
    """

    channel: ChannelId
    cumulative: Amount = Amount(0)
    accumulator: Accumulator = field(default_factory=Accumulator)
    acknowledged: int = 0
    unacknowledged: tuple[LeafRef, ...] = ()

    def pay(self, ref: LeafRef, digest: Digest, amount: Amount, deposit: Amount) -> PayerLedger:
        """Give the book after promising `amount` base units for a verified receipt.

        Raises:
            ProtocolViolation: The deposit does not cover it.
        """
        invariant(ref not in self.unacknowledged, "a receipt is paid once")
        total = Amount(self.cumulative + amount)
        if total > deposit:
            raise ProtocolViolation(
                "5.5", f"paying canvas {ref.canvas} would exceed the deposit of {deposit}"
            )
        return replace(
            self,
            cumulative=total,
            accumulator=self.accumulator.append(digest),
            unacknowledged=(*self.unacknowledged, ref),
        )

    def voucher(self) -> Voucher:
        """Make the voucher that states this book."""
        count = Uint64(self.accumulator.count)
        return Voucher(self.channel, self.cumulative, count, self.accumulator.root())

    def payment(self, voucher: Voucher, signature: Signature) -> PayVoucher:
        """Give the frame that carries this book's voucher and its signature."""
        invariant(voucher.count == self.accumulator.count, "the voucher states this book")
        return PayVoucher(voucher, signature, self.acknowledged, self.unacknowledged)

    def acknowledge(self, count: int) -> PayerLedger:
        """Give the book after the worker confirmed its record of `count` paid receipts.

        Raises:
            ProtocolViolation: The worker confirms more than was paid.
        """
        if count > self.accumulator.count:
            raise ProtocolViolation("5.6", "the worker acknowledges receipts that were never paid")
        if count <= self.acknowledged:
            return self
        return replace(
            self,
            acknowledged=count,
            unacknowledged=self.unacknowledged[count - self.acknowledged :],
        )

    def rewind(self, count: int, since: tuple[LeafRef, ...]) -> PayerLedger:
        """Give the book for a worker whose record ends at `count`. `since` were paid after it."""
        invariant(
            count + len(since) == self.accumulator.count,
            "the receipts since a count reach to the end",
        )
        return replace(self, acknowledged=count, unacknowledged=since)

    def adopt(self, account: Account) -> PayerLedger:
        """Give the book of a payer that lost its newest entries, from the worker's record of them.

        The caller has verified that the voucher carries the payer's own signature (clause 5.7).

        Raises:
            ProtocolViolation: The record contradicts itself or this book.
        """
        voucher = account.voucher
        if len(account.peaks) != voucher.count.bit_count():
            raise ProtocolViolation(
                "5.7", "the worker's record has another number of peaks than its count"
            )
        accumulator = Accumulator(voucher.count, account.peaks)
        if voucher.channel != self.channel or accumulator.root() != voucher.receipts_root:
            raise ProtocolViolation(
                "5.7", "the worker's record does not match the voucher that it shows"
            )
        if voucher.count < self.accumulator.count or voucher.cumulative < self.cumulative:
            raise ProtocolViolation("5.7", "the worker's record lies before our own")
        return PayerLedger(self.channel, voucher.cumulative, accumulator, voucher.count)


def closing_of(voucher: Voucher, fee: int = 0) -> CloseChannel:
    """Make the closing that states what a voucher does. `fee` is in base units."""
    v = voucher
    return CloseChannel(v.channel, v.cumulative, v.count, v.receipts_root, Amount(fee))


def empty_voucher(channel: ChannelId) -> Voucher:
    """Give the voucher of a channel without payments, which a close of it states."""
    return Voucher(channel, Amount(0), Uint64(0), EMPTY_ROOT)
