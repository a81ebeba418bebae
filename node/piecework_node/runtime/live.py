"""A job and a channel as the running worker holds them. Plain state without effects."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from piecework_model.requests import DraftEvent, EncodedContent, ProgressEvent
from piecework_node.journal.records import StoredChannel
from piecework_node.runtime.cards import EngineCard, EngineEntry, entry_of
from piecework_node.runtime.funding import usable_funding
from piecework_node.runtime.requests import context_tokens
from piecework_node.runtime.sink import FrameSink
from piecework_node.runtime.traces import RunningRequest
from piecework_protocol.credit import ChannelCredit, PayerStanding, ceiling
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import EVERYTHING, Kind
from piecework_protocol.pricing import worst_case
from piecework_protocol.states import ENDED_STATES, ChannelState, JobState
from piecework_protocol.types import Amount, ChannelId, JobId
from piecework_protocol.worker_session import StartEngine, WorkerSession

NO_CONTENT: Final = EncodedContent(())


@dataclass(slots=True, eq=False)
class LiveJob:
    """A job that can still go on, that is not fully paid, or whose stream is open."""

    session: WorkerSession
    channel: LiveChannel
    content: EncodedContent = NO_CONTENT
    """Only while a stream is open. Never written to disk."""
    committed: list[tuple[int, ...]] = field(default_factory=list)
    """Token ids of the finished canvases, only while a stream is open."""
    sink: FrameSink | None = None
    opened: FrameSink | None = None
    """The stream that has got the acceptance. No other frame may come before that."""
    drafts: bool = False
    sequence: str | None = None
    """The name of the job's sequence in the engine while it has one."""
    card: EngineCard | None = None
    """Where that sequence is. None: there is none, or no card of the job's entry is left."""
    running: RunningRequest | None = None
    """What that sequence runs. The last canvas may end after its stream, which `content` does not
    outlive.
    """
    progress: ProgressEvent | None = None
    """The engine's last word on the sequence. None: it waits, or there is no sequence."""
    shown: DraftEvent | None = None
    """The last draft of the canvas in progress that went to the client. It is owed."""
    detached_at: float | None = None
    """Monotonic time since which no stream is open."""
    granted: int = 0
    """The first canvas that has no credit yet. Those before it are reserved until they are done."""
    short_of_credit: bool = False
    """Waits until its payer owes less."""
    waits_told: bool = False
    """Whether the client was last told that the job waits for its owner or for credit."""
    parked: StartEngine | None = None
    """What the engine is told as soon as there is credit for the next canvas."""
    engine_losses: int = 0
    revived: bool = False
    """Read from the journal, and not admitted by this process."""
    waiting_since: float | None = None
    """Monotonic time since which only the client can move the job on."""
    entry: EngineEntry = field(init=False)
    """The model and the profile that the job is bound to."""
    reserve: Amount = field(init=False)
    """The most that the job can cost, in base units."""
    _held: tuple[int, int, Amount] = (0, 0, Amount(0))
    """`held` as it was last found: for so many canvases granted, and so many done."""

    def __post_init__(self) -> None:
        accepted = self.session.accepted
        self.entry = entry_of(accepted.model)
        self.reserve = worst_case(
            accepted.model, accepted.job.kind, accepted.job.parameters, accepted.prompt_tokens
        )

    @property
    def id(self) -> JobId:
        return self.session.accepted.id

    @property
    def context(self) -> int:
        """The tokens that it takes of an engine's context at most."""
        accepted = self.session.accepted
        return accepted.prompt_tokens + context_tokens(accepted.job, accepted.model)

    @property
    def is_beside(self) -> bool:
        """Whether it is served beside the engine's own jobs: an opening or an audit."""
        return self.session.accepted.job.kind in (Kind.OPEN, Kind.AUDIT)

    @property
    def ended(self) -> bool:
        """Whether no further canvas is made."""
        return self.session.state in ENDED_STATES

    @property
    def leaving(self) -> bool:
        """Whether the job is over, or will be as soon as its sequence has stopped."""
        return self.ended or self.session.state is JobState.STOPPING

    @property
    def waits_for_credit(self) -> bool:
        """Whether the payer has to owe less, or to have more on chain, before the job goes on."""
        return not self.leaving and (self.short_of_credit or self.parked is not None)

    @property
    def unpaid(self) -> int:
        """How many delivered canvases await payment."""
        return self.channel.ledger.unpaid_canvases(self.id)

    @property
    def still_reserved(self) -> int:
        """What the job may still cost beyond the receipts that it has, in base units."""
        if self.ended:
            return 0
        return max(0, self.reserve - self.session.charged)

    @property
    def held(self) -> Amount:
        """The ceiling of the canvases that have begun or may begin, in base units."""
        granted, done, held = self._held
        if granted != self.granted or done != self.session.canvases:
            granted, done = self.granted, self.session.canvases
            held = self._ceiling(granted - done)
            self._held = granted, done, held
        return held

    @property
    def next_ceiling(self) -> Amount:
        """What one canvas more than `granted` can cost, in base units."""
        ahead = max(0, self.granted - self.session.canvases)
        return Amount(self._ceiling(ahead + 1) - self._ceiling(ahead))

    def _ceiling(self, canvases: int) -> Amount:
        if canvases <= 0:
            return Amount(0)
        terms, session = self.session.accepted, self.session
        done = session.usage() if session.canvases else None
        return ceiling(terms.model, terms.job, terms.prompt_tokens, done, canvases)

    def is_late(self, now: int) -> bool:
        """Whether the deadline has passed. Keys that its canvases are sealed to may be gone."""
        return self.session.accepted.job.deadline < now


