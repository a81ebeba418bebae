"""The dispute contract as the worker sees it, and its adapter over `piecework.chain`."""

from __future__ import annotations

from typing import Protocol

from piecework.chain.reading import disputes
from piecework.chain.reading.disputes import (
    Challenge,
    ChallengeOpened,
    ChallengeState,
    Credits,
    DisputeReader,
)
from piecework.chain.sending.rawtx import SignedTransaction
from piecework_node.journal.records import Worth
from piecework_node.settlement.chain import ChainLink
from piecework_protocol.disputes import OpenedLeaf
from piecework_protocol.types import Address, Bytes32, Timestamp


class DefencePort(Protocol):
    """What the defence asks of the chain. Every method raises `ChainError`."""

    async def head(self) -> tuple[int, Timestamp]: ...

    async def challenges(self, from_block: int, to_block: int) -> tuple[ChallengeOpened, ...]:
        """Return the challenges to this worker that were opened in a range of blocks."""
        ...

    async def state(self, challenge_id: Bytes32) -> ChallengeState: ...

    async def prepare_answer(
        self, asked: Challenge, leaf: OpenedLeaf, worth: Worth
    ) -> SignedTransaction: ...

    def is_answer_to(self, asked: Challenge, tx: SignedTransaction) -> bool:
        """Return whether a transaction answers a challenge."""
        ...

    async def credits(self) -> Credits:
        """Return what waits for this worker's operator: the bonds of what it answered."""
        ...

    async def prepare_push(self, worth: Worth) -> SignedTransaction:
        """Sign the call that sends those credits."""
        ...


class DisputeLink:
    """Implements `DefencePort` over the link that settlement uses: both share the nonces."""

    def __init__(self, link: ChainLink, operator: Address) -> None:
        self._link, self._operator = link, operator
        self._reader = DisputeReader(link.reader.rpc, link.deployment)

    async def head(self) -> tuple[int, Timestamp]:
        return await self._link.head()

    async def challenges(self, from_block: int, to_block: int) -> tuple[ChallengeOpened, ...]:
        return await self._reader.challenges_to(self._operator, from_block, to_block)

    async def state(self, challenge_id: Bytes32) -> ChallengeState:
        return await self._reader.state(challenge_id)

    async def prepare_answer(
        self, asked: Challenge, leaf: OpenedLeaf, worth: Worth
    ) -> SignedTransaction:
        call = disputes.answer(self._link.deployment, asked, leaf)
        return await self._link.prepare_call(call, worth)

    def is_answer_to(self, asked: Challenge, tx: SignedTransaction) -> bool:
        return disputes.is_answer_to(asked, tx.unsigned.data)

    async def credits(self) -> Credits:
        return await self._reader.credits_of(self._operator)

    async def prepare_push(self, worth: Worth) -> SignedTransaction:
        call = disputes.push_credits(self._link.deployment, self._operator)
        return await self._link.prepare_call(call, worth)
