"""Bring authorizations, vouchers and closings to the chain, each exactly once.

One round after the other looks at the channels and at the transactions under way. At most one
claim of a channel is under way at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.chain.contracts.calls import NO_SIGNATURE, Claim
from piecework.chain.errors import ChainError, FeeTooHigh, LogRangeRefused, TransactionReverted
from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet, StoredTx, TxKind, TxSubject, Worth
from piecework_node.metrics import Metrics
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.faults import Code, code_of
from piecework_node.runtime.funding import usable_funding
from piecework_node.runtime.live import LiveChannel
from piecework_node.runtime.write_offs import WriteOffs
from piecework_node.settlement.chain import ChainPort
from piecework_node.settlement.fees import worth_of_fee
from piecework_node.settlement.openings import Openings
from piecework_node.settlement.payouts import Payouts
from piecework_node.settlement.policy import (
    Batch,
    SettlementCandidate,
    SettlePolicy,
    Urgency,
    choose,
    worth_of,
)
from piecework_node.settlement.transactions import TransactionTracker
from piecework_node.settlement.watch import CHECKS, NodeWatch
from piecework_node.times import now
from piecework_protocol.ledger import empty_voucher
from piecework_protocol.objects import Channel, CloseChannel
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId, Signature

CURSOR: Final = "events_through_block"
CURSOR_OVERLAP_BLOCKS: Final = 64
"""Events are read again this far back. A reorganization may have put new ones there."""
MAX_CATCH_UP_BLOCKS: Final = 20_000
"""A worker that was away longer asks for each of its channels instead of reading every event."""
TRANSACTIONS, REFUSALS, WITHDRAWALS = ROUND_CHECKS = "transactions", "refusals", "withdrawals"
"""The names under which a round reports to the board."""
VERIFY_INTERVAL_S: Final = 60.0
MAX_OBSERVATIONS: Final = 16
"""Channels that are asked for at once when the node does not search events."""
MAX_IN_FLIGHT: Final = 16
"""Transactions under way at once. A node drops what comes far ahead of the mined nonce."""
MAX_FOR_CLIENTS: Final = MAX_IN_FLIGHT // 2
"""Openings and closings among them. Payers decide how many of them there are to send, and must not
keep a claim back that is due."""


class ChallengeWatch(Protocol):
    """Answers challenges in a dispute contract."""

    @property
    def quiet(self) -> bool:
        """Whether the last look found no open challenge."""
        ...

    async def look(self) -> None:
        """Do one round. Raises `ChainError`."""
        ...


class Settler:
    """Settlement of all channels. `tick` does one round. `run` repeats it."""

    def __init__(
        self,
        channels: Channels,
        transactions: TransactionTracker,
        port: ChainPort,
        journal: Journal,
        watch: NodeWatch,
        *,
        openings: Openings,
        payouts: Payouts,
        write_offs: WriteOffs,
        clock: Clock,
        policy: SettlePolicy,
        poll_s: float,
        metrics: Metrics,
        log: Any,
        defence: ChallengeWatch | None = None,
    ) -> None:
        """`defence` answers challenges. None: the market has no dispute contract."""
        self._defence = defence
        self._channels, self._transactions = channels, transactions
        self._port, self._journal, self._clock = port, journal, clock
        self._watch, self._board = watch, watch.board
        self._openings, self.payouts, self._write_offs = openings, payouts, write_offs
        self._policy, self._poll_s = policy, poll_s
        self._metrics, self._log = metrics, log
        self._asks = self._answered = 0
        self._urgency = Urgency.NONE
        self._left_to_clients: set[ChannelId] = set()
        """Agreed closings that cost more than they bring, as the last round saw."""
        self._watched_at = float("-inf")
        self._trouble: tuple[Code, str] | None = None
        self._refusal = ""
        """What the chain refused in this round. One channel's must not hide a trouble of all."""
        self._lock = asyncio.Lock()

    # --- for clients

    async def close_channel(
        self, channel: Channel, final: CloseChannel, signature: Signature
    ) -> tuple[Signature, bytes]:
        """Agree that a channel's latest voucher is its last, and submit the closing.

        Asking again gives the same answer.

        Returns:
            The operator's signature and the transaction's hash. The hash is empty while the chain
            does not take the transaction.

        Raises:
            Refusal: the channel cannot be closed now, or not like this.
        """
        agreed = await self._channels.agree_to_close(channel, final, signature)
        live = self._channels.get(final.channel)
        if live is None:
            return agreed, b""
        # A client that hangs up must not stop it between the nonce that it takes and the broadcast.
        return agreed, await self._channels.shielded(self._submit_closing(live))

    async def _submit_closing(self, live: LiveChannel) -> bytes:
        async with self._lock:
            await self._attempt("close", self._close(live))
        return self._transactions.latest(live.id, TxKind.CLOSE)

    # --- for the operator

    def ask(self) -> None:
        """Settle everything that has any value in the next round, whatever it costs."""
        self._ask(Urgency.ASKED)

    def _ask(self, urgency: Urgency) -> None:
        self._urgency = max(urgency, self._asked_for)
        self._asks += 1
        self._channels.urgent.set()

    @property
    def _asked_for(self) -> Urgency:
        """What somebody asked for and no round has done since. NONE: nothing."""
        return self._urgency if self._asks > self._answered else Urgency.NONE

    @property
    def _must(self) -> bool:
        """Whether it was the operator, so that claims go whatever they cost."""
        return self._asked_for is Urgency.ASKED

    @property
    def gas_price(self) -> GasPrice:
        """The gas price that was seen last."""
        return self._watch.price

    @property
    def under_way(self) -> tuple[StoredTx, ...]:
        """Transactions whose outcome is not final."""
        return tuple(self._transactions)

    @property
    def idle(self) -> bool:
        """Whether everything under way only waits for finality."""
        return not self._asked_for and not self._transactions.unmined

    @property
    def quiet(self) -> bool:
        """Whether no challenge is open. Before the chain has said so, there may be one."""
        return self._defence is None or self._defence.quiet

    async def check(self) -> None:
        """Make every check of the surroundings once. A start is not ready before."""
        async with self._lock:
            self._watched_at = self._clock.monotonic()
            await self._watch.round()
            self._note_failures()

    # --- rounds

    async def run(self) -> None:
        """Do one round after the other, and the next one at once when something is urgent."""
        while True:
            self._channels.urgent.clear()
            await self.tick()
            try:
                async with asyncio.timeout(self._poll_s):
                    await self._channels.urgent.wait()
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """Do one round. What the chain refuses is counted, noted, and tried again later."""
        async with self._lock:
            await self._round()

    async def _round(self) -> None:
        await self._look_around()
        # Each question of a round is asked anew, and only a round says that its own are over.
        allowed = self._board.may_sign_beside(*ROUND_CHECKS)
        if allowed and not self._board.is_failing("contracts"):
            await self._settle_round()
        self._board.show()
        self._metrics.unsettled.set(self._channels.unsettled)

    async def finish(self, within_s: float, every_s: float) -> None:
        """Settle everything that is worth its gas, round by round, until it is mined.

        What is not worth its gas waits for the next start, or for the operator's `ask`.

        Each round is asked anew: a channel whose opening was under way in the last one can be
        settled in this one.

        within_s: after so many seconds what is left waits for the next start, also in the middle
            of a round. The journal holds what was signed.
        every_s: seconds between two rounds.
        """
        try:
            async with asyncio.timeout(within_s):
                await self._finish(self._clock.monotonic() + within_s, every_s)
        except TimeoutError:
            self._log.warning("chain", task="stop", error="a chain node is too slow to settle now")

    async def _finish(self, deadline: float, every_s: float) -> None:
        while True:
            async with self._lock:
                # Asked for in a round of its own. One that is under way may have opened a channel,
                # and it would answer without the claim on it.
                self._ask(Urgency.STOPPING)
                await self._round()
            if self.idle or self._clock.monotonic() >= deadline:
                return
            await asyncio.sleep(every_s)

    async def _look_around(self) -> None:
        """Watch the head each time, and everything when it is due or something was wrong."""
        moment = self._clock.monotonic()
        if self._watch.failing or moment - self._watched_at >= VERIFY_INTERVAL_S:
            self._watched_at = moment
            await self._watch.round()
            self._note_failures()
        else:
            await self._watch.look_at_head()

    def _note_failures(self) -> None:
        for fault in self._board.failures(*CHECKS):
            self._metrics.chain_error()
            self._metrics.note(now(self._clock), "watch", fault.line)

    async def _settle_round(self) -> None:
        self._trouble, self._refusal = None, ""
        # Who else uses the key was given `chain_outage_s`. Claims do not wait longer.
        self._port.insist(on=any(f.code is Code.KEY_SHARED for f in self._board.faults))
        for stored in self._transactions:
            await self._attempt(f"follow {stored.kind.value}", self._follow(stored))
        await self._attempt("nonces", self._close_gap())
        if self._defence is not None:
            await self._attempt("answer", self._defence.look())
        await self._watch_withdrawals()
        await self._attempt("credit", self._observe(self._channels.to_ask))
        await self._attempt("write off", self._write_off())
        await self._attempt("fund", self._fund_all())
        await self._attempt("close", self._close_all())
        urgency = self._asked_for
        await self._attempt("settle", self._settle())
        await self._attempt("push", self._push(urgency))
        self._report(TRANSACTIONS, self._trouble)
        refused = (Code.TRANSACTIONS_REVERT, self._refusal) if self._refusal else None
        self._report(REFUSALS, refused)

    def _report(self, check: str, found: tuple[Code, str] | None) -> None:
        if found is None:
            self._board.passed(check)
        else:
            self._board.failed(check, *found)

    async def _attempt(self, what: str, work: Coroutine[Any, Any, None]) -> bool:
        """Do work that the chain may refuse, and note a refusal. Return whether it was done."""
        try:
            await work
        except ChainError as error:
            code = code_of(error)
            if code is Code.TRANSACTIONS_REVERT:
                self._refusal = f"{what}: {error}"
            elif code is not None:
                self._trouble = code, f"{what}: {error}"
            self._note(what, error)
            return False
        return True

    def _note(self, what: str, error: ChainError) -> None:
        self._metrics.chain_error()
        self._metrics.note(now(self._clock), what, str(error))
        self._log.warning("chain", task=what, error_class=type(error).__name__, error=str(error))

    async def _follow(self, stored: StoredTx) -> None:
        moved = await self._transactions.follow(stored, self._reverted)
        if moved is None:
            return
        for subject in stored.subjects:
            await self._channels.observe(subject.channel)
        if stored.kind is TxKind.PUSH:
            await self.payouts.look(now=True)

    async def _close_gap(self) -> None:
        """Send again with a free nonce what waits above one that nobody uses."""
        for stored in await self._transactions.close_gap():
            # An earlier one of the same effect may have been mined. Then nothing is left to send.
            await self._observe(subject.channel for subject in stored.subjects)

    async def _reverted(self, stored: StoredTx) -> None:
        """Hold an opening that reverted against its payer at once. Each next one would cost gas.

        A copy of it that somebody took from the mempool may have come first. Then the channel
        holds what was signed for, and the payer is not to blame.
        """
        if stored.kind is not TxKind.FUND:
            return
        for subject in stored.subjects:
            live = self._channels.get(subject.channel)
            if live is None:
                continue
            await self._channels.observe(live.id)
            if live.stored.deposit < subject.amount:
                live.wants_funding = False
                await self._openings.reverted(live.stored.channel.payer)

    async def _watch_withdrawals(self) -> None:
        """Look at every channel whose payer may have asked to withdraw since the last round."""
        try:
            await self._look_for_withdrawals()
        except ChainError as error:
            # Not seen for `chain_outage_s`, a payer may be about to take back what it owes.
            self._board.failed(WITHDRAWALS, code_of(error) or Code.NODE_REFUSES, str(error))
            self._note("watch", error)
        else:
            self._board.passed(WITHDRAWALS)

    async def _look_for_withdrawals(self) -> None:
        stored = await self._journal.meta(CURSOR)
        cursor = int(stored) if stored is not None else -1
        height, _ = await self._port.head()
        start = max(0, cursor + 1 - CURSOR_OVERLAP_BLOCKS)
        if cursor < 0 or height - start > MAX_CATCH_UP_BLOCKS:
            concerned = {live.id for live in self._channels}
        elif height <= cursor:
            return
        else:
            concerned = await self._concerned(start, height)
        await self._observe(concerned)
        await self._journal.append([MetaSet(CURSOR, str(height))])

    async def _concerned(self, start: int, height: int) -> set[ChannelId]:
        """The channels with a request, or each that holds money if the node does not search."""
        try:
            return set(await self._port.withdrawals(start, height))
        except LogRangeRefused:
            return {live.id for live in self._channels if live.holds_money}

    async def _observe(self, channels: Iterable[ChannelId]) -> None:
        """Ask for channels side by side, a bounded number at once."""
        places = asyncio.Semaphore(MAX_OBSERVATIONS)

        async def observe(channel: ChannelId) -> None:
            async with places:
                await self._channels.observe(channel)

        outcomes = await asyncio.gather(*map(observe, channels), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _write_off(self) -> None:
        due = self._write_offs.due
        if due:
            await self._observe(due)
            await self._write_offs.carry_out(due)
        await self._write_offs.forgive()

    @property
    def _is_crowded(self) -> bool:
        """Whether no more of what clients ask for may be under way."""
        known = self._transactions
        if known.unmined >= MAX_IN_FLIGHT:
            return True
        return known.count(TxKind.FUND, TxKind.CLOSE) >= MAX_FOR_CLIENTS

    # --- funding

    async def _fund_all(self) -> None:
        wanting = sorted((live for live in self._channels if live.wants_funding), key=_by_id)
        for live in wanting:
            if self._is_crowded:
                return
            await self._attempt("fund", self._fund(live))

    async def _fund(self, live: LiveChannel) -> None:
        funding = usable_funding(live.stored.funding, now(self._clock))
        if funding is None or not live.pending_funding(now(self._clock)):
            live.wants_funding = False
            return
        if self._transactions.is_claiming(live.id, TxKind.FUND):
            return
        if await self._openings.must_open_itself(live.stored.channel.payer):
            live.wants_funding = False
            return
        # The deposit stays the payer's. What an opening brings us is its fee.
        worth = worth_of_fee(self._policy, funding.authorization.fee)
        try:
            tx = await self._port.prepare_fund(funding, worth)
        except FeeTooHigh as error:
            # Gas has become dearer since the job was admitted. It may become cheaper again.
            self._log.info("an opening waits for lower fees", channel=live.id, reason=str(error))
            return
        except TransactionReverted:
            # The payer emptied its pool, or the channel is closed. Asking again does not help.
            live.wants_funding = False
            await self._channels.observe(live.id)
            raise
        subjects = (TxSubject(live.id, funding.authorization.funded),)
        await self._transactions.send(TxKind.FUND, tx, subjects, worth)

    # --- closing

    async def _close_all(self) -> None:
        self._left_to_clients.clear()
        for live in self._channels:
            agreed = live.stored.close_signature is not None
            if agreed and live.stored.state is not ChannelState.CLOSED:
                await self._attempt("close", self._close(live))

    async def _close(self, live: LiveChannel) -> None:
        agreed = live.stored.close_signature is not None
        if not agreed or self._transactions.is_claiming(live.id, TxKind.CLOSE):
            return
        due = live.claimable and (self._asked_for or live.must_claim(now(self._clock)))
        if self._is_crowded and not due:
            return
        claim, fee, worth = _closing_claim(live), live.stored.close_fee, self._closing_worth(live)
        try:
            tx = await self._port.prepare_close(claim, fee, worth)
        except FeeTooHigh as error:
            # The client has our signature. It closes the channel itself, or we do at lower fees.
            self._log.info("closing is left to the client", channel=live.id, reason=str(error))
            if not self._must:
                self._left_to_clients.add(live.id)
            return
        except TransactionReverted:
            # With our signature the client may have closed the channel itself.
            await self._channels.observe(live.id)
            raise
        await self._transactions.send(TxKind.CLOSE, tx, (_subject_of(claim),), worth)

    def _closing_worth(self, live: LiveChannel) -> Worth:
        """What a closing may cost: its fee has to cover it, as long as the client may send it.

        What it also claims counts from when that would be settled in any case. A settlement under
        way may bring it, so it counts then only if the payer is about to withdraw. If the operator
        asks, it goes whatever it costs.
        """
        fee = max(0, min(live.stored.close_fee, live.capacity - live.ledger.cumulative))
        settling = self._transactions.is_claiming(live.id, TxKind.SETTLE)
        if live.claimable and self._must and not settling:
            return Worth(Amount(fee), None)
        stopping = self._asked_for and not settling
        due = stopping or live.must_claim(now(self._clock)) or self._has_waited(live)
        if live.claimable and due:
            return Worth(Amount(fee), worth_of(self._policy, live.claimable + fee).wei)
        return worth_of_fee(self._policy, fee)

    def _has_waited(self, live: LiveChannel) -> bool:
        """Whether an agreed closing's claim waits for the interval, and nothing else brings it."""
        if self._transactions.is_claiming(live.id, TxKind.SETTLE):
            return False
        moment = self._clock.monotonic()
        if live.unsettled_since is None:
            # The settlement that was to bring it was lost.
            live.unsettled_since = moment
        return moment - live.unsettled_since >= self._policy.interval_s

    # --- payouts that wait

    async def _push(self, urgency: Urgency) -> None:
        await self.payouts.look(now=urgency is not Urgency.NONE)
        self._metrics.waiting.set(sum(self.payouts.waiting.values()))
        if not self.payouts.waiting or self._transactions.is_pending(TxKind.PUSH):
            return
        due = self.payouts.due(await self._port.gas_price(), urgency)
        if due is None or self._transactions.unmined >= MAX_IN_FLIGHT:
            return
        token, worth = due
        tx = await self._port.prepare_push(token, self.payouts.receiver, worth)
        await self._transactions.send(TxKind.PUSH, tx, (), worth)

    # --- settling

    async def _settle(self) -> None:
        asks = self._asks  # who asks from now on means the next round
        found = [self._candidate(live) for live in self._channels]
        candidates = [candidate for candidate in found if candidate is not None]
        # What was accepted behind a claim under way has its turn once that claim is mined. What an
        # agreed closing claims goes with that closing.
        done = not self._transactions.is_pending(TxKind.SETTLE)
        done = done and not any(map(self._lacks_closing, self._channels))
        batches = (
            choose(candidates, self._policy, await self._port.gas_price()) if candidates else ()
        )
        for batch in batches:
            if self._transactions.unmined >= MAX_IN_FLIGHT:
                return
            # Of its own: one that costs too much now must not keep the others back.
            done = await self._attempt("settle", self._settle_batch(batch)) and done
        if done:
            self._answered = asks

    def _lacks_closing(self, live: LiveChannel) -> bool:
        """Whether a channel has a claim that only its agreed closing brings, which is not sent."""
        agreed = live.stored.close_signature is not None and live.id not in self._left_to_clients
        closing = self._transactions.is_claiming(live.id, TxKind.CLOSE)
        return agreed and bool(live.claimable) and not closing

    async def _settle_batch(self, batch: Batch) -> None:
        claims = [candidate.claim for candidate in batch]
        payable = await self._port.payable(claims)
        for claim, amount in zip(claims, payable, strict=True):
            if not amount:
                await self._channels.observe(claim.voucher.channel)
        good = [claim for claim, amount in zip(claims, payable, strict=True) if amount]
        if good:
            asked = any(c.urgency is Urgency.ASKED for c in batch)
            worth = worth_of(self._policy, sum(payable))
            await self._submit_claims(good, Worth(worth.units, None) if asked else worth)

    async def _submit_claims(self, claims: list[Claim], worth: Worth) -> None:
        tx = await self._port.prepare_settle(claims, worth)
        for claim in claims:
            live = self._channels.get(claim.voucher.channel)
            if live is not None:
                live.unsettled_since = None
        await self._transactions.send(TxKind.SETTLE, tx, tuple(map(_subject_of, claims)), worth)

    def _candidate(self, live: LiveChannel) -> SettlementCandidate | None:
        stored = live.stored
        if stored.state not in (ChannelState.OPEN, ChannelState.WITHDRAWING):
            return None
        agreed = stored.close_signature is not None
        if agreed or self._transactions.is_claiming(live.id, TxKind.SETTLE):
            return None
        value = live.claimable
        if not value:
            return None
        moment = self._clock.monotonic()
        if live.unsettled_since is None:
            live.unsettled_since = moment
        urgent = live.must_claim(now(self._clock))
        urgency = max(self._asked_for, Urgency.WITHDRAWING if urgent else Urgency.NONE)
        return SettlementCandidate(_claim_of(live), value, moment - live.unsettled_since, urgency)


def _by_id(live: LiveChannel) -> bytes:
    return live.id


def _subject_of(claim: Claim) -> TxSubject:
    return TxSubject(claim.voucher.channel, claim.voucher.cumulative)


def _closing_claim(live: LiveChannel) -> Claim:
    """The claim of an agreed closing. The authorizer has signed a fee with the voucher."""
    claim, signature = _claim_of(live), live.stored.close_signature
    return replace(claim, signature=signature) if live.stored.close_fee and signature else claim


def _claim_of(live: LiveChannel) -> Claim:
    """The channel's latest voucher. Without one it is empty, which needs no signature."""
    accepted = live.ledger.accepted
    if accepted is None:
        return Claim(live.stored.channel, empty_voucher(live.id), NO_SIGNATURE)
    return Claim(live.stored.channel, accepted.voucher, accepted.signature)
