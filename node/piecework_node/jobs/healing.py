"""Heal a rolled-back journal from a client's copies of receipts that this worker signed.

The client shows its latest voucher, and the receipts between the worker's account and that voucher.
Every receipt carries our own signature, so nothing of it has to be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from piecework_node.errors import JournalConflict
from piecework_node.jobs.worker import RETRY_S, Worker
from piecework_node.journal.records import ROLLED_BACK, JournalRecord, MetaSet, ReceiptsShown
from piecework_node.runtime.live import LiveChannel, LiveJob
from piecework_node.times import now
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import (
    Account,
    GetAccountRequest,
    LeafRef,
    PayVoucher,
    ShowReceiptsRequest,
)
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, Receipt, Voucher
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Digest, JobId, Signature

CLAUSE: Final = "5.9"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client shows. `base` is the accumulator before `receipts`."""

    channel: Channel
    voucher: Voucher
    signature: Signature
    base: Accumulator
    receipts: Sequence[tuple[Receipt, Signature]]
    """In the order in which the voucher pays for them."""


class Healer:
    """Takes what clients show."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._runtime, self._channels = worker, worker.runtime, worker.channels

    async def account(self, asked: GetAccountRequest) -> Account:
        """Return the worker's record of a channel, for its authorizer.

        Raises:
            Refusal: the worker has no voucher of that channel, or somebody else asks.
        """
        request = asked.request
        live = self._channels.get(request.channel)
        stored = live.stored if live else await self._runtime.journal.channel(request.channel)
        account = stored.ledger.account() if stored is not None else None
        if stored is None or account is None:
            raise Refusal(Reason.CHANNEL_UNKNOWN, "this worker has no voucher of that channel")
        authorizer = stored.channel.authorizer
        if not signed_by(self._runtime.domain, request, asked.signature, authorizer):
            raise Refusal(
                Reason.BAD_SIGNATURE, "the request is not signed by the channel's authorizer"
            )
        if request.deadline < now(self._runtime.clock):
            raise Refusal(Reason.EXPIRED, "the request's deadline has passed")
        return account

    async def take(self, request: ShowReceiptsRequest) -> Account:
        """Take over what a client shows, as it comes over the wire. Return the account after it.

        Raises:
            Refusal: something of it is not ours, not signed, or does not add up.
            MalformedInput: the peaks do not fit the count.
        """
        voucher = request.voucher
        base = Accumulator(voucher.base_count, voucher.peaks)
        receipts = [(shown.receipt, shown.signature) for shown in request.receipts]
        ledger = await self.show(
            Shown(request.channel, voucher.voucher, voucher.signature, base, receipts)
        )
        account = ledger.account()
        if account is None:
            raise _broken("the voucher pays for nothing")
        return account

    async def show(self, shown: Shown) -> WorkerLedger:
        """Take over receipts that the journal lacks. Return the channel's ledger after it.

        A voucher that is not newer than the ledger changes nothing. One that pays only for
        receipts that are owed counts like one that came by a stream.

        Raises:
            Refusal: something of it is not ours, not signed, or does not add up.
        """
        channel_id = shown.channel.id(self._runtime.domain)
        self._check_voucher(shown)
        channel = await self._channels.find(channel_id, shown.channel)
        await self._runtime.shielded(self._check_contradiction(channel, shown))
        if shown.voucher.count <= channel.ledger.accumulator.count:
            return channel.ledger
        self._check_receipts(shown)
        await self._channels.refresh(channel, None)
        ledger, lost = await self._runtime.shielded(self._take_over(channel, shown))
        if lost:
            await self._worker.distrust(_why(lost))
        return ledger

    def _check_voucher(self, shown: Shown) -> None:
        domain, operator = self._runtime.domain, self._runtime.signer.address
        if shown.channel.operator != operator or shown.channel.receiver != self._receiver:
            raise Refusal(Reason.WRONG_WORKER, "the channel pays another worker")
        if shown.voucher.channel != shown.channel.id(domain):
            raise Refusal(Reason.WRONG_CHAIN, "the voucher is for another channel")
        authorizer = shown.channel.authorizer
        if not signed_by(domain, shown.voucher, shown.signature, authorizer):
            raise Refusal(
                Reason.BAD_SIGNATURE, "the voucher is not signed by the channel's authorizer"
            )

    async def _check_contradiction(self, live: LiveChannel, shown: Shown) -> None:
        async with live.lock:
            await self._channels.note_contradiction(live, shown.voucher, shown.signature)
            if live.ledger.contradicts(shown.voucher):
                raise _broken("the voucher contradicts the latest one of the channel")

    def _check_receipts(self, shown: Shown) -> None:
        domain, operator = self._runtime.domain, self._runtime.signer.address
        for receipt, signature in shown.receipts:
            if not signed_by(domain, receipt, signature, operator):
                raise Refusal(Reason.BAD_SIGNATURE, "a receipt is not signed by this worker")

    @property
    def _receiver(self) -> bytes:
        return self._worker.terms.receiver

    async def _take_over(self, live: LiveChannel, shown: Shown) -> tuple[WorkerLedger, int]:
        """Return the ledger after it, and how many receipts the journal had lost."""
        touched: list[LiveJob] = []
        async with live.lock:
            if self._channels.hold(live) is not live:
                raise _busy("the channel is being opened by a job")
            try:
                after, lost = await self._record(live, shown)
            except JournalConflict as error:
                raise _broken(str(error)) from None
            finally:
                self._channels.release(live)
            if lost:
                touched = _touched(live, shown)
        for job in touched:
            await self._runtime.abandon(job)
        return after, lost

    async def _record(self, live: LiveChannel, shown: Shown) -> tuple[WorkerLedger, int]:
        """As `_take_over`. The caller holds the lock, and ends the jobs of lost receipts."""
        before = live.ledger
        if shown.voucher.count <= before.accumulator.count:
            return before, 0
        after = self._ledger_after(live, shown)
        refs = _refs(shown)
        # The journal refuses a receipt that another channel owes, or that is paid. So a receipt
        # that is not owed here is one that the whole journal lacks.
        lost = sum(ref not in before.unpaid for ref in refs)
        if not lost:
            await self._channels.accept(live, after, refs)
            return after, 0
        if any(job.sequence is not None for job in _touched(live, shown)):
            # What the engine has done for it is not charged yet.
            raise _busy("a job whose receipts are shown is running")
        receipts = tuple(receipt for receipt, _ in shown.receipts)
        base, time = before.accumulator.count, now(self._runtime.clock)
        records: list[JournalRecord] = [
            ReceiptsShown(live.stored.channel, after, base, receipts, time)
        ]
        if not live.journaled:
            records.append(self._channels.observed(live))
        records.append(MetaSet(ROLLED_BACK, _why(lost)))
        await self._runtime.journal.append(records)
        live.journaled = True
        live.stored = replace(live.stored, ledger=after)
        self._runtime.metrics.accepted(after.cumulative - before.cumulative)
        if live.unsettled_since is None:
            live.unsettled_since = self._runtime.clock.monotonic()
        return after, lost

    def _ledger_after(self, live: LiveChannel, shown: Shown) -> WorkerLedger:
        before, voucher = live.ledger, shown.voucher
        if shown.base != before.accumulator:
            raise _broken("the receipts do not follow this worker's account of the channel")
        domain = self._runtime.domain
        digests = [Digest(domain.digest(receipt)) for receipt, _ in shown.receipts]
        refs = _refs(shown)
        if len(set(refs)) != len(refs):
            raise _broken("a receipt is shown twice")
        for ref, digest in zip(refs, digests, strict=True):
            owed = before.unpaid.get(ref)
            if owed is not None and owed.digest != digest:
                raise _broken("the journal holds another receipt of that canvas")
        accumulator = before.accumulator.extend(digests)
        total = before.cumulative + sum(receipt.amount for receipt, _ in shown.receipts)
        if (voucher.count, voucher.receipts_root) != (accumulator.count, accumulator.root()):
            raise _broken("the voucher's root does not follow from the receipts")
        if voucher.cumulative != total:
            raise _broken(f"the voucher pays {voucher.cumulative}, its receipts sum to {total}")
        if voucher.cumulative > live.backing:
            raise Refusal(
                Reason.UNDERFUNDED, f"the voucher exceeds the channel's deposit of {live.backing}"
            )
        payment = PayVoucher(voucher, shown.signature, before.accumulator.count, refs)
        unpaid = {ref: owed for ref, owed in before.unpaid.items() if ref not in refs}
        return WorkerLedger(before.channel, payment, accumulator, unpaid)


def _refs(shown: Shown) -> tuple[LeafRef, ...]:
    return tuple(LeafRef(JobId(r.job), r.canvas) for r, _ in shown.receipts)


def _touched(live: LiveChannel, shown: Shown) -> list[LiveJob]:
    """The jobs in memory that shown receipts belong to."""
    jobs = {ref.job for ref in _refs(shown)}
    return [job for job in live.jobs.values() if job.id in jobs]


def _why(lost: int) -> str:
    return f"a client showed {lost} receipts with our signature that the journal lacks"


def _broken(message: str) -> Refusal:
    return Refusal(Reason.BROKEN_CLAUSE, message, metadata={"clause": CLAUSE})


def _busy(message: str) -> Refusal:
    return Refusal(Reason.JOB_BUSY, message, retry_after_s=RETRY_S)