@dataclass(slots=True)
class LiveChannel:
    """A channel with the jobs on it that matter now."""

    stored: StoredChannel
    """As the journal holds it, or will hold it once the first job is admitted."""
    journaled: bool = True
    since: float = 0.0
    """Monotonic time since which this process holds it."""
    pooled: Amount = Amount(0)
    """The payer's balance in the escrow outside of channels, when it was last asked for."""
    pooled_at: float | None = None
    """Monotonic time of the chain's last word on it."""
    asking: asyncio.Future[None] | None = None
    """A question to the chain that is under way."""
    heard_at: float | None = None
    """Monotonic time of the chain's last word. None: not asked since this process started."""
    account_signed: FundingAuthorization | None = None
    """What the payer's smart account says it has signed. Plain keys are not asked."""
    mined: Amount = Amount(0)
    """The deposit some blocks deep, in total ever put in."""
    final: Amount = Amount(0)
    """The deposit that the chain says is final, in total ever put in."""
    wants_funding: bool = False
    """An authorization waits for settlement to submit it."""
    unsettled_since: float | None = None
    """Monotonic time since which a voucher waits to be claimed. None: nothing waits."""
    committing: WorkerLedger | None = None
    """The ledger after the receipts that are being made durable. Their jobs have charged them."""
    contradicted: bool = False
    """Two vouchers of its authorizer contradict each other, and are kept."""
    jobs: dict[JobId, LiveJob] = field(default_factory=dict)
    arriving: list[int] = field(default_factory=list)
    """The counts of the vouchers that wait for the lock."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> ChannelId:
        return self.stored.id

    @property
    def ledger(self) -> WorkerLedger:
        return self.stored.ledger

    @property
    def charged(self) -> int:
        """Base units of all receipts, with those that are being made durable."""
        ledger = self.committing or self.ledger
        return ledger.cumulative + sum(u.amount for u in ledger.unpaid.values())

    @property
    def capacity(self) -> Amount:
        """What vouchers can draw on chain: the deposit without what the payer took back."""
        return Amount(self.stored.deposit - self.stored.withdrawn)

    @property
    def available(self) -> Amount:
        """What new jobs can count on: what the payer asked back counts as gone at once."""
        return Amount(max(self.stored.settled, self.capacity - self.stored.requested))

    @property
    def waits_for_credit(self) -> bool:
        """Whether one of its jobs does."""
        return any(job.waits_for_credit for job in self.jobs.values())

    @property
    def may_deepen(self) -> bool:
        """Whether not all of the deposit is known to be final."""
        return self.stored.state is ChannelState.NONE or self.final < self.stored.deposit

    @property
    def state_for_jobs(self) -> ChannelState:
        """The state, in which a channel stays open whose payer asks only for a part."""
        stored = self.stored
        if stored.state is ChannelState.WITHDRAWING and stored.requested < EVERYTHING:
            return ChannelState.OPEN
        return stored.state

    def must_claim(self, now: int) -> bool:
        """Whether a request to withdraw is about to take from what is claimable.

        That is so in the last third of the delay. Who asks and calls off costs us no gas.
        """
        stored = self.stored
        if stored.state is not ChannelState.WITHDRAWING or self.ledger.cumulative <= self.available:
            return False
        return now >= stored.requested_at + stored.channel.withdrawal_delay * 2 // 3

    @property
    def backing(self) -> Amount:
        """What vouchers can draw, on chain or out of a larger deposit that is authorized."""
        funding, stored = self.stored.funding, self.stored
        authorized = funding.authorization.funded if funding else 0
        return Amount(max(stored.deposit, authorized) - stored.withdrawn)

    @property
    def claimable(self) -> Amount:
        """Base units that the latest voucher would be paid now, out of the deposit on chain."""
        stored = self.stored
        if not self._is_open:
            return Amount(0)
        return Amount(max(0, min(self.ledger.cumulative, self.capacity) - stored.settled))

    @property
    def unsettled(self) -> Amount:
        """Base units that are accepted, up to what was put in or was ever authorized.

        Of a closed channel nothing is: its settlement is over.
        """
        return self._unsettled(self.backing)

    def unsettled_at(self, now: int) -> Amount:
        """Base units that are accepted and may still be paid on chain, as far as is known.

        An authorization that has expired pays nothing.
        """
        stored = self.stored
        return self._unsettled(stored.deposit + self.pending_funding(now) - stored.withdrawn)

    def _unsettled(self, backing: int) -> Amount:
        if self.stored.state is ChannelState.CLOSED:
            return Amount(0)
        return Amount(max(0, min(self.ledger.cumulative, backing) - self.stored.settled))

    @property
    def _is_open(self) -> bool:
        return self.stored.state in (ChannelState.OPEN, ChannelState.WITHDRAWING)

    @property
    def _standing(self) -> PayerStanding:
        if self._is_open and self.mined:
            return PayerStanding.FINAL if self.final else PayerStanding.MINED
        is_closed = self.stored.state is ChannelState.CLOSED
        return PayerStanding.FALLEN if is_closed else PayerStanding.SIMULATED

    @property
    def is_opening(self) -> bool:
        """Whether no deposit is mined, and none was taken back."""
        return self._standing is PayerStanding.SIMULATED

    @property
    def credit(self) -> ChannelCredit:
        """What the channel adds to its payer's account. A closed one adds its debts alone."""
        stored, ledger = self.stored, self.ledger
        is_open, standing = self._is_open, self._standing
        deep = max(self.mined, self.final) if is_open else stored.withdrawn
        gone = stored.withdrawn + stored.requested
        final, mined = (self.final - gone, deep - gone) if is_open else (0, 0)
        return ChannelCredit(
            standing=standing,
            charged=Amount(self.charged),
            reserved=Amount(sum(job.held for job in self.jobs.values())),
            accepted=ledger.cumulative,
            deposit=Amount(max(0, deep - stored.withdrawn)),
            backed=Amount(max(stored.settled, mined)),
            secured=Amount(max(stored.settled, final)),
        )

    @property
    def holds_money(self) -> bool:
        """Whether a withdrawal by the payer would take something from us."""
        return self.stored.state is not ChannelState.CLOSED and bool(
            self.unsettled or self.ledger.unpaid or self.jobs
        )

    @property
    def committed(self) -> int:
        """Base units that are promised, owed, or may still come to be owed."""
        return self.charged + self.reserved

    @property
    def reserved(self) -> Amount:
        """What the jobs that have not ended may still cost, in base units."""
        return Amount(sum(job.still_reserved for job in self.jobs.values()))

    @property
    def is_overcommitted(self) -> bool:
        """Whether the jobs rely on a deposit that is not on chain yet."""
        return self.committed > self.capacity

    def pending_funding(self, now: int) -> int:
        """Base units that an authorization would still put into the channel.

        The escrow funds no channel that is closed, whatever was authorized for it.
        """
        if self.stored.state is ChannelState.CLOSED:
            return 0
        funding = usable_funding(self.stored.funding, now)
        return max(0, funding.authorization.funded - self.stored.deposit) if funding else 0

    def pending_cost(self, now: int) -> int:
        """Base units that an authorization would still take from the payer, its fee included."""
        added, funding = self.pending_funding(now), self.stored.funding
        return added + funding.authorization.fee if added and funding else 0
