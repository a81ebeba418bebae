"""The registry of payment channels: their ledgers, their closings, and the chain's word on them.

The worker and settlement both use it. It asks the chain and moves the jobs of a channel. It knows
nothing of how jobs are admitted or how vouchers are claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from piecework.base.errors import PieceworkError
from piecework.chain.reading.reader import ChannelOnChain
from piecework_node.errors import JournalConflict
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import (
    ChannelObserved,
    CloseAgreed,
    ContradictionSeen,
    JournalRecord,
    OneStepFunding,
    StoredChannel,
    VoucherApplied,
)
from piecework_node.metrics import Metrics
from piecework_node.runtime.credit import BLOCK_S
from piecework_node.runtime.faults import FaultBoard
from piecework_node.runtime.funding import better_funding
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveChannel, LiveJob
from piecework_node.runtime.sink import FrameSink
from piecework_node.times import now
from piecework_protocol.eip712 import TypedData
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import FundingAuthorization, LeafRef, PayVoucher
from piecework_protocol.ledger import WorkerLedger, closing_of, empty_voucher
from piecework_protocol.objects import Channel, CloseChannel, Voucher
from piecework_protocol.signing import signed_by
from piecework_protocol.states import ChannelState, JobState, channel_path
from piecework_protocol.types import Address, Amount, ChannelId, Signature, Timestamp
from piecework_protocol.wire import encode_value
from piecework_protocol.worker_session import AllowCanvases, Outcome, acknowledgement

T = TypeVar("T")
JOBS_RETRY_S: Final = 1.0
"""After which a client may ask again to close a channel whose jobs are still running."""
REFRESH_WAIT_S: Final = 1.0
"""A healthy node answers in milliseconds. While its last word is fresh, a job need not wait more.
"""
MAX_REFRESHES: Final = 32
"""Channels that the node is asked about at once. A node that hangs holds no more of us."""
FUNDING_RETRY_S: Final = 5.0
"""After which a client may ask again to close a channel whose funding is not mined."""


@dataclass(frozen=True, slots=True)
class ChannelDepth:
    """The deposit that was ever put in, by how deep it lies in the chain. In base units."""

    mined: Amount
    final: Amount


class ChannelReader(Protocol):
    """The chain as far as channels need it. Every method raises `ChainError`."""

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain: ...

    async def pooled_balance(self, token: Address, owner: Address) -> Amount: ...

    async def depth(self, channel_id: ChannelId) -> ChannelDepth:
        """Return how much of a channel's deposit is some blocks deep, and how much is final."""
        ...

    async def token_balance(self, token: Address, owner: Address) -> Amount: ...

    async def opening_signed(self, funding: OneStepFunding) -> bool:
        """Whether the payer has signed an opening in one step, under its token's domain."""
        ...

    async def payer_signed(self, payer: Address, message: TypedData, signature: bytes) -> bool: ...


