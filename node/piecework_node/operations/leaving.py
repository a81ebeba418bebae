"""Leaving a market: every step is seen on the chain or in the home, so it may be cut off anywhere.

The order is fixed: nothing new is taken, what is owed reaches the chain, the offers go, and then
the stake leaves. The last part belongs to the stake's owner and takes the unbonding delay.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from piecework.base.amounts import native_coin
from piecework.base.clock import SystemClock
from piecework.base.http import HttpReader
from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call, Claim
from piecework.chain.contracts.packing import settlement_batches, settlement_calldata
from piecework.chain.limits import DEFAULT_POLL_S
from piecework.chain.reading.reader import ChainReader, ChannelOnChain, RegisteredWorker
from piecework.chain.sending.fees import GWEI, FeePolicy
from piecework.chain.sending.transactions import TransactionSender, WouldDo
from piecework_node import logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.assembly import operator_terms
from piecework_node.home import Home
from piecework_node.jobs.offers import (
    PUBLISH_LIMITS,
    WITHDRAWN_LIFETIME_S,
    OfferBoard,
    publish,
)
from piecework_node.jobs.rollback import last_offer
from piecework_node.journal.records import (
    JournalRecord,
    MetaSet,
    OneStepFunding,
    StoredChannel,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.metrics import Metrics
from piecework_node.operations.owning import OwnerCall, OwnerHands
from piecework_node.operations.running import drain, is_running, open_journal
from piecework_node.runtime.channels import as_seen, is_possible, observation
from piecework_node.runtime.funding import usable_funding
from piecework_node.settlement.payouts import META
from piecework_node.times import now
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, address_hex

DRAIN_EXTRA_S: Final = 75.0
"""Beyond the grace of the jobs: for the last settlement, and to close."""
OPEN_STATES: Final = (ChannelState.OPEN, ChannelState.WITHDRAWING)
NATIVE_COIN: Final = native_coin()


class LeaveStep(enum.Enum):
    """The steps, in their order."""

    DRAIN = "drain"
    SETTLE = "settle"
    OFFERS = "offers"
    EARNINGS = "earnings"
    UNBOND = "unbond"
    WAIT = "wait"
    STAKE = "stake"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did or found. `new`: it was done just now."""

    step: str
    detail: str
    new: bool


@dataclass(frozen=True, slots=True)
class LeaveReport:
    """How far it is.

    Attributes:
        steps: Those that are behind, in order.
        next: The step that comes next, None if all are behind.
        why: What it waits for.
        at: Unix time from which it can go on. None: now, or when somebody has acted.
        call: What the stake's owner has to send first.
        left: What stays at the operator's address, a line for each coin.
    """

    steps: tuple[StepReport, ...]
    next: LeaveStep | None = None
    why: str = ""
    at: int | None = None
    call: OwnerCall | None = None
    left: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [asdict(step) for step in self.steps],
            "next": None if self.next is None else self.next.value,
            "why": self.why,
            "at": self.at,
            "transaction": None if self.call is None else self.call.to_json(),
            "left_at_operator": list(self.left),
        }


class _NotYet(Exception):
    """A step cannot be finished now."""

    def __init__(self, why: str, at: int | None = None, call: OwnerCall | None = None) -> None:
        super().__init__(why)
        self.why, self.at, self.call = why, at, call


Watcher = Callable[[str], None]
"""Is told what is about to happen and what has happened."""


def unwatched(_: str) -> None:
    """Nobody watches."""


def waiting_times(config: WorkerConfig, unbonding_s: int) -> tuple[tuple[str, str], ...]:
    """Each step with the time that it takes."""
    return (
        ("drain", f"jobs that run get {config.drain_grace_s:g} s, the last settlement 60 s more"),
        ("settle", "a block for each transaction"),
        ("offers", f"gone within {config.offer_lifetime_s} s at the latest"),
        ("earnings", "a block for each token"),
        ("unbond", "a transaction of the stake's owner"),
        ("wait", f"{_span(unbonding_s)} from then on"),
        ("stake", "another transaction of the stake's owner"),
    )


