"""Follow signed transactions until the chain says that their outcome is final.

The signed bytes are journaled before they are broadcast. From then on only those bytes are sent
for that effect, or bytes with the same nonce and higher fees. What the chain did not call final
stays open and is looked at again after a restart.

Of several with one nonce, one is mined. The others are kept until that one is final: a
reorganization may take it back. They hold nothing up in the meantime.

A nonce that nobody uses holds up everything above it. It comes from a node that has counted wrongly
once. What waits above such a gap is given up in the end, and its effect is sent again with a nonce
out of the gap. The old bytes may still be mined. They stay known as ours until a nonce above theirs
is final.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any, Self

from piecework.base.clock import Clock
from piecework.chain.errors import FeeTooHigh, FeeTooLow, NonceTaken, TransactionReverted
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import Finalized, Mined, Pending, Superseded, WouldRevert
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import StoredTx, TxKind, TxMoved, TxState, TxSubject, Worth
from piecework_node.metrics import Metrics
from piecework_node.settlement.chain import ChainPort
from piecework_node.times import now
from piecework_protocol.types import Amount, ChannelId

OnRevert = Callable[[StoredTx], Awaitable[None]]
"""What is done about a transaction as soon as it is mined and reverted."""


class TransactionTracker:
    """Transactions whose outcome is not final. Make one with `load`."""

    def __init__(
        self,
        journal: Journal,
        port: ChainPort,
        *,
        clock: Clock,
        stuck_s: float,
        metrics: Metrics,
        log: Any,
    ) -> None:
        self._journal, self._port, self._clock = journal, port, clock
        self._stuck_s, self._metrics, self._log = stuck_s, metrics, log
        self._open: dict[bytes, StoredTx] = {}
        self._given_up: dict[int, list[SignedTransaction]] = {}
        """By nonce: what was given up, and may be mined all the same."""
        self._floor = 0
        """The nonce after the highest one that is known to be used for good."""
        self._gap: tuple[int, float] | None = None
        """The lowest nonce that nobody uses below one that waits, and since when that is known."""
        for kind in TxKind:
            metrics.begin_transactions(kind.value, TxState.FAILED.value)

    @classmethod
    async def load(
        cls,
        journal: Journal,
        port: ChainPort,
        *,
        clock: Clock,
        stuck_s: float,
        metrics: Metrics,
        log: Any,
    ) -> Self:
        """Take up the transactions of the journal, so that none of their nonces is used twice.

        stuck_s: seconds after which a transaction that is not mined gets higher fees.
        """
        tracker = cls(journal, port, clock=clock, stuck_s=stuck_s, metrics=metrics, log=log)
        tracker._open = {stored.tx.hash: stored for stored in await journal.transactions()}
        given_up = [stored.tx for stored in await journal.given_up()]
        for tx in given_up:
            tracker._given_up.setdefault(tx.nonce, []).append(tx)
        port.resume((stored.tx for stored in tracker), given_up)
        return tracker

    def __iter__(self) -> Iterator[StoredTx]:
        return iter(tuple(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> tuple[StoredTx, ...]:
        """Those that wait for a block. Where a nonce has its winner, none of the others does."""
        taken = {stored.tx.nonce for stored in self if stored.state is TxState.MINED}
        return tuple(
            stored
            for stored in self
            if stored.state is TxState.INTENDED and stored.tx.nonce not in taken
        )

    @property
    def unmined(self) -> int:
        """How many wait for a block."""
        return len(self.waiting)

    def count(self, *kinds: TxKind) -> int:
        """How many of these kinds wait for a block."""
        return sum(stored.kind in kinds for stored in self.waiting)

    def is_claiming(self, channel: ChannelId, kind: TxKind) -> bool:
        """Whether such a transaction may still be mined.

        A mined one does not count. It shows in the channel's state.
        """
        return any(s.kind is kind and concerns(s, channel) for s in self.waiting)

    def is_pending(self, kind: TxKind) -> bool:
        """Whether any transaction of a kind may still be mined."""
        return any(s.kind is kind for s in self.waiting)

    def latest(self, channel: ChannelId, kind: TxKind) -> bytes:
        """Return the hash of the newest open transaction of a kind, or empty bytes."""
        found = [stored for stored in self if stored.kind is kind and concerns(stored, channel)]
        return found[-1].tx.hash if found else b""

    async def send(
        self, kind: TxKind, tx: SignedTransaction, subjects: tuple[TxSubject, ...], worth: Worth
    ) -> None:
        """Journal the signed bytes, then broadcast them.

        Raises:
            ChainError: the node does not take them. They are sent again later.
        """
        time = now(self._clock)
        stored = StoredTx(kind, tx, subjects, worth, time, moved_at=time)
        await self._journal.append([stored])
        self._open[tx.hash] = stored
        self._note(stored, TxState.INTENDED)
        await self._port.broadcast(tx)

    async def follow(self, stored: StoredTx, reverted: OnRevert) -> TxState | None:
        """Ask the chain for the outcome of a transaction, and act on it.

        reverted: is awaited when the transaction was mined and reverted, before that is journaled.
            What it raises leaves the transaction as it was, and it is called again.

        Returns:
            The transaction's new state. None: nothing changed for its channels.

        Raises:
            ChainError: the node does not answer, or refuses.
        """
        if stored.tx.hash not in self._open:
            return None
        outcome = await self._port.outcome(stored.tx)
        if isinstance(outcome, Finalized):
            return await self._finish(stored, outcome.mined, reverted)
        if isinstance(outcome, Mined):
            if stored.state is TxState.MINED:
                return None
            if not outcome.success:
                await reverted(stored)
            await self._move(stored, TxState.MINED, outcome)
            return TxState.MINED
        if isinstance(outcome, Superseded):
            await self._replaced(stored)
            return TxState.REPLACED
        went_back = stored.state is TxState.MINED
        if went_back:
            # A reorganization undid it, and what it did. It waits for a block again.
            await self._move(stored, TxState.INTENDED)
            stored = self._open[stored.tx.hash]
        if isinstance(outcome, Pending):
            stuck = now(self._clock) - stored.at >= self._stuck_s
            # Above a gap higher fees bring nothing.
            above = self._gap is not None and stored.tx.nonce > self._gap[0]
            if stuck and not above and self._is_highest_bid(stored):
                await self._outbid(stored)
        else:
            await self._send_again(stored)
        return stored.state if went_back else None

    async def _finish(self, stored: StoredTx, mined: Mined, reverted: OnRevert) -> TxState:
        if not mined.success and stored.state is not TxState.MINED:
            await reverted(stored)
        for rival in self._rivals(stored):
            await self._move(rival, TxState.REPLACED)
        self._finished(stored.tx.nonce)
        state = TxState.FINAL if mined.success else TxState.FAILED
        await self._move(stored, state, mined)
        if not mined.success:
            text = f"transaction 0x{stored.tx.hash.hex()} reverted"
            self._metrics.note(now(self._clock), stored.kind.value, text)
        return state

    async def _replaced(self, stored: StoredTx) -> None:
        """Its nonce belongs to another transaction for good."""
        if not self._rivals(stored):
            known = await self._is_given_up(stored.tx.nonce)
            by = "that was given up" if known else "that is not in the journal"
            text = f"nonce {stored.tx.nonce} was used by a transaction {by}"
            self._metrics.note(now(self._clock), "nonces", text)
            self._log.warning("nonce", kind=stored.kind.value, hash=stored.tx.hash, error=text)
        self._finished(stored.tx.nonce)
        await self._move(stored, TxState.REPLACED)

    async def _is_given_up(self, nonce: int) -> bool:
        """Whether a nonce was used by one of ours that was given up."""
        for tx in self._given_up.get(nonce, ()):
            if isinstance(await self._port.outcome(tx), Mined | Finalized):
                return True
        return False

    def _finished(self, nonce: int) -> None:
        self._floor = max(self._floor, nonce + 1)
        self._given_up = {n: txs for n, txs in self._given_up.items() if n >= self._floor}
        self._port.finish(nonce)

    # --- gaps

    async def close_gap(self) -> tuple[StoredTx, ...]:
        """Give up what waits above a nonce that nobody of ours has used for `stuck_s`.

        So many are given up as there are nonces missing, the highest first. Whoever wants their
        effects sends them again, and gets the missing nonces. Should one of the old ones be mined
        all the same, it finds its effect done.

        Returns:
            What was given up.

        Raises:
            ChainError: the node does not say how many are mined.
        """
        ground = await self._ground() if self.waiting else 0
        above, moment = self._above_gap(ground), self._clock.monotonic()
        if not above:
            self._gap = None
            return ()
        held = {stored.tx.nonce for stored in self}
        lowest = next(nonce for nonce in count(ground) if nonce not in held)
        since = moment if self._gap is None else self._gap[1]
        self._gap = lowest, since
        if moment - since < self._stuck_s:
            return ()
        self._gap = None
        for stored in above:
            text = f"nonce {stored.tx.nonce} is out of reach: nobody uses nonce {lowest}"
            self._metrics.note(now(self._clock), "nonces", text)
            self._log.warning("nonce", kind=stored.kind.value, hash=stored.tx.hash, error=text)
            self._port.give_up(stored.tx)
            self._given_up.setdefault(stored.tx.nonce, []).append(stored.tx)
            await self._move(stored, TxState.REPLACED)
        return above

    async def _ground(self) -> int:
        """The lowest nonce that is not used, as far as is known here or at the node."""
        mined = (stored.tx.nonce + 1 for stored in self if stored.state is TxState.MINED)
        return max(await self._port.mined_nonces(), self._floor, *mined)

    def _above_gap(self, ground: int) -> tuple[StoredTx, ...]:
        """As many of those that wait as nonces are missing below them, the highest first."""
        waiting, held = self.waiting, {stored.tx.nonce for stored in self}
        given: list[int] = []
        for top in sorted({stored.tx.nonce for stored in waiting}, reverse=True):
            missing = top - ground - sum(ground <= nonce < top for nonce in held)
            if len(given) >= missing:
                break
            given.append(top)
        return tuple(s for nonce in given for s in waiting if s.tx.nonce == nonce)

    # --- sending again

    async def _send_again(self, stored: StoredTx) -> None:
        """Send the same bytes. The node does not know them: never sent, dropped or reorganized."""
        if not self._is_highest_bid(stored) or await self._is_beaten(stored):
            return
        if self._is_next(stored):
            simulated = await self._port.simulate(stored.tx)
            if isinstance(simulated, WouldRevert):
                await self._give_up(stored, simulated.reason)
                return
        try:
            await self._port.broadcast(stored.tx)
        except FeeTooLow:
            await self._outbid(stored)
        except NonceTaken as error:
            # One of the owner's commands was mined with it. Once that is final, this is replaced.
            self._log.info("nonce is used", kind=stored.kind.value, reason=str(error))

    async def _outbid(self, stored: StoredTx) -> None:
        """Raise the fees, as far as the transaction is worth it."""
        try:
            tx = await self._port.replace(stored.tx, stored.worth)
        except FeeTooHigh as error:
            await self._give_up(stored, str(error))
            return
        except TransactionReverted as error:
            if self._is_next(stored):
                await self._give_up(stored, str(error))
            return
        await self.send(stored.kind, tx, stored.subjects, stored.worth)

    async def _give_up(self, stored: StoredTx, reason: str) -> None:
        """Leave a transaction as it is, or take its nonce if others wait behind it.

        Left alone it costs nothing, and it may still be mined when fees fall.
        """
        waiting = [other for other in self.waiting if other.tx.nonce > stored.tx.nonce]
        self._log.info("transaction is left", kind=stored.kind.value, reason=reason)
        if not waiting or stored.kind is TxKind.CANCEL:
            return
        worth = _sum_of(waiting)
        tx = await self._port.cancel(stored.tx, worth)
        await self.send(TxKind.CANCEL, tx, (), worth)

    def _is_next(self, stored: StoredTx) -> bool:
        """Whether no transaction of a lower nonce waits to be mined.

        One behind others cannot be judged before they have had their effect.
        """
        return all(other.tx.nonce >= stored.tx.nonce for other in self.waiting)

    def _rivals(self, stored: StoredTx) -> list[StoredTx]:
        return [
            other
            for other in self
            if other.tx.nonce == stored.tx.nonce and other.tx.hash != stored.tx.hash
        ]

    async def _is_beaten(self, stored: StoredTx) -> bool:
        """Whether the chain has mined a rival. What is known of it may be a block old."""
        for rival in self._rivals(stored):
            if isinstance(await self._port.outcome(rival.tx), Mined | Finalized):
                return True
        return False

    def _is_highest_bid(self, stored: StoredTx) -> bool:
        return all(rival.tx.max_fee <= stored.tx.max_fee for rival in self._rivals(stored))

    async def _move(self, stored: StoredTx, state: TxState, mined: Mined | None = None) -> None:
        time = now(self._clock)
        gas = (mined.gas_used, mined.gas_used * mined.gas_price) if mined is not None else (0, 0)
        await self._journal.append([TxMoved(stored.tx.hash, state, time, *gas)])
        self._note(stored, state)
        if state in (TxState.INTENDED, TxState.MINED):
            self._open[stored.tx.hash] = replace(stored, state=state, moved_at=time)
        else:
            del self._open[stored.tx.hash]

    def _note(self, stored: StoredTx, state: TxState) -> None:
        kind, tx = stored.kind.value, stored.tx
        self._metrics.transaction(kind, state.value)
        self._log.info("transaction", kind=kind, hash=tx.hash, nonce=tx.nonce, state=state.value)


def _sum_of(waiting: list[StoredTx]) -> Worth:
    """What a cancellation is worth that lets these pass. Rivals for a nonce count once."""
    by_nonce: dict[int, Worth] = {}
    for stored in waiting:
        by_nonce[stored.tx.nonce] = stored.worth
    wei = [worth.wei for worth in by_nonce.values() if worth.wei is not None]
    units = sum(worth.units for worth in by_nonce.values())
    return Worth(Amount(units), sum(wei) if len(wei) == len(by_nonce) else None)


def concerns(stored: StoredTx, channel: ChannelId) -> bool:
    """Whether a transaction states something about a channel."""
    return any(subject.channel == channel for subject in stored.subjects)