class Channels:
    """Every channel that matters. Call `recover` once before anything else."""

    def __init__(
        self,
        runtime: JobRuntime,
        chain: ChannelReader,
        faults: FaultBoard,
        *,
        refresh_s: float,
        outage_s: float,
        log: Any,
        wait_s: float = REFRESH_WAIT_S,
    ) -> None:
        """Times are in seconds.

        refresh_s: age from which the chain's word on a channel is asked for again.
        outage_s: age from which it is too old to rely on.
        wait_s: how long a job waits for a newer word while the last one may be relied on.
        """
        self._runtime, self._chain, self.faults = runtime, chain, faults
        self._refresh_s, self._outage_s, self._wait_s = refresh_s, outage_s, wait_s
        self._log = log
        self._places = asyncio.Semaphore(MAX_REFRESHES)
        self._asking: set[asyncio.Future[None]] = set()
        self._channels: dict[ChannelId, LiveChannel] = {}
        self._by_payer: dict[Address, dict[ChannelId, LiveChannel]] = {}
        self.urgent = asyncio.Event()
        """Set when settlement should not wait for its next round."""

    def __iter__(self) -> Iterator[LiveChannel]:
        return iter(list(self._channels.values()))

    def __len__(self) -> int:
        return len(self._channels)

    def of_payer(self, payer: Address) -> tuple[LiveChannel, ...]:
        """Return the channels of one payer that are held in memory."""
        return tuple(self._by_payer.get(payer, {}).values())

    def get(self, channel: ChannelId) -> LiveChannel | None:
        """Return a channel that is held in memory."""
        return self._channels.get(channel)

    async def recover(self) -> None:
        """Take up what the journal holds, with the work that settlement has left."""
        moment, time = self._runtime.clock.monotonic(), now(self._runtime.clock)
        for stored in await self._journal.channels():
            live = LiveChannel(stored, since=moment)
            live.wants_funding = live.pending_funding(time) > 0
            if stored.settled < stored.ledger.cumulative:
                live.unsettled_since = moment
            self.hold(live)

    async def find(self, channel_id: ChannelId, channel: Channel) -> LiveChannel:
        """Return a channel from memory or the journal, or a new one that is in neither yet."""
        known = self._channels.get(channel_id)
        if known is not None:
            return known
        stored = await self._journal.channel(channel_id)
        if stored is not None:
            return self.hold(LiveChannel(stored))
        fresh = StoredChannel(channel_id, channel, WorkerLedger(channel_id))
        return self._channels.get(channel_id) or LiveChannel(fresh, journaled=False)

    def hold(self, live: LiveChannel) -> LiveChannel:
        """Keep a channel in memory. Return the one that is already there, if there is one."""
        if live.id not in self._channels:
            live.since = self._runtime.clock.monotonic()
        known = self._channels.setdefault(live.id, live)
        if known is live:
            self._by_payer.setdefault(live.stored.channel.payer, {})[live.id] = live
        return known

    def release(self, live: LiveChannel) -> None:
        """Forget a channel that no job was ever admitted on."""
        if not live.journaled and not live.jobs:
            self._channels.pop(live.id, None)
            mine = self._by_payer.get(live.stored.channel.payer, {})
            mine.pop(live.id, None)
            if not mine:
                self._by_payer.pop(live.stored.channel.payer, None)

    @property
    def to_ask(self) -> tuple[ChannelId, ...]:
        """The channels on which credit depends and whose word from the chain is missing or old.

        How deep a deposit lies is not journaled. Unasked, a payer that has always paid would count
        as a stranger in debt after a restart. A job that waits for credit is answered by each block
        that a deposit of its payer sinks deeper.
        """
        waiting = {live.stored.channel.payer for live in self if live.waits_for_credit}
        return tuple(live.id for live in self if self._must_ask(live, waiting))

    def _must_ask(self, live: LiveChannel, waiting: set[Address]) -> bool:
        if not live.journaled or live.stored.state is ChannelState.CLOSED:
            return False
        if live.heard_at is None:
            return True
        helps = live.waits_for_credit or live.may_deepen
        return helps and live.stored.channel.payer in waiting and self.age_s(live) >= BLOCK_S

    async def shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work on channels to its end even if the caller is cancelled."""
        return await self._runtime.shielded(work)

    # --- money

    @property
    def exposure(self) -> Amount:
        """Base units that are delivered and not paid for."""
        return Amount(sum(u.amount for live in self for u in live.ledger.unpaid.values()))

    @property
    def unsettled(self) -> Amount:
        """Base units that are accepted, not settled on chain, and may still be."""
        moment = now(self._runtime.clock)
        return Amount(sum(live.unsettled_at(moment) for live in self))

    def pooled_for(self, live: LiveChannel) -> Amount:
        """The payer's pooled balance, less what its other channels here are about to take.

        An opening that finds less reverts, and costs us its gas. So their fees count too.
        """
        time, mine = now(self._runtime.clock), _purse(live)
        elsewhere = sum(
            other.pending_cost(time)
            for other in self.of_payer(live.stored.channel.payer)
            if other.id != live.id and _purse(other) == mine
        )
        return Amount(max(0, live.pooled - elsewhere))

    def want_funding(self, live: LiveChannel) -> None:
        """Let settlement submit an authorization that was journaled."""
        live.wants_funding = True
        self.urgent.set()

    async def pay(self, live: LiveChannel, payment: PayVoucher, sink: FrameSink) -> None:
        """Apply a voucher. The caller holds the channel's lock.

        Raises:
            ProtocolViolation: the voucher breaks a clause.
        """
        runtime = self._runtime
        authorizer = live.stored.channel.authorizer
        if not signed_by(runtime.domain, payment.voucher, payment.signature, authorizer):
            raise ProtocolViolation("5.2", "the voucher is not signed by the channel's authorizer")
        before = live.ledger
        await self.note_contradiction(live, payment.voucher, payment.signature)
        after = before.apply(payment, live.backing)
        if after is None:
            sink.send(acknowledgement(before))
            return
        added = payment.leaves[before.accumulator.count - payment.base_count :]
        await self.accept(live, after, added, sink)

    async def note_contradiction(
        self, live: LiveChannel, voucher: Voucher, signature: Signature
    ) -> None:
        """Keep a voucher that contradicts the latest one, with that one, as evidence.

        The caller has checked the signature. Two copies of one client home do this, and thieves.
        """
        latest = live.ledger.accepted
        if latest is None or live.contradicted or not live.ledger.contradicts(voucher):
            return
        live.contradicted = True
        first = encode_value(latest.voucher) + latest.signature
        second, time = encode_value(voucher) + signature, now(self._runtime.clock)
        await self._journal.append([ContradictionSeen(live.id, "voucher", first, second, time)])
        self._log.warning("two vouchers contradict each other", channel=live.id)
        self._metrics.note(time, "voucher", f"channel {live.id.hex()}: two vouchers contradict")

    async def accept(
        self,
        live: LiveChannel,
        after: WorkerLedger,
        added: Sequence[LeafRef],
        sink: FrameSink | None = None,
    ) -> None:
        """Make a checked voucher durable, and let its jobs go on. The caller holds the lock.

        after: the ledger with the voucher. added: the receipts that it newly pays for, all owed.
        sink: the stream that the voucher came by.

        Raises:
            JournalConflict: the journal holds something else. Nothing has changed.
        """
        runtime, before = self._runtime, live.ledger
        paid = dict.fromkeys(ref.job for ref in added)
        touched = [live.jobs[job_id] for job_id in paid if job_id in live.jobs]
        states = [job.session.state for job in touched]
        outcomes = [(job, job.session.paid(after)) for job in touched]
        applied = VoucherApplied(after, tuple(added), before.accumulator.count)
        records: list[JournalRecord] = [applied]
        records += [record for _, outcome in outcomes for record in outcome.records]
        try:
            await self._journal.append(records)
        except JournalConflict:
            # The voucher is refused. The jobs are where they were.
            for job, state in zip(touched, states, strict=True):
                job.session.state = state
            raise
        live.stored = replace(live.stored, ledger=after)
        self._metrics.accepted(after.cumulative - before.cumulative)
        _acknowledge(after, sink, touched)
        for job, outcome in outcomes:
            runtime.command(job, outcome)
        for job in touched:
            runtime.rest(job)
        for job in [job for job in live.jobs.values() if job.waits_for_credit]:
            runtime.press(job)
        if live.unsettled_since is None:
            live.unsettled_since = runtime.clock.monotonic()

    async def agree_to_close(
        self, channel: Channel, final: CloseChannel, signature: Signature
    ) -> Signature:
        """Agree that a channel's latest voucher is its last. Return the operator's signature.

        Asking again gives the same answer.

        Raises:
            Refusal: the channel cannot be closed now, or not like this.
        """
        live = self._channels.get(channel.id(self._runtime.domain))
        if live is None:
            raise Refusal(Reason.CHANNEL_UNKNOWN, "this worker does not know the channel")
        try:
            await self.observe(live.id)
        except PieceworkError as error:
            # The last known state decides. Settlement tries the closing again in any case.
            self._note_chain_error(error)
        return await self._runtime.shielded(self._agree(live, final, signature))

    async def _agree(
        self, live: LiveChannel, final: CloseChannel, signature: Signature
    ) -> Signature:
        async with live.lock:
            domain = self._runtime.domain
            if not signed_by(domain, final, signature, live.stored.channel.authorizer):
                raise Refusal(
                    Reason.BAD_SIGNATURE, "the closing is not signed by the channel's authorizer"
                )
            _check_may_close(live)
            agreed = _closing_of(live, final.fee)
            if final != agreed:
                raise Refusal(
                    Reason.BROKEN_CLAUSE,
                    "that is not the channel's latest voucher",
                    metadata={"clause": "6.5", "cumulative": str(agreed.cumulative)},
                )
            if agreed.cumulative > live.capacity:
                # The escrow pays out no more than it holds, and nobody can top up a closed channel.
                raise Refusal(
                    Reason.UNDERFUNDED,
                    "the channel's funding is not mined yet",
                    retry_after_s=FUNDING_RETRY_S,
                )
            await self._journal.append([CloseAgreed(live.id, signature, final.fee)])
            live.stored = replace(live.stored, close_signature=signature, close_fee=final.fee)
            return await self._runtime.sign(agreed)

    # --- the chain's word

    async def observe(self, channel: ChannelId) -> None:
        """Ask the chain where a channel stands, and act on it.

        Raises:
            ChainError: the chain does not answer.
        """
        live = self._channels.get(channel)
        if live is not None:
            seen = await self._chain.channel(channel)
            await self._ask_depth(live, seen)
            await self._runtime.shielded(self._take_over(live, seen))

    async def refresh(self, live: LiveChannel, offered: FundingAuthorization | None) -> None:
        """Make the chain's word on a channel recent, if the chain answers.

        While the last word may be relied on, the caller waits no longer than `wait_s`. The question
        goes on without it.

        offered: the authorization that came with a submission.
        """
        funding = better_funding(live.stored.funding, offered)
        if self.age_s(live) < self._refresh_s and not _wants_more(live, funding):
            return
        reliable = self.is_reliable(live, funding)
        if live.asking is None:
            live.asking = asyncio.ensure_future(self._ask_chain(live, funding))
            self._asking.add(live.asking)
            live.asking.add_done_callback(lambda done: self._asked(live, done))
        elif _wants_more(live, funding) and not reliable:
            # What is under way may be about the channel alone.
            await asyncio.wait({live.asking})
            await self._ask_chain(live, funding)
            return
        asking = live.asking
        done, _ = await asyncio.wait({asking}, timeout=self._wait_s if reliable else None)
        if done:
            asking.result()

    def _asked(self, live: LiveChannel, done: asyncio.Future[None]) -> None:
        live.asking = None
        self._asking.discard(done)
        if not done.cancelled():
            done.exception()  # the runtime knows of it, if it is ours

    def stop(self) -> None:
        """Give up the questions to the chain that are under way."""
        for asking in tuple(self._asking):
            asking.cancel()

    async def _ask_chain(self, live: LiveChannel, funding: FundingAuthorization | None) -> None:
        async with self._places:
            try:
                seen = await self._chain.channel(live.id)
                await self._ask_depth(live, seen)
                if funding is not None and funding.authorization.funded > seen.funded:
                    await self._ask_payer(live, funding)
            except PieceworkError as error:
                self._note_chain_error(error)
                return
        await self._runtime.shielded(self._take_over(live, seen))

    async def _ask_depth(self, live: LiveChannel, seen: ChannelOnChain) -> None:
        """Ask how deep a deposit lies, until all of it is final. Deposits never shrink."""
        if live.final >= seen.funded:
            return
        depth = await self._chain.depth(live.id)
        live.mined, live.final = depth.mined, depth.final

    async def _ask_payer(self, live: LiveChannel, funding: FundingAuthorization) -> None:
        """Ask what the payer holds, and a smart account whether it has signed (ERC-1271)."""
        payer, terms = live.stored.channel.payer, funding.authorization
        if isinstance(funding, OneStepFunding):
            # It is paid out of the payer's own account, and signed under the token's domain.
            live.pooled = await self._chain.token_balance(*_purse(live))
            live.account_signed = funding if await self._chain.opening_signed(funding) else None
            live.pooled_at = self._runtime.clock.monotonic()
            return
        live.pooled = await self._chain.pooled_balance(*_purse(live))
        if not signed_by(self._runtime.domain, terms, funding.signature, payer):
            signed = await self._chain.payer_signed(payer, terms, funding.signature)
            live.account_signed = funding if signed else None
        live.pooled_at = self._runtime.clock.monotonic()

    def is_reliable(self, live: LiveChannel, funding: FundingAuthorization | None) -> bool:
        """Whether the chain's word is recent enough to admit a job on it.

        An authorization of more than is on chain also needs a recent word on the payer's pool.
        """
        if self.age_s(live) >= self._outage_s:
            return False
        if not _wants_more(live, funding):
            return True
        heard = live.pooled_at
        return heard is not None and self._runtime.clock.monotonic() - heard < self._outage_s

    def age_s(self, live: LiveChannel) -> float:
        """Seconds since the chain's last word on a channel."""
        if live.heard_at is None:
            return float("inf")
        return self._runtime.clock.monotonic() - live.heard_at

    def observed(self, live: LiveChannel) -> ChannelObserved:
        """Return the record of the chain's last word."""
        return observation(live.stored, now(self._runtime.clock))

    async def _take_over(self, live: LiveChannel, seen: ChannelOnChain) -> None:
        async with live.lock:
            stored = live.stored
            if not self._is_possible(live, seen):
                return
            live.heard_at = self._runtime.clock.monotonic()
            word = as_seen(stored, seen)
            if word == stored:
                return
            live.stored = replace(word, observed_at=now(self._runtime.clock))
            if live.journaled:
                await self._journal.append([self.observed(live)])
            for job in list(live.jobs.values()):
                try:
                    await self._move_job(job)
                except Exception as error:  # noqa: BLE001  contained: it ends this job alone
                    self._runtime.contain(error, job)

    def _is_possible(self, live: LiveChannel, seen: ChannelOnChain) -> bool:
        """Hold an observation to the table of clause 6.2, and log what it forbids.

        The chain may go back: a reorganization undoes what was mined. Then its word counts all the
        same, because it is where a claim would be paid. What no escrow can say is not taken over.
        """
        stored = live.stored
        if not is_possible(seen):
            self._log.error(
                "the chain says what no escrow can",
                channel=live.id,
                state=seen.state.value,
                amount=seen.settled,
            )
            return False
        path = channel_path(stored.state, seen.state)
        # Closing pays the rest of a deposit back, so only there it may shrink.
        lost = seen.funded < stored.deposit and seen.state is not ChannelState.CLOSED
        if path is None or lost or seen.settled < stored.settled:
            self._log.warning(
                "the chain went back",
                channel=live.id,
                state=f"{stored.state.value} to {seen.state.value}",
                amount=seen.settled,
            )
        if lost:
            live.mined, live.final = min(live.mined, seen.funded), min(live.final, seen.funded)
        return True

    async def _move_job(self, job: LiveJob) -> None:
        """Let a job end with its channel, or use a deposit that has grown."""
        runtime, live = self._runtime, job.channel
        if live.stored.state is ChannelState.CLOSED and not job.ended:
            outcome = job.session.failed(Reason.CHANNEL_CLOSED, "the channel was closed")
            await runtime.perform(job, outcome)
        elif job.sequence is not None and job.session.state is JobState.RUNNING:
            limit = job.session.canvas_limit(live.ledger)
            runtime.command(job, Outcome(commands=(AllowCanvases(limit),)))
            runtime.rest(job)

    @property
    def _journal(self) -> Journal:
        return self._runtime.journal

    @property
    def _metrics(self) -> Metrics:
        return self._runtime.metrics

    def _note_chain_error(self, error: PieceworkError) -> None:
        self._metrics.chain_error()
        self._metrics.note(now(self._runtime.clock), "chain", str(error))


