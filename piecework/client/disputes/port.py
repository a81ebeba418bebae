"""The chain of a dispute's walk, over `piecework.chain`."""

from __future__ import annotations

from piecework.chain.contracts.calls import Call
from piecework.chain.deployment import Deployment
from piecework.chain.limits import DEFAULT_POLL_S
from piecework.chain.reading.disputes import (
    Challenge,
    ChallengeState,
    Credits,
    DisputeReader,
    LeafOpened,
    RewardWaits,
)
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import TransactionSender
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Timestamp


class ChainDisputePort:
    """Implements `DisputePort` with one reader and one key: the channel's payer or authorizer.

    Raises:
        BadDeployment: The market has no dispute contract.
    """

    def __init__(
        self, reader: ChainReader, signer: AsyncSigner, *, poll_s: float = DEFAULT_POLL_S
    ) -> None:
        self._reader, self._poll_s = reader, poll_s
        self._sender = TransactionSender.of(reader, signer)
        self._disputes = DisputeReader(reader.rpc, reader.deployment)

    @property
    def deployment(self) -> Deployment:
        return self._reader.deployment

    @property
    def sender(self) -> Address:
        return self._sender.signer.address

    async def timestamp(self) -> Timestamp:
        return await self._reader.timestamp()

    async def stake(self, operator: Address) -> Amount:
        worker = await self._reader.worker(operator)
        return Amount(0) if worker is None else worker.stake

    async def state(self, challenge_id: Bytes32) -> ChallengeState:
        return await self._disputes.state(challenge_id)

    async def challenge_id(self, asked: Challenge) -> Bytes32:
        return await self._disputes.challenge_id(asked)

    async def open_of(self, channel: ChannelId) -> Bytes32 | None:
        return await self._disputes.open_of(channel)

    async def required_bond(self) -> int:
        return await self._disputes.required_bond()

    async def escalation_bond(self) -> Amount:
        return await self._disputes.escalation_bond()

    async def credits_of(self, who: Address) -> Credits:
        return await self._disputes.credits_of(who)

    async def open_count(self, operator: Address) -> int:
        return await self._disputes.open_count(operator)

    async def waiting_rewards(self, operator: Address, payer: Address) -> tuple[RewardWaits, ...]:
        first = self.deployment.from_block or 0
        return await self._disputes.waiting_rewards(operator, payer, first)

    async def answer_to(self, challenge_id: Bytes32) -> LeafOpened | None:
        first = self.deployment.from_block or 0
        return await self._disputes.answer_to(challenge_id, first)

    async def execute(self, call: Call) -> None:
        await self._sender.execute(call, poll_s=self._poll_s)
