"""Vouchers, closings, and the chain's word on channels."""

from __future__ import annotations

from typing import Protocol

from piecework.base.errors import PieceworkError
from piecework_node.jobs.live import FrameSink, LiveChannel, better_funding
from piecework_node.jobs.runtime import Execution
from piecework_node.journal.records import (
    ChannelObserved,
    CloseAgreed,
    JournalRecord,
    VoucherApplied,
)
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import PayVoucher, SubmitJob
from piecework_protocol.ledger import empty_voucher
from piecework_protocol.objects import Channel, CloseChannel
from piecework_protocol.signing import sign, signed_by
from piecework_protocol.states import ChannelState, JobState
from piecework_protocol.types import Address, Amount, ChannelId, Signature
from piecework_protocol.worker_session import AllowCanvases, Outcome, acknowledgement


class Observation(Protocol):
    """The chain's word on a channel (`chain.reader.ChannelOnChain`)."""

    @property
    def state(self) -> ChannelState: ...
    @property
    def deposit(self) -> Amount: ...
    @property
    def settled(self) -> Amount: ...


class ChannelSource(Protocol):
    """The chain, as far as admission needs it. Both raise `PieceworkError` when it does not
    answer."""

    async def channel(self, channel_id: ChannelId) -> Observation: ...

    async def pooled_balance(self, token: Address, owner: Address) -> Amount: ...


class Payments(Protocol):
    """Who brings authorizations and vouchers to the chain (`node.settlement`)."""

    def funding_wanted(self, channel: ChannelId) -> None:
        """An authorization was journaled; submit it."""
        ...

    def voucher_accepted(self, channel: ChannelId) -> None:
        """There is something new to settle."""
        ...

    async def close(self, channel: ChannelId) -> bytes:
        """Submit the agreed closing; the transaction's hash, or empty when the chain does not take
        it now."""
        ...