class Leaver:
    """Takes a worker out of its market, as far as it goes now."""

    def __init__(
        self,
        home: Home,
        config: WorkerConfig,
        operator: AsyncSigner,
        hands: OwnerHands,
        *,
        watch: Watcher = unwatched,
        poll_s: float = DEFAULT_POLL_S,
    ) -> None:
        self._home, self._config, self._operator = home, config, operator
        self._hands, self._watch, self._poll_s = hands, watch, poll_s
        self._reader: ChainReader = hands.reader
        fees = FeePolicy(max_fee_wei=int(config.max_fee_gwei * GWEI))
        self._sender = TransactionSender.of(self._reader, operator, fees=fees)
        self._steps: list[StepReport] = []

    async def run(self, last: LeaveStep = LeaveStep.STAKE) -> LeaveReport:
        """Do every step up to `last` that can be done now.

        Raises:
            PieceworkError: the chain, the daemon or the journal is in the way. Run it again.
        """
        self._home.create()
        doing: dict[LeaveStep, Callable[[], Awaitable[StepReport]]] = {
            LeaveStep.DRAIN: self._drain,
            LeaveStep.SETTLE: self._settle,
            LeaveStep.OFFERS: self._withdraw_offers,
            LeaveStep.EARNINGS: self._push_earnings,
            LeaveStep.UNBOND: self._unbond,
            LeaveStep.WAIT: self._wait,
            LeaveStep.STAKE: self._take_stake,
        }
        if last is LeaveStep.STAKE and await self._answers_challenges():
            doing = {LeaveStep.WAIT: self._wait}
        for step, do in doing.items():
            self._watch(f"before {step.value}")
            try:
                report = await do()
            except _NotYet as wait:
                found = tuple(self._steps)
                return LeaveReport(found, step, wait.why, wait.at, wait.call)
            self._steps.append(report)
            self._watch(f"after {step.value}")
            if step is last:
                break
        rest = await self._left() if last is LeaveStep.STAKE else ()
        return LeaveReport(tuple(self._steps), left=rest)

    async def _answers_challenges(self) -> bool:
        """Whether the worker runs to answer challenges while its stake leaves. It is left alone."""
        known = await self._known()
        if self._reader.deployment.disputes is None or known is None:
            return False
        leaving = bool(known.unbond_requested_at) and await self._seconds_left(known) > 0
        return leaving and await is_running(self._home)

    # --- the worker's own part

    async def _drain(self) -> StepReport:
        running = not await drain(self._home, self._config.drain_grace_s + DRAIN_EXTRA_S)
        if running:
            raise _NotYet("the worker still drains. Run this again")
        return StepReport(LeaveStep.DRAIN.value, "no worker runs", new=False)

    async def _settle(self) -> StepReport:
        """Bring every accepted voucher to the chain, as far as the chain pays it."""
        if not self._home.journal.exists():
            return StepReport(LeaveStep.SETTLE.value, "no journal, so nothing is owed", new=False)
        journal = await open_journal(self._home)
        try:
            channels = await journal.channels()
        finally:
            await journal.close()
        await self._fund_authorized(channels)
        claims, lost = [], 0
        for stored in channels:
            accepted = stored.ledger.accepted
            if accepted is None:
                continue
            known = await self._reader.channel(stored.id)
            payable = _payable(accepted.voucher.cumulative, known)
            lost += accepted.voucher.cumulative - payable
            if known.settled < payable:
                claims.append(Claim(stored.channel, accepted.voucher, accepted.signature))
        paid = sum([await self._settle_batch(b) for b in settlement_batches(claims)])
        await self._note_channels(channels)
        token = self._reader.deployment.payment_token
        detail = f"{token.format(paid)} of vouchers settled" if paid else "no voucher is unsettled"
        if lost:
            detail += f". {token.format(lost)} of vouchers is above what their channels pay"
        return StepReport(LeaveStep.SETTLE.value, detail, new=bool(paid))

    async def _note_channels(self, channels: Sequence[StoredChannel]) -> None:
        """Let the journal hear where its channels stand, as a worker that runs does.

        Also of what an attempt before this one has settled. Each channel is heard on its own, so
        that a node that goes away costs nothing that it has said.
        """
        moment = now(SystemClock())
        for stored in channels:
            seen = await self._reader.channel(stored.id)
            word = as_seen(stored, seen)
            if word != stored and is_possible(seen):
                await self._append([observation(word, moment)])

    async def _note_waiting(self, tokens: Iterable[Address]) -> None:
        """Let the journal hear what waits in the escrow now."""
        receiver = self._config.receiver
        found = {t: await self._reader.waiting_payout(t, receiver) for t in tokens}
        await self._append([MetaSet(META + t.hex(), str(amount)) for t, amount in found.items()])

    async def _append(self, records: Sequence[JournalRecord]) -> None:
        if not (records and self._home.journal.exists()):
            return
        journal = await open_journal(self._home)
        try:
            await journal.append(records)
        finally:
            await journal.close()

    async def _fund_authorized(self, channels: Sequence[StoredChannel]) -> None:
        """Open and raise the channels whose vouchers would otherwise be lost, if the chain does."""
        moment = await self._reader.timestamp()
        for stored in channels:
            funding, accepted = usable_funding(stored.funding, moment), stored.ledger.accepted
            if funding is None or accepted is None:
                continue
            known = await self._reader.channel(stored.id)
            if accepted.voucher.cumulative <= known.capacity:
                continue
            sent = funding.opening if isinstance(funding, OneStepFunding) else funding
            call = calls.submit_funding(self._reader.deployment, stored.channel, sent)
            if isinstance(await self._sender.simulate(call), WouldDo):
                await self._send(call)

    async def _settle_batch(self, batch: Sequence[Claim]) -> int:
        previews = await self._reader.preview_settle(batch)
        good = [c for c, p in zip(batch, previews, strict=True) if p.payable]
        if good:
            await self._send(settlement_calldata(self._reader.deployment, good))
        return sum(p.payable for p in previews)

    async def _withdraw_offers(self) -> StepReport:
        """Replace the offer that indexes still show, if the worker did not do so at its end."""
        if not self._config.indexes or not self._home.journal.exists():
            return StepReport(LeaveStep.OFFERS.value, "no index shows one", new=False)
        domain, clock = self._reader.domain, SystemClock()
        async with HttpReader(PUBLISH_LIMITS) as http:
            shown = await last_offer(self._config.indexes, self._operator.address, domain, http)
            signed = None if shown is None else shown.signed
            if signed is None or signed.offer.expires_at <= now(clock) + WITHDRAWN_LIFETIME_S:
                return StepReport(LeaveStep.OFFERS.value, "no index shows one", new=False)
            journal = await open_journal(self._home)
            try:
                board = self._board(journal, clock)
                await board.adopt(signed)
                over = await board.withdraw()
            finally:
                await journal.close()
            if over is not None:
                log = logs.silent()
                await publish(over, self._config.indexes, http, Metrics(), log, clock=clock)
        return StepReport(LeaveStep.OFFERS.value, "withdrawn", new=True)

    def _board(self, journal: SqliteJournal, clock: SystemClock) -> OfferBoard:
        deployment = self._reader.deployment
        amounts = self._config.amounts(deployment.payment_token)
        terms = operator_terms(self._config, amounts, deployment.token)
        domain = self._reader.domain
        return OfferBoard(journal, terms, domain=domain, signer=self._operator, clock=clock)

    async def _push_earnings(self) -> StepReport:
        """Send what waits in the escrow for the payout address."""
        receiver, pushed = self._config.receiver, 0
        tokens = self._config.tokens(self._reader.deployment.token)
        for token in tokens:
            if await self._reader.waiting_payout(token, receiver):
                await self._send(calls.push_payout(self._reader.deployment, token, receiver))
                pushed += 1
        await self._note_waiting(tokens)
        found = f"pushed to {address_hex(receiver)}" if pushed else "nothing waits in the escrow"
        return StepReport(LeaveStep.EARNINGS.value, found, new=bool(pushed))

    async def _send(self, call: Call) -> None:
        self._watch(f"before {call.what}")
        await self._sender.execute(call, poll_s=self._poll_s)
        self._watch(f"after {call.what}")

    # --- the owner's part

    async def _known(self) -> RegisteredWorker | None:
        return await self._reader.worker(self._operator.address)

    async def _unbond(self) -> StepReport:
        known = await self._known()
        if known is None:
            return StepReport(LeaveStep.UNBOND.value, await self._gone(), new=False)
        if known.unbond_requested_at:
            return StepReport(LeaveStep.UNBOND.value, "the stake is leaving", new=False)
        call = calls.request_unbond(self._reader.deployment, self._operator.address)
        await self._act(known.owner, call)
        return StepReport(LeaveStep.UNBOND.value, "the stake is leaving from now on", new=True)

    async def _wait(self) -> StepReport:
        known = await self._known()
        if known is not None:
            left = await self._seconds_left(known)
            if left > 0:
                free = left + await self._reader.timestamp()
                why = "a dispute holds" if known.frozen_until >= free else "the delay holds"
                raise _NotYet(f"{why} the stake for {_span(left)} more", free)
        return StepReport(LeaveStep.WAIT.value, "the stake is free", new=False)

    async def _seconds_left(self, known: RegisteredWorker) -> int:
        """Until the stake is free, by the chain's clock."""
        delay = (await self._reader.stake_requirements()).unbonding_delay
        free = max(known.unbond_requested_at + delay, known.frozen_until)
        return free - await self._reader.timestamp()

    async def _take_stake(self) -> StepReport:
        known = await self._known()
        if known is None:
            return StepReport(LeaveStep.STAKE.value, await self._gone(), new=False)
        call = calls.withdraw_stake(self._reader.deployment, self._operator.address)
        await self._act(known.owner, call)
        stake = self._reader.deployment.payment_token.format(known.stake)
        detail = f"{stake} went to {address_hex(known.owner)}"
        return StepReport(LeaveStep.STAKE.value, detail, new=True)

    async def _act(self, owner: Address, call: Call) -> None:
        self._watch(f"before {call.what}")
        waiting = await self._hands.act(owner, call)
        if waiting is not None:
            raise _NotYet(f"the owner {address_hex(owner)} has to send {call.what}", call=waiting)
        self._watch(f"after {call.what}")

    async def _gone(self) -> str:
        before = await self._reader.registration_nonce(self._operator.address)
        return "the stake is withdrawn" if before else "never registered"

    async def _left(self) -> tuple[str, ...]:
        """What is still at the operator's address. Its key is in the home."""
        address, deployment = self._operator.address, self._reader.deployment
        lines = []
        coins = await self._reader.native_balance(address)
        if coins:
            lines.append(NATIVE_COIN.format(coins))
        tokens = await self._reader.token_balance(deployment.token, address)
        if tokens:
            lines.append(deployment.payment_token.format(tokens))
        return tuple(lines)


def _payable(promised: int, known: ChannelOnChain) -> int:
    """What the chain has paid or will pay of what a channel's latest voucher promises."""
    if known.state not in OPEN_STATES:
        return min(promised, known.settled)
    return max(known.settled, min(promised, known.capacity))


def _span(seconds: int) -> str:
    """A time for a person, rounded up to a minute."""
    minutes = -(-seconds // 60)
    days, minutes = divmod(minutes, 24 * 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 min"
