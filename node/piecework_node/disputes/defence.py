"""Answer challenges: find them on the chain, open what they ask for, and say early what cannot be.

The chain holds the state. The journal holds the block up to which every challenge is over, and the
signed answers, before they are broadcast. So a worker that was killed finds what it has to do
again, and sends the same bytes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Protocol

from piecework.chain.errors import ChainError, FeeTooHigh
from piecework.chain.reading.disputes import Challenge, ChallengeOpened
from piecework_node.disputes.chain import DefencePort
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet, TxKind, TxSubject, Worth
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.runtime.opener import CannotOpen
from piecework_node.settlement.transactions import TransactionTracker
from piecework_protocol.disputes import EVIDENCE_SECONDS, ChallengeStatus, OpenedLeaf
from piecework_protocol.types import Amount, Bytes32, Timestamp

CURSOR: Final = "challenges_over_through_block"
CURSOR_OVERLAP_BLOCKS: Final = 64
"""Challenges are read again this far back. A reorganization may have put new ones there."""
CHECK: Final = "challenges"
"""The name under which the defence reports to the board."""
REACH: Final = "replays"
"""The name under which it reports jobs that it could not defend."""
WAIT_S: Final = 1.0
"""A round waits so long for a leaf. Settlement waits behind it, and a replay takes minutes."""
RETRY_S: Final = 300
"""After a leaf could not be opened, in seconds of the chain: a replay costs as much as a canvas."""
ANY_COST: Final = Worth(Amount(0), None)
"""An answer saves more than any gas: a part of the stake, and the worker's place in the list."""


class LeafSource(Protocol):
    """Where the fields of the worker's leaves come from."""

    async def open(self, asked: Challenge) -> OpenedLeaf:
        """Open the fields that a challenge asks for.

        Raises:
            CannotOpen: the worker does not have them and cannot compute them as it runs now.
        """
        ...

    async def out_of_reach(self, time: Timestamp) -> str | None:
        """Say which jobs may be challenged and cannot be opened by the engine that runs now.

        time: of the chain. None: every job can be.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a leaf could not be opened, and from when on it is tried again."""

    why: str
    again_at: int