def as_seen(stored: StoredChannel, seen: ChannelOnChain) -> StoredChannel:
    """Return a channel with the chain's word on it."""
    return replace(
        stored,
        state=seen.state,
        deposit=seen.funded,
        settled=seen.settled,
        withdrawn=seen.withdrawn,
        requested=seen.requested,
        requested_at=seen.withdrawal_requested_at,
        requests=seen.requests,
    )


def is_possible(seen: ChannelOnChain) -> bool:
    """Whether an escrow can say this of a channel."""
    return seen.settled + seen.withdrawn <= seen.funded


def observation(stored: StoredChannel, at: Timestamp) -> ChannelObserved:
    """Return the record of the chain's last word on a channel."""
    rest = (stored.withdrawn, stored.requested, stored.requested_at, stored.requests)
    return ChannelObserved(stored.id, stored.state, stored.deposit, stored.settled, at, *rest)


def _wants_more(live: LiveChannel, funding: FundingAuthorization | None) -> bool:
    """Whether an authorization adds to what is on chain."""
    return funding is not None and funding.authorization.funded > live.stored.deposit


def _purse(live: LiveChannel) -> tuple[Address, Address]:
    """The token and the owner of the pooled balance that a channel is funded from."""
    return live.stored.channel.token, live.stored.channel.payer


