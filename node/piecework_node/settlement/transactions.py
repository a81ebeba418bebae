"""Follow signed transactions until the chain says that their outcome is final.

The signed bytes are journaled before they are broadcast. From then on only those bytes are sent
for that effect, or bytes with the same nonce and higher fees. What the chain did not call final
stays open and is looked at again after a restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

from piecework.base.clock import Clock
from piecework.chain.errors import FeeTooLow
from piecework.chain.rawtx import SignedTransaction
from piecework.chain.transactions import Finalized, Mined, Pending, Superseded
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import StoredTx, TxKind, TxMoved, TxState, TxSubject, Worth
from piecework_node.metrics import Metrics
from piecework_node.settlement.chain import ChainPort
from piecework_node.times import now
from piecework_protocol.types import Amount, ChannelId


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
        port.resume(stored.tx for stored in tracker)
        return tracker

    def __iter__(self) -> Iterator[StoredTx]:
        return iter(tuple(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    @property
    def unmined(self) -> int:
        """How many are not mined."""
        return sum(stored.state is TxState.INTENDED for stored in self)

    def is_claiming(self, channel: ChannelId, kind: TxKind) -> bool:
        """Whether such a transaction may still be mined.

        A mined one does not count. It shows in the channel's state.
        """
        return any(
            stored.kind is kind and stored.state is TxState.INTENDED and concerns(stored, channel)
            for stored in self
        )

    def latest(self, channel: ChannelId, kind: TxKind) -> bytes:
        """Return the hash of the newest open transaction of a kind, or empty bytes."""
        found = [stored for stored in self if stored.kind is kind and concerns(stored, channel)]
        return found[-1].tx.hash if found else b""

    async def send(
        self, kind: TxKind, tx: SignedTransaction, subjects: tuple[TxSubject, ...]
    ) -> None:
        """Journal the signed bytes, then broadcast them.

        Raises:
            ChainError: the node does not take them. They are sent again later.
        """
        time = now(self._clock)
        stored = StoredTx(kind, tx, subjects, Worth(Amount(0), None), time, moved_at=time)
        await self._journal.append([stored])
        self._open[tx.hash] = stored
        self._note(stored, TxState.INTENDED)
        await self._port.broadcast(tx)

    async def follow(self, stored: StoredTx) -> bool:
        """Ask the chain for the outcome of a transaction, and act on it.

        Returns:
            Whether the state of its channels may have changed.

        Raises:
            ChainError: the node does not answer, or refuses.
        """
        if stored.tx.hash not in self._open:
            return False
        outcome = await self._port.outcome(stored.tx)
        if isinstance(outcome, Finalized):
            await self._finish(stored, outcome.mined)
            return True
        if isinstance(outcome, Mined):
            if stored.state is TxState.MINED:
                return False
            await self._move(stored, TxState.MINED, outcome.gas_used)
            return True
        if isinstance(outcome, Superseded):
            await self._move(stored, TxState.REPLACED)
            return True
        if isinstance(outcome, Pending):
            stuck = now(self._clock) - stored.at >= self._stuck_s
            if stuck and self._is_highest_bid(stored):
                await self._outbid(stored)
        else:
            await self._send_again(stored)
        return False

    async def _finish(self, stored: StoredTx, mined: Mined) -> None:
        for rival in self._rivals(stored):
            await self._move(rival, TxState.REPLACED)
        state = TxState.FINAL if mined.success else TxState.FAILED
        await self._move(stored, state, mined.gas_used)
        if not mined.success:
            text = f"transaction 0x{stored.tx.hash.hex()} reverted"
            self._metrics.note(now(self._clock), stored.kind.value, text)

    async def _send_again(self, stored: StoredTx) -> None:
        """Send the same bytes. The node does not know them: never sent, dropped or reorganized."""
        if stored.state is TxState.MINED:
            await self._move(stored, TxState.INTENDED)
        if not self._is_highest_bid(stored):
            return
        try:
            await self._port.broadcast(stored.tx)
        except FeeTooLow:
            await self._outbid(stored)

    async def _outbid(self, stored: StoredTx) -> None:
        await self.send(stored.kind, await self._port.replace(stored.tx), stored.subjects)

    def _rivals(self, stored: StoredTx) -> list[StoredTx]:
        return [
            other
            for other in self
            if other.tx.nonce == stored.tx.nonce and other.tx.hash != stored.tx.hash
        ]

    def _is_highest_bid(self, stored: StoredTx) -> bool:
        return all(rival.tx.max_fee <= stored.tx.max_fee for rival in self._rivals(stored))

    async def _move(self, stored: StoredTx, state: TxState, gas_used: int = 0) -> None:
        time = now(self._clock)
        await self._journal.append([TxMoved(stored.tx.hash, state, time, gas_used)])
        self._note(stored, state)
        if state in (TxState.INTENDED, TxState.MINED):
            self._open[stored.tx.hash] = replace(stored, state=state, moved_at=time)
        else:
            del self._open[stored.tx.hash]

    def _note(self, stored: StoredTx, state: TxState) -> None:
        kind, tx = stored.kind.value, stored.tx
        self._metrics.transaction(kind, state.value)
        self._log.info("transaction", kind=kind, hash=tx.hash, nonce=tx.nonce, state=state.value)


def concerns(stored: StoredTx, channel: ChannelId) -> bool:
    """Whether a transaction states something about a channel."""
    return any(subject.channel == channel for subject in stored.subjects)