class Defence:
    """The challenges to one worker. `look` does one round.

    first_block: where the contracts were created. No challenge is older.
    """

    def __init__(
        self,
        port: DefencePort,
        leaves: LeafSource,
        transactions: TransactionTracker,
        journal: Journal,
        board: FaultBoard,
        *,
        first_block: int,
        log: Any,
    ) -> None:
        self._port, self._leaves, self._journal = port, leaves, journal
        self._transactions, self._board, self._log = transactions, board, log
        self._first_block = first_block
        self._looked = False
        self.quiet = False
        """Whether the last look found every challenge over. Before it nobody knows. What opens
        leaves must be kept until then: a challenge that waits in line outlasts the evidence."""
        self._opening: tuple[Bytes32, asyncio.Task[OpenedLeaf | CannotOpen]] | None = None
        """The one leaf that is being opened, by its challenge."""
        self._leaf_of: dict[Bytes32, OpenedLeaf] = {}
        """Leaves that are open and not sent yet: the chain may refuse for a while."""
        self._failed: dict[Bytes32, _Failure] = {}

    async def look(self) -> None:
        """Answer every open challenge that has no answer under way, the most urgent first.

        The bonds of answered ones are sent to the operator.
        An answer that the chain refuses holds up none of the others.

        Raises:
            ChainError: the node does not answer, or refuses. The first one, after all were tried.
        """
        self.quiet = False
        stored = await self._journal.meta(CURSOR)
        cursor = int(stored) if stored is not None else self._first_block - 1
        height, time = await self._port.head()
        start = max(self._first_block, cursor + 1 - CURSOR_OVERLAP_BLOCKS)
        waiting: list[int] = []
        live: set[Bytes32] = set()
        troubles: list[str] = []
        refused: list[ChainError] = []
        found = await self._port.challenges(start, height)
        for opened in sorted(found, key=lambda one: one.answer_by):
            try:
                trouble, over = await self._defend(opened, time)
            except ChainError as error:
                # What the chain says of one answer must not keep the others waiting.
                refused.append(error)
                trouble, over = f"challenge {_name(opened)} has no answer yet: {error}", False
            if not over:
                waiting.append(opened.log.block)
                live.add(opened.id)
            if trouble is not None:
                troubles.append(trouble)
        self._forget_all_but(live)
        self._show(CHECK, Code.CHALLENGE_OPEN, "; ".join(troubles))
        self._show(REACH, Code.ENGINE_CHANGED, await self._leaves.out_of_reach(time))
        through = min(waiting, default=height + 1) - 1
        if through != cursor:
            await self._journal.append([MetaSet(CURSOR, str(through))])
        self.quiet = not waiting
        if refused:
            raise refused[0]
        if found or not self._looked:
            await self._take_bonds()
        self._looked = True

    async def _take_bonds(self) -> None:
        """Have the bonds sent to the operator, whose gas paid for the answers."""
        pending = self._transactions.is_pending
        if pending(TxKind.ANSWER) or pending(TxKind.PUSH):
            return
        coins = (await self._port.credits()).coins
        if not coins:
            return
        worth = Worth(Amount(0), coins)
        try:
            tx = await self._port.prepare_push(worth)
        except FeeTooHigh:
            return  # they wait for cheaper gas or for more of them
        self._log.info("bonds are sent to the operator", wei=coins)
        await self._transactions.send(TxKind.PUSH, tx, (), worth)

    def _show(self, check: str, code: Code, trouble: str | None) -> None:
        if trouble:
            self._board.failed(check, code, trouble)
        else:
            self._board.passed(check)

    def _forget_all_but(self, live: set[Bytes32]) -> None:
        """Let go of what belongs to challenges that are over."""
        self._failed = {id_: failed for id_, failed in self._failed.items() if id_ in live}
        self._leaf_of = {id_: leaf for id_, leaf in self._leaf_of.items() if id_ in live}
        if self._opening is not None and self._opening[0] not in live:
            self._opening[1].cancel()
            self._opening = None

    async def _defend(self, opened: ChallengeOpened, time: Timestamp) -> tuple[str | None, bool]:
        """Do what one challenge needs. Returns what is wrong, and whether it is over."""
        asked = opened.challenge
        status = (await self._port.state(opened.id)).status
        waits = status in (ChallengeStatus.OPEN, ChallengeStatus.SILENT)
        if not waits or self._is_answering(asked):
            # NONE: the node that told of it and the one that was asked now are not one.
            return None, not waits and status is not ChallengeStatus.NONE
        late = status is ChallengeStatus.OPEN and time > opened.answer_by
        # A late answer ends a suspension. It can be given for as long as there is evidence.
        gone = time > opened.answer_by + EVIDENCE_SECONDS
        if late:
            # Whoever concludes it makes it a silence. That can still be answered. Perhaps nobody
            # ever does.
            return f"challenge {_name(opened)} was not answered in time", gone
        leaf = await self._open(opened, time)
        if leaf is None:
            return None, False
        if isinstance(leaf, _Failure):
            over = status is ChallengeStatus.SILENT and gone
            text = f"challenge {_name(opened)} wants an answer by {opened.answer_by}: {leaf.why}"
            return text, over
        tx = await self._port.prepare_answer(asked, leaf, ANY_COST)
        self._log.info("a challenge is answered", challenge=opened.id, channel=asked.channel)
        subjects = (TxSubject(asked.channel, Amount(0)),)
        await self._transactions.send(TxKind.ANSWER, tx, subjects, ANY_COST)
        return None, False

    def _is_answering(self, asked: Challenge) -> bool:
        """Whether an answer to this very challenge may still be mined.

        One to another of the same channel may never be: anybody can copy it and come first.
        """
        return any(
            stored.kind is TxKind.ANSWER and self._port.is_answer_to(asked, stored.tx)
            for stored in self._transactions.waiting
        )

    async def _open(self, opened: ChallengeOpened, time: Timestamp) -> OpenedLeaf | _Failure | None:
        """Open the leaf of a challenge, one challenge at a time. None: it is not open yet."""
        known = self._leaf_of.get(opened.id)
        failed = self._failed.get(opened.id)
        if known is not None:
            return known
        if failed is not None and time < failed.again_at:
            return failed
        if self._opening is None:
            task = asyncio.ensure_future(self._attempt(opened.challenge))
            self._opening = opened.id, task
        whose, task = self._opening
        if whose != opened.id:
            return None
        await asyncio.wait({task}, timeout=WAIT_S)
        if not task.done():
            return None
        self._opening = None
        leaf = task.result()
        if isinstance(leaf, CannotOpen):
            self._failed[opened.id] = _Failure(str(leaf), time + RETRY_S)
            return self._failed[opened.id]
        self._leaf_of[opened.id] = leaf
        return leaf

    async def _attempt(self, asked: Challenge) -> OpenedLeaf | CannotOpen:
        """Open a leaf. A refusal is a value: nobody may be left to take an error."""
        try:
            return await self._leaves.open(asked)
        except CannotOpen as error:
            return error


def _name(opened: ChallengeOpened) -> str:
    return f"0x{opened.id.hex()[:8]}"
