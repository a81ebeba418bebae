"""The chain as the node sees it, and its adapter over the `chain` package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from piecework.chain import calls
from piecework.chain.calls import Call, Claim
from piecework.chain.deployment import Deployment
from piecework.chain.fees import FeePolicy
from piecework.chain.limits import MAX_LOG_RANGE_BLOCKS
from piecework.chain.rawtx import SignedTransaction
from piecework.chain.reader import ChainReader, ChannelOnChain
from piecework.chain.transactions import Outcome, TransactionSender
from piecework_node.jobs.channels import Observation
from piecework_node.journal.records import RawTransaction
from piecework_protocol.frames import Funding
from piecework_protocol.signing import Signer
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Timestamp


class ChainPort(Protocol):
    """Everything that settlement asks of the chain. All raise `chain.errors.ChainError`."""

    async def channel(self, channel_id: ChannelId) -> Observation: ...

    async def pooled_balance(self, token: Address, owner: Address) -> Amount: ...

    async def verify(self) -> None:
        """`WrongChain` unless chain and contracts are still those of the deployment."""
        ...

    async def head(self) -> tuple[int, Timestamp]:
        """Height and time of the latest block."""
        ...

    async def wei_per_gas(self) -> int:
        """What a unit of gas costs now."""
        ...

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        """Base units that each claim would be paid now; 0 for one that would be skipped."""
        ...

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        """Channels whose payers asked for their money back in a range of blocks."""
        ...

    async def prepare_fund(self, funding: Funding) -> RawTransaction: ...

    async def prepare_settle(
        self, claims: Sequence[Claim], max_cost_wei: int | None
    ) -> RawTransaction: ...

    async def prepare_close(self, claim: Claim) -> RawTransaction: ...

    async def replace(self, tx: RawTransaction) -> RawTransaction:
        """The same effect and nonce with higher fees."""
        ...

    async def broadcast(self, tx: RawTransaction) -> None: ...

    async def outcome(self, tx: RawTransaction) -> Outcome: ...

    def resume(self, txs: Iterable[RawTransaction]) -> None:
        """Count the nonces of journaled transactions as taken."""
        ...


class ChainLink:
    """Implements `ChainPort` with one reader and one sender."""

    def __init__(self, reader: ChainReader, signer: Signer, fees: FeePolicy) -> None:
        self._reader = reader
        self._sender = TransactionSender.of(reader, signer, fees=fees)

    @property
    def deployment(self) -> Deployment:
        """Where the contracts are."""
        return self._reader.deployment

    @property
    def reader(self) -> ChainReader:
        """For questions outside of settlement."""
        return self._reader

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
        return await self._reader.channel(channel_id)

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        return await self._reader.pooled_balance(token, owner)

    async def verify(self) -> None:
        await self._reader.verify()

    async def head(self) -> tuple[int, Timestamp]:
        block = await self._reader.block("latest")
        return block.number, block.timestamp

    async def wei_per_gas(self) -> int:
        return await self._sender.wei_per_gas()

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        return tuple(preview.payable for preview in await self._reader.preview_settle(claims))

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        found: list[ChannelId] = []
        for start in range(from_block, to_block + 1, MAX_LOG_RANGE_BLOCKS):
            end = min(to_block, start + MAX_LOG_RANGE_BLOCKS - 1)
            found += [event.channel for event in await self._reader.withdrawal_requests(start, end)]
        return tuple(found)

    async def prepare_fund(self, funding: Funding) -> RawTransaction:
        a = funding.authorization
        call = calls.fund(self.deployment, a.channel, a.deposit, a.deadline, funding.signature)
        return await self._prepare(call, None)

    async def prepare_settle(
        self, claims: Sequence[Claim], max_cost_wei: int | None
    ) -> RawTransaction:
        return await self._prepare(calls.settle(self.deployment, claims), max_cost_wei)

    async def prepare_close(self, claim: Claim) -> RawTransaction:
        return await self._prepare(calls.close(self.deployment, claim), None)

    async def replace(self, tx: RawTransaction) -> RawTransaction:
        return _plain(await self._sender.replace(SignedTransaction.from_raw(tx.raw)))

    async def broadcast(self, tx: RawTransaction) -> None:
        await self._sender.broadcast(SignedTransaction.from_raw(tx.raw))

    async def outcome(self, tx: RawTransaction) -> Outcome:
        return await self._sender.outcome(Bytes32(tx.hash), nonce=tx.nonce)

    def resume(self, txs: Iterable[RawTransaction]) -> None:
        self._sender.resume([SignedTransaction.from_raw(tx.raw) for tx in txs])

    async def _prepare(self, call: Call, max_cost_wei: int | None) -> RawTransaction:
        return _plain(await self._sender.prepare(call, value_at_stake=max_cost_wei))


def _plain(tx: SignedTransaction) -> RawTransaction:
    return RawTransaction(tx.hash, tx.raw, tx.nonce, tx.max_fee, tx.priority_fee, tx.gas_limit)
