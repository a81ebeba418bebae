"""Brings authorizations, vouchers and closings to the chain, each exactly once.

A transaction's signed bytes are journaled before they are broadcast; from then on only those bytes,
or bytes with the same nonce and higher fees, are ever sent for that effect. What the chain did not
say is final stays open, and is looked at again after a restart. One claim of a channel is under way
at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from piecework.chain.calls import NO_SIGNATURE, Claim
from piecework.chain.errors import ChainError, FeeTooLow, TransactionReverted, WrongChain
from piecework.chain.transactions import Finalized, Mined, Pending, Superseded
from piecework_node.clock import Clock
from piecework_node.jobs.live import LiveChannel, usable_funding
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import (
    JournalRecord,
    MetaSet,
    RawTransaction,
    StoredTx,
    TxIntended,
    TxKind,
    TxMoved,
    TxState,
    TxSubject,
)
from piecework_node.metrics import Metrics
from piecework_node.settlement.chain import ChainPort
from piecework_node.settlement.policy import (
    SettlementCandidate,
    SettlePolicy,
    Urgency,
    choose,
    value_in_wei,
)
from piecework_protocol.ledger import empty_voucher
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId

CURSOR: Final = "events_through_block"
CURSOR_OVERLAP_BLOCKS: Final = 64
"""Events are read again this far back: a reorganization may have put new ones there."""
MAX_CATCH_UP_BLOCKS: Final = 20_000
"""A worker that was away longer asks each of its channels instead of reading every event."""
MAX_CLOCK_BEHIND_S: Final = 300
"""Blocks do not come from the future: further behind them, our clock is wrong and deadlines mean
nothing."""
VERIFY_INTERVAL_S: Final = 60.0
MAX_IN_FLIGHT: Final = 16
"""Transactions under way at once; a node drops what comes far ahead of the mined nonce."""


class Channels(Protocol):
    """The worker, as far as settlement needs it."""

    fault: str | None

    @property
    def books(self) -> Any: ...

    def book(self, channel: ChannelId) -> LiveChannel | None: ...

    async def observe(self, channel: ChannelId) -> None: ...


@dataclass(frozen=True, slots=True)
class SettlerTimes:
    """How long to wait, in seconds."""

    poll_s: float
    stuck_s: float


class Settler:
    """Implements `node.cashier.Payments`. `tick` does one round; `run` repeats it."""

    def __init__(
        self,
        journal: Journal,
        port: ChainPort,
        *,
        clock: Clock,
        policy: SettlePolicy,
        times: SettlerTimes,
        metrics: Metrics,
        log: Any,
    ) -> None:
        self._journal, self._port, self._clock = journal, port, clock
        self._policy, self._times = policy, times
        self._metrics, self._log = metrics, log
        self._worker: Channels | None = None
        self._txs: dict[bytes, StoredTx] = {}
        self._wanted: set[ChannelId] = set()
        self._since: dict[ChannelId, float] = {}
        self._asked = False
        self._cursor = -1
        self._verified_at = float("-inf")
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()

    async def resume(self, worker: Channels) -> None:
        """Take up what an earlier life left under way."""
        self._worker = worker
        stored = await self._journal.transactions()
        self._txs = {tx.tx.hash: tx for tx in stored}
        self._port.resume(tx.tx for tx in stored)
        cursor = await self._journal.meta(CURSOR)
        self._cursor = int(cursor) if cursor is not None else -1
        now = self._clock.now()
        self._wanted = {book.id for book in worker.books if book.pending_funding(now)}
        self._since = {
            book.id: self._clock.monotonic()
            for book in worker.books
            if book.settled < book.ledger.cumulative
        }

    # --- Payments

    def funding_wanted(self, channel: ChannelId) -> None:
        self._wanted.add(channel)
        self._wake.set()

    def voucher_accepted(self, channel: ChannelId) -> None:
        self._since.setdefault(channel, self._clock.monotonic())

    async def close(self, channel: ChannelId) -> bytes:
        async with self._lock:
            await self._attempt("close", self._close_channel(channel))
        under_way = [
            tx for tx in self._txs.values() if tx.kind is TxKind.CLOSE and _concerns(tx, channel)
        ]
        return under_way[-1].tx.hash if under_way else b""

    # --- for the operator

    def ask(self) -> None:
        """Settle everything that has any value in the next round."""
        self._asked = True
        self._wake.set()

    @property
    def under_way(self) -> tuple[StoredTx, ...]:
        """Transactions whose outcome is not final."""
        return tuple(self._txs.values())

    @property
    def unsettled(self) -> Amount:
        """Base units that are accepted and not settled on chain."""
        books = self._channels.books
        return Amount(sum(max(0, min(b.ledger.cumulative, b.backing) - b.settled) for b in books))

    @property
    def idle(self) -> bool:
        """Whether nothing is under way but what only waits for finality."""
        return not self._asked and all(tx.state is TxState.MINED for tx in self._txs.values())

    # --- rounds

    async def run(self) -> None:
        """One round after the other; at once when something presses."""
        while True:
            self._wake.clear()
            await self.tick()
            try:
                async with asyncio.timeout(self._times.poll_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def tick(self) -> None:
        """One round. What the chain refuses or does not answer is counted, noted and tried again
        later."""
        async with self._lock:
            if not await self._attempt("verify", self._verify()):
                return
            await self._attempt("follow", self._follow())
            await self._attempt("watch", self._watch())
            await self._attempt("fund", self._fund())
            await self._attempt("close", self._close_agreed())
            await self._attempt("settle", self._settle())
        self._metrics.unsettled.set(self.unsettled)

    async def _attempt(self, what: str, work: Coroutine[Any, Any, None]) -> bool:
        try:
            await work
        except ChainError as error:
            self._metrics.chain_error()
            self._metrics.note(self._clock.now(), what, str(error))
            self._log.warning(
                "chain", task=what, error_class=type(error).__name__, error=str(error)
            )
            return False
        return True

    @property
    def _channels(self) -> Channels:
        if self._worker is None:
            raise RuntimeError("resume() comes first")
        return self._worker

    async def _verify(self) -> None:
        moment = self._clock.monotonic()
        if moment - self._verified_at < VERIFY_INTERVAL_S:
            return
        fault: str | None = None
        try:
            await self._port.verify()
            _, block_time = await self._port.head()
            if block_time > self._clock.now() + MAX_CLOCK_BEHIND_S:
                fault = "this machine's clock is behind the chain's; set it"
        except WrongChain as error:
            fault = str(error)
            raise
        finally:
            self._channels.fault = fault
        self._verified_at = moment

    # --- transactions under way

    async def _follow(self) -> None:
        for tx in list(self._txs.values()):
            if tx.tx.hash in self._txs:
                await self._attempt(f"follow {tx.kind.value}", self._follow_one(tx))

    async def _follow_one(self, tx: StoredTx) -> None:
        outcome = await self._port.outcome(tx.tx)
        if isinstance(outcome, Finalized):
            await self._finished(tx, outcome.mined)
        elif isinstance(outcome, Mined):
            if tx.state is not TxState.MINED:
                await self._moved(tx, TxState.MINED, outcome.gas_used)
                await self._observe(tx)
        elif isinstance(outcome, Superseded):
            await self._moved(tx, TxState.REPLACED)
            await self._observe(tx)
        elif isinstance(outcome, Pending):
            if self._clock.now() - tx.at >= self._times.stuck_s and self._newest(tx):
                await self._outbid(tx)
        else:
            await self._again(tx)

    async def _finished(self, tx: StoredTx, mined: Mined) -> None:
        rivals = [
            t for t in self._txs.values() if t.tx.nonce == tx.tx.nonce and t.tx.hash != tx.tx.hash
        ]
        for rival in rivals:
            await self._moved(rival, TxState.REPLACED)
        await self._moved(tx, TxState.FINAL if mined.success else TxState.FAILED, mined.gas_used)
        if not mined.success:
            self._metrics.note(
                self._clock.now(), tx.kind.value, f"transaction 0x{tx.tx.hash.hex()} reverted"
            )
        await self._observe(tx)

    async def _again(self, tx: StoredTx) -> None:
        """The node does not know it: never sent, dropped, or reorganized away. Send the same
        bytes."""
        if tx.state is TxState.MINED:
            await self._moved(tx, TxState.INTENDED)
        if not self._newest(tx):
            return
        try:
            await self._port.broadcast(tx.tx)
        except FeeTooLow:
            await self._outbid(tx)

    async def _outbid(self, tx: StoredTx) -> None:
        await self._send(tx.kind, await self._port.replace(tx.tx), tx.subjects)

    def _newest(self, tx: StoredTx) -> bool:
        """Whether no other transaction with its nonce bids more."""
        return all(
            other.tx.max_fee <= tx.tx.max_fee
            for other in self._txs.values()
            if other.tx.nonce == tx.tx.nonce
        )

    async def _moved(self, tx: StoredTx, state: TxState, gas_used: int = 0) -> None:
        now = self._clock.now()
        await self._journal.append([TxMoved(tx.tx.hash, state, now, gas_used)])
        self._metrics.transaction(tx.kind.value, state.value)
        self._log.info("transaction", kind=tx.kind.value, hash=tx.tx.hash, state=state.value)
        if state in (TxState.INTENDED, TxState.MINED):
            self._txs[tx.tx.hash] = replace(tx, state=state, moved_at=now)
        else:
            del self._txs[tx.tx.hash]

    async def _observe(self, tx: StoredTx) -> None:
        for subject in tx.subjects:
            await self._channels.observe(subject.channel)

    async def _send(
        self, kind: TxKind, tx: RawTransaction, subjects: tuple[TxSubject, ...]
    ) -> None:
        """Journal the signed bytes, then let them go."""
        now = self._clock.now()
        await self._journal.append([TxIntended(kind, tx, subjects, now)])
        self._txs[tx.hash] = StoredTx(kind, tx, subjects, now, moved_at=now)
        self._metrics.transaction(kind.value, TxState.INTENDED.value)
        self._log.info(
            "transaction", kind=kind.value, hash=tx.hash, nonce=tx.nonce, state="intended"
        )
        await self._port.broadcast(tx)

    def _busy(self, channel: ChannelId, kind: TxKind) -> bool:
        """Whether such a transaction may still be mined. One that is mined shows in the channel's
        state."""
        return any(
            tx.kind is kind and tx.state is TxState.INTENDED and _concerns(tx, channel)
            for tx in self._txs.values()
        )

    def _unmined(self) -> int:
        return sum(tx.state is TxState.INTENDED for tx in self._txs.values())

    # --- withdrawals

    async def _watch(self) -> None:
        height, _ = await self._port.head()
        start = max(0, self._cursor + 1 - CURSOR_OVERLAP_BLOCKS)
        if self._cursor < 0 or height - start > MAX_CATCH_UP_BLOCKS:
            concerned = {book.id for book in self._channels.books}
        elif height <= self._cursor:
            return
        else:
            concerned = set(await self._port.withdrawals(start, height))
        for channel in concerned:
            if self._channels.book(channel) is not None:
                await self._channels.observe(channel)
        self._cursor = height
        await self._record(MetaSet(CURSOR, str(height)))

    async def _record(self, record: JournalRecord) -> None:
        await self._journal.append([record])

    # --- funding

    async def _fund(self) -> None:
        for channel in sorted(self._wanted):
            if self._unmined() >= MAX_IN_FLIGHT:
                return
            await self._attempt("fund", self._fund_channel(channel))

    async def _fund_channel(self, channel: ChannelId) -> None:
        book = self._channels.book(channel)
        funding = usable_funding(book.funding, self._clock.now()) if book else None
        if book is None or funding is None or funding.authorization.deposit <= book.deposit:
            self._wanted.discard(channel)
            return
        if self._busy(channel, TxKind.FUND):
            return
        try:
            tx = await self._port.prepare_fund(funding)
        except TransactionReverted:
            # The payer emptied its pool, or closed: the chain will not change its mind by being
            # asked again.
            self._wanted.discard(channel)
            await self._channels.observe(channel)
            raise
        await self._send(TxKind.FUND, tx, (TxSubject(channel, funding.authorization.deposit),))

    # --- closing

    async def _close_agreed(self) -> None:
        for book in list(self._channels.books):
            if book.close_signature is not None and book.state is not ChannelState.CLOSED:
                await self._attempt("close", self._close_channel(book.id))

    async def _close_channel(self, channel: ChannelId) -> None:
        book = self._channels.book(channel)
        if book is None or book.close_signature is None or self._busy(channel, TxKind.CLOSE):
            return
        claim = _claim(book)
        tx = await self._port.prepare_close(claim)
        await self._send(TxKind.CLOSE, tx, (TxSubject(channel, claim.voucher.cumulative),))

    # --- settling

    async def _settle(self) -> None:
        candidates = [c for c in map(self._candidate, list(self._channels.books)) if c is not None]
        if not candidates:
            self._asked = False
            return
        chosen = choose(candidates, self._policy, await self._port.wei_per_gas())
        claims = [
            _claim(book) for c in chosen if (book := self._channels.book(c.channel)) is not None
        ]
        if not claims:
            return
        payable = await self._port.payable(claims)
        good = [(claim, amount) for claim, amount in zip(claims, payable, strict=True) if amount]
        for claim, amount in zip(claims, payable, strict=True):
            if not amount:
                await self._channels.observe(claim.voucher.channel)
        self._asked = False
        if good:
            await self._claim(
                [claim for claim, _ in good], sum(amount for _, amount in good), chosen
            )

    async def _claim(
        self, claims: list[Claim], value: int, chosen: tuple[SettlementCandidate, ...]
    ) -> None:
        asked = any(c.urgency is Urgency.ASKED for c in chosen)
        limit = None if asked else value_in_wei(self._policy, value)
        tx = await self._port.prepare_settle(claims, limit)
        subjects = tuple(TxSubject(c.voucher.channel, c.voucher.cumulative) for c in claims)
        for subject in subjects:
            self._since.pop(subject.channel, None)
        await self._send(TxKind.SETTLE, tx, subjects)

    def _candidate(self, book: LiveChannel) -> SettlementCandidate | None:
        if book.state not in (ChannelState.OPEN, ChannelState.WITHDRAWING):
            return None
        if book.close_signature is not None or self._busy(book.id, TxKind.SETTLE):
            return None
        value = min(book.ledger.cumulative, book.deposit) - book.settled
        if value <= 0:
            return None
        urgency = Urgency.WITHDRAWING if book.state is ChannelState.WITHDRAWING else Urgency.NONE
        moment = self._clock.monotonic()
        waited = moment - self._since.setdefault(book.id, moment)
        return SettlementCandidate(
            book.id, value, waited, Urgency.ASKED if self._asked else urgency
        )


def _concerns(tx: StoredTx, channel: ChannelId) -> bool:
    return any(subject.channel == channel for subject in tx.subjects)


def _claim(book: LiveChannel) -> Claim:
    """The channel's latest voucher; an empty one, which needs no signature, when nothing was ever
    paid."""
    accepted = book.ledger.accepted
    if accepted is None:
        return Claim(book.channel, empty_voucher(book.id), NO_SIGNATURE)
    return Claim(book.channel, accepted.voucher, accepted.signature)