class Cashier:
    """Keeps the channels' books up to date with their payers and with the chain."""

    def __init__(
        self, execution: Execution, chain: ChannelSource, payments: Payments, refresh_s: float
    ) -> None:
        self._x, self._chain, self._payments, self._refresh_s = (
            execution,
            chain,
            payments,
            refresh_s,
        )

    async def paid(self, book: LiveChannel, payment: PayVoucher, sink: FrameSink) -> None:
        """A voucher came. The channel's lock is held. `ProtocolViolation` names a clause that it
        breaks."""
        if not signed_by(
            self._x.domain, payment.voucher, payment.signature, book.channel.authorizer
        ):
            raise ProtocolViolation("5.2", "the voucher is not signed by the channel's authorizer")
        before = book.ledger
        after = before.apply(payment, book.backing)
        if after is None:
            sink.send(acknowledgement(before))
            return
        base = before.accumulator.count
        added = payment.leaves[base - payment.base_count :]
        touched = [
            book.jobs[key] for key in dict.fromkeys(ref.job for ref in added) if key in book.jobs
        ]
        outcomes = [(job, job.session.paid(after)) for job in touched]
        records: list[JournalRecord] = [VoucherApplied(after, added, base)]
        records += [record for _, outcome in outcomes for record in outcome.records]
        await self._x.journal.append(records)
        book.ledger = after
        self._x.metrics.accepted(after.cumulative - before.cumulative)
        # Every stream whose canvases were paid hears of it, whichever stream the voucher came by: a
        # job that is paid in full rests, and its client must not be left in doubt.
        for listener in {
            id(s): s for s in (sink, *(job.sink for job in touched)) if s is not None
        }.values():
            listener.send(acknowledgement(after))
        for job, outcome in outcomes:
            self._x.command(job, outcome)
        for job in touched:
            self._x.rest(job)
        self._payments.voucher_accepted(book.id)

    async def close(
        self, channel: Channel, final: CloseChannel, signature: Signature
    ) -> tuple[Signature, bytes]:
        """Agree that a channel's latest voucher is its last, and bring that to the chain.

        Returns the operator's signature and the transaction's hash, which is empty when the chain
        does not take it now. Asking again gives the same answer. `Refusal` says why not.
        """
        channel_id = channel.id(self._x.domain)
        book = self._x.books.get(channel_id)
        if book is None:
            raise Refusal(Reason.CHANNEL_UNKNOWN, "this worker does not know the channel")
        try:
            await self.observe(channel_id)
        except (
            PieceworkError
        ) as error:  # the last known state decides; the closing is retried anyway
            self._x.metrics.chain_error()
            self._x.metrics.note(self._x.clock.now(), "chain", str(error))
        agreed = await self._x.whole(self._agree(book, final, signature))
        return agreed, await self._payments.close(channel_id)

    async def _agree(
        self, book: LiveChannel, final: CloseChannel, signature: Signature
    ) -> Signature:
        async with book.lock:
            if not signed_by(self._x.domain, final, signature, book.channel.authorizer):
                raise Refusal(
                    Reason.BAD_SIGNATURE, "the closing is not signed by the channel's authorizer"
                )
            if any(not job.ended for job in book.jobs.values()):
                raise Refusal(
                    Reason.JOB_BUSY, "jobs of the channel are not over", retry_after_s=1.0
                )
            if book.ledger.unpaid:
                raise Refusal(
                    Reason.UNPAID_RECEIPTS, "delivered canvases of the channel are unpaid"
                )
            if book.state is ChannelState.CLOSED:
                raise Refusal(Reason.CHANNEL_CLOSED, "the channel is closed already")
            if book.state is ChannelState.NONE:
                raise Refusal(
                    Reason.CHANNEL_UNKNOWN, "the channel is not on chain yet", retry_after_s=5.0
                )
            latest = (
                book.ledger.accepted.voucher if book.ledger.accepted else empty_voucher(book.id)
            )
            agreed = CloseChannel(
                latest.channel, latest.cumulative, latest.count, latest.receipts_root
            )
            if final != agreed:
                raise Refusal(
                    Reason.BROKEN_CLAUSE,
                    "that is not the channel's latest voucher",
                    metadata={"clause": "6.5", "cumulative": str(agreed.cumulative)},
                )
            if agreed.cumulative > book.deposit:
                # The escrow pays out no more than it holds, and a closed channel cannot be topped
                # up.
                raise Refusal(
                    Reason.UNDERFUNDED, "the channel's funding is not mined yet", retry_after_s=5.0
                )
            await self._x.journal.append([CloseAgreed(book.id, signature)])
            book.close_signature = signature
            return sign(self._x.domain, agreed, self._x.signer)

    async def observe(self, channel: ChannelId) -> None:
        """Ask the chain where a channel stands, and act on it. `PieceworkError` when it does not
        answer."""
        book = self._x.books.get(channel)
        if book is not None:
            seen = await self._chain.channel(channel)
            await self._x.whole(self._seen(book, seen))

    async def _seen(self, book: LiveChannel, seen: Observation) -> None:
        async with book.lock:
            changed = (book.state, book.deposit, book.settled) != (
                seen.state,
                seen.deposit,
                seen.settled,
            )
            book.observed_at = self._x.clock.monotonic()
            if not changed:
                return
            closed = seen.state is ChannelState.CLOSED
            if seen.settled < book.settled or (seen.deposit < book.deposit and not closed):
                self._x.log.warning("the chain went back", channel=book.id, amount=seen.settled)
            book.state, book.deposit, book.settled = seen.state, seen.deposit, seen.settled
            if book.journaled:
                await self._x.journal.append([self.observed(book)])
            for job in list(book.jobs.values()):
                if book.state is ChannelState.CLOSED and not job.ended:
                    outcome = job.session.failed(Reason.CHANNEL_CLOSED, "the channel was closed")
                    await self._x.perform(job, outcome)
                elif job.run is not None and job.session.state is JobState.RUNNING:
                    limit = job.session.canvas_limit(book.ledger)
                    self._x.command(job, Outcome(commands=(AllowCanvases(limit),)))
                    self._x.rest(job)

    def observed(self, book: LiveChannel) -> ChannelObserved:
        """The record of the chain's last word."""
        return ChannelObserved(book.id, book.state, book.deposit, book.settled, self._x.clock.now())

    async def refresh(self, book: LiveChannel, submission: SubmitJob) -> None:
        """Make the chain's word on a channel recent, if the chain answers."""
        funding = better_funding(book.funding, submission.funding)
        wants_more = funding is not None and funding.authorization.deposit > book.deposit
        if self.age(book) < self._refresh_s and not wants_more:
            return
        try:
            seen = await self._chain.channel(book.id)
            if funding is not None and funding.authorization.deposit > seen.deposit:
                token, payer = book.channel.token, book.channel.payer
                book.pooled = await self._chain.pooled_balance(token, payer)
        except PieceworkError as error:
            self._x.metrics.chain_error()
            self._x.metrics.note(self._x.clock.now(), "chain", str(error))
            return
        await self._x.whole(self._seen(book, seen))

    def age(self, book: LiveChannel) -> float:
        """Seconds since the chain's last word."""
        if book.observed_at is None:
            return float("inf")
        return self._x.clock.monotonic() - book.observed_at
