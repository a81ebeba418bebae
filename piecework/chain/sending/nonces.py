"""Which nonces of one key are taken. Pure.

The ground is the chain's count of mined transactions. Above it only transactions of our own hold a
nonce. What a node counts beyond that is another program's, or made up: it holds nonces too, and
nobody here uses those. So a node that says 1,000 of a key that has sent nothing moves no nonce.

A nonce that was given up is free. Its bytes may still lie in a pool: they are ours, and whatever
takes the nonce has to outbid them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from piecework.chain.errors import NonceUnexplained
from piecework.chain.sending.fees import Fees

MAX_FOREIGN: Final = 64
"""Transactions of another program of ours that may wait, for a tool that keeps no journal. Nodes
hold about as many for one key."""


@dataclass(frozen=True, slots=True)
class NonceCounts:
    """What the chain says of a key. None of these is a nonce that we chose."""

    mined: int
    """Transactions that are mined, so the lowest nonce that is not used."""
    pending: int
    """The nonce after those that are mined or wait in the node's pool without a gap."""


class Nonces:
    """The nonces of one key that transactions of ours hold."""

    def __init__(self) -> None:
        self._floor = 0
        self._held: set[int] = set()
        self._given_up: dict[int, Fees] = {}

    def hold(self, nonce: int) -> None:
        """Count a nonce as taken."""
        self._held.add(nonce)

    def free(self, nonce: int) -> None:
        """Count a nonce as free again: what held it was never sent."""
        self._held.discard(nonce)

    def give_up(self, nonce: int, fees: Fees) -> None:
        """Count a nonce as free again whose bytes were sent, and may still be mined."""
        self._held.discard(nonce)
        old = self._given_up.get(nonce, fees)
        highest = max(old.max_fee, fees.max_fee), max(old.priority_fee, fees.priority_fee)
        self._given_up[nonce] = Fees(*highest)

    def given_up(self, nonce: int) -> Fees | None:
        """Return the fees of what was given up with a nonce. None: nothing was."""
        return self._given_up.get(nonce)

    def finish(self, nonce: int) -> None:
        """A transaction with this nonce is final, so no nonce up to it is ever free again."""
        self._floor = max(self._floor, nonce + 1)
        self._held = {held for held in self._held if held >= self._floor}
        self._given_up = {n: fees for n, fees in self._given_up.items() if n >= self._floor}

    def next(self, mined: int) -> int:
        """Return the lowest nonce that is neither used nor held. Gaps are filled first.

        mined: as the chain counts now. A node that lags behind what is final is not followed.
        """
        nonce = max(mined, self._floor)
        while nonce in self._held:
            nonce += 1
        return nonce

    def explained(self, counts: NonceCounts) -> int:
        """Return the next nonce for a key whose transactions are all ours.

        Raises:
            NonceUnexplained: the node holds a transaction with that nonce.
        """
        nonce = ours = self.next(counts.mined)
        while ours in self._held or ours in self._given_up:
            ours += 1
        if counts.pending > ours:
            raise NonceUnexplained(
                f"the node counts {counts.pending} transactions of this key, and nonce {ours} "
                "belongs to none that is mined or our own"
            )
        return nonce

    def beside_others(self, counts: NonceCounts) -> int:
        """Return the next nonce for a key that another program of its owner may use.

        Raises:
            NonceUnexplained: more wait in the node's pool than another program may have sent.
        """
        if counts.pending - max(counts.mined, self._floor) > MAX_FOREIGN:
            raise NonceUnexplained(
                f"the node counts {counts.pending} transactions of this key, and {counts.mined} "
                "are mined. Another program uses the key, or the node is wrong. Wait until those "
                "are mined, or use another node"
            )
        return self.next(max(counts.mined, counts.pending))
