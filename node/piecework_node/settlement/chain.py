"""The chain as settlement sees it, and its adapter over `piecework.chain`."""

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
from piecework_node.runtime.channels import ChannelReader
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.signing import Signer
from piecework_protocol.types import Address, Amount, ChannelId, Signature, Timestamp


class ChainPort(ChannelReader, Protocol):
    """Everything that settlement asks of the chain. Every method raises `ChainError`."""

    async def verify(self) -> None:
        """Check that chain and contracts are still those of the deployment.

        Raises:
            WrongChain: they are not.
        """
        ...

    async def head(self) -> tuple[int, Timestamp]:
        """Return height and time of the latest block."""
        ...

    async def wei_per_gas(self) -> int:
        """Return what a unit of gas costs now, in wei."""
        ...

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        """Return what each claim would be paid now, in base units. 0: it would be skipped."""
        ...

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        """Return the channels whose payers asked to withdraw in a range of blocks."""
        ...

    async def prepare_fund(self, funding: FundingAuthorization) -> SignedTransaction: ...

    async def prepare_settle(
        self, claims: Sequence[Claim], max_cost_wei: int | None
    ) -> SignedTransaction: ...

    async def prepare_close(self, claim: Claim) -> SignedTransaction: ...

    async def replace(self, tx: SignedTransaction) -> SignedTransaction:
        """Return a transaction with the same effect and nonce and higher fees."""
        ...

    async def broadcast(self, tx: SignedTransaction) -> None: ...

    async def outcome(self, tx: SignedTransaction) -> Outcome: ...

    def resume(self, txs: Iterable[SignedTransaction]) -> None:
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

    async def prepare_fund(self, funding: FundingAuthorization) -> SignedTransaction:
        a = funding.authorization
        signature = Signature(funding.signature)
        call = calls.fund(self.deployment, a.channel, a.funded, a.deadline, signature)
        return await self._prepare(call, None)

    async def prepare_settle(
        self, claims: Sequence[Claim], max_cost_wei: int | None
    ) -> SignedTransaction:
        return await self._prepare(calls.settle(self.deployment, claims), max_cost_wei)

    async def prepare_close(self, claim: Claim) -> SignedTransaction:
        return await self._prepare(calls.close(self.deployment, claim), None)

    async def replace(self, tx: SignedTransaction) -> SignedTransaction:
        return await self._sender.replace(tx)

    async def broadcast(self, tx: SignedTransaction) -> None:
        await self._sender.broadcast(tx)

    async def outcome(self, tx: SignedTransaction) -> Outcome:
        return await self._sender.outcome(tx.hash, nonce=tx.nonce)

    def resume(self, txs: Iterable[SignedTransaction]) -> None:
        self._sender.resume(list(txs))

    async def _prepare(self, call: Call, max_cost_wei: int | None) -> SignedTransaction:
        return await self._sender.prepare(call, value_at_stake=max_cost_wei)