def _acknowledge(ledger: WorkerLedger, sink: FrameSink | None, paid: list[LiveJob]) -> None:
    """Tell every stream whose canvases were paid, and the stream that the voucher came by.

    A job that is paid in full may end here, and its client must not be left in doubt.
    """
    listeners = {id(s): s for s in (sink, *(job.sink for job in paid)) if s is not None}
    for listener in listeners.values():
        listener.send(acknowledgement(ledger))


def _check_may_close(live: LiveChannel) -> None:
    if any(not job.ended for job in live.jobs.values()):
        raise Refusal(
            Reason.JOB_BUSY, "jobs of the channel are not over", retry_after_s=JOBS_RETRY_S
        )
    if live.ledger.unpaid:
        raise Refusal(Reason.UNPAID_RECEIPTS, "delivered canvases of the channel are unpaid")
    if live.stored.state is ChannelState.CLOSED:
        raise Refusal(Reason.CHANNEL_CLOSED, "the channel is closed already")
    if live.stored.state is ChannelState.NONE:
        raise Refusal(
            Reason.CHANNEL_UNKNOWN,
            "the channel is not on chain yet",
            retry_after_s=FUNDING_RETRY_S,
        )


def _closing_of(live: LiveChannel, fee: Amount) -> CloseChannel:
    """The closing that the channel's latest voucher stands for."""
    accepted = live.ledger.accepted
    latest = accepted.voucher if accepted else empty_voucher(live.id)
    return closing_of(latest, fee)
