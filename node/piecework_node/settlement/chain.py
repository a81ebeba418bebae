"""The chain as settlement sees it, and its adapter over `piecework.chain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import opening_authorization
from piecework.chain.contracts.calls import Call, Claim, send_native
from piecework.chain.contracts.events import WithdrawalRequested
from piecework.chain.contracts.packing import settlement_calldata
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadAnswer, LogRangeRefused, MethodMissing, RpcRefused
from piecework.chain.nodes.quorum import QuorumRpc
from piecework.chain.reading.reader import ChainReader, ChannelOnChain
from piecework.chain.sending.fees import FeePolicy
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import (
    GasPrice,
    Outcome,
    Simulation,
    TransactionSender,
    Unknown,
)
from piecework_node.journal.records import OneStepFunding, Worth
from piecework_node.runtime.channels import ChannelDepth, ChannelReader
from piecework_node.settlement.watch import NodePort
from piecework_protocol.eip712 import TypedData
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.signing import AsyncSigner, signed_by
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Timestamp, to_hex

MAX_WATCH_REQUESTS: Final = 32
"""Of one search for withdrawals. Asking for each channel is cheaper than more."""
CONFIRMATIONS: Final = 3
"""Blocks on top of a deposit that counts as mined."""
NO_TRANSACTION: Final = Bytes32(bytes(32))
"""A hash that no transaction has."""
NO_BYTES: Final = b"\xc0"
"""An empty list. A transaction has members."""


class ChainPort(ChannelReader, NodePort, Protocol):
    """Everything that settlement asks of the chain. Every method raises `ChainError`."""

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        """Return what each claim would be paid now, in base units. 0: it would be skipped."""
        ...

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        """Return the channels whose payers asked to withdraw in a range of blocks.

        Raises:
            LogRangeRefused: the node does not search so far. Each channel must be asked for.
        """
        ...

    async def prepare_fund(
        self, funding: FundingAuthorization, worth: Worth
    ) -> SignedTransaction: ...

    async def prepare_settle(self, claims: Sequence[Claim], worth: Worth) -> SignedTransaction: ...

    async def prepare_close(self, claim: Claim, fee: Amount, worth: Worth) -> SignedTransaction:
        """`fee` is what the closing pays the receiver. With one, the claim is signed for it."""
        ...

    async def waiting_payout(self, token: Address, receiver: Address) -> Amount:
        """Return base units that wait in the escrow until somebody pushes them."""
        ...

    async def prepare_push(
        self, token: Address, receiver: Address, worth: Worth
    ) -> SignedTransaction: ...

    async def replace(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        """Return a transaction with the same effect and nonce and higher fees."""
        ...

    async def cancel(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        """Return a transfer of nothing to ourselves with the same nonce and higher fees.

        `worth` is that of what waits behind the nonce.
        """
        ...

    async def simulate(self, tx: SignedTransaction) -> Simulation:
        """Return whether the chain would carry out a signed transaction now."""
        ...

    async def simulate_fund(self, funding: FundingAuthorization) -> Simulation:
        """Return whether the chain would carry out a payer's authorization now."""
        ...

    async def broadcast(self, tx: SignedTransaction) -> None: ...

    async def outcome(self, tx: SignedTransaction) -> Outcome: ...

    def resume(
        self, txs: Iterable[SignedTransaction], given_up: Iterable[SignedTransaction]
    ) -> None:
        """Count the nonces of journaled transactions as taken, and others as given up."""
        ...

    def give_up(self, tx: SignedTransaction) -> None:
        """Count the nonce of a transaction as free. Its bytes may still lie in a pool."""
        ...

    def finish(self, nonce: int) -> None:
        """Count a nonce as used for good: a transaction with it is final."""
        ...

    def insist(self, *, on: bool) -> None:
        """Use the next nonce even if another program's transaction waits with it, or do not."""
        ...

    async def mined_nonces(self) -> int:
        """Return how many of the operator's transactions are mined: the lowest unused nonce."""
        ...


class ChainLink:
    """Implements `ChainPort` with one reader and one sender."""

    def __init__(self, reader: ChainReader, signer: AsyncSigner, fees: FeePolicy) -> None:
        self._reader = reader
        self._sender = TransactionSender.of(reader, signer, fees=fees, journaled=True)

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

    async def depth(self, channel_id: ChannelId) -> ChannelDepth:
        head = await self._reader.latest_block()
        final = min(head, await self._reader.finalized_block())
        deep = max(final, head - CONFIRMATIONS)
        at_final = await self._reader.channel(channel_id, block=final)
        mined = at_final if deep == final else await self._reader.channel(channel_id, block=deep)
        return ChannelDepth(mined.funded, at_final.funded)

    async def pooled_balance(self, token: Address, owner: Address) -> Amount:
        return await self._reader.pooled_balance(token, owner)

    async def token_balance(self, token: Address, owner: Address) -> Amount:
        return await self._reader.token_balance(token, owner)

    async def opening_signed(self, funding: OneStepFunding) -> bool:
        channel, escrow = funding.authorization.channel, self._reader.domain
        token = await self._reader.token_domain(channel.token)
        message = opening_authorization(escrow, channel, Amount(0), funding.opening)
        if signed_by(token, message, funding.signature, channel.payer):
            return True
        return await self._reader.payer_signed(
            channel.payer, message, funding.signature, domain=token
        )

    async def payer_signed(self, payer: Address, message: TypedData, signature: bytes) -> bool:
        return await self._reader.payer_signed(payer, message, signature)

    async def verify(self) -> None:
        await self._reader.verify()

    async def head(self) -> tuple[int, Timestamp]:
        block = await self._reader.block("latest")
        return block.number, block.timestamp

    async def gas_price(self) -> GasPrice:
        return await self._sender.gas_price()

    async def gas_balance(self) -> int:
        return await self._sender.balance()

    async def finalized(self) -> int:
        return await self._reader.finalized_block()

    async def ask_nonce(self) -> None:
        await self._sender.next_nonce()

    async def ask_estimate(self) -> None:
        await self._sender.estimate(send_native(self._sender.signer.address, 0))

    async def ask_outcome(self) -> None:
        if await self._sender.outcome(NO_TRANSACTION) != Unknown():
            raise BadAnswer("the node knows a transaction that does not exist")

    async def ask_send(self) -> None:
        try:
            await self._reader.rpc.call("eth_sendRawTransaction", to_hex(NO_BYTES))
        except MethodMissing:
            raise
        except RpcRefused:
            return  # as it should: it takes transactions, and this is none
        raise BadAnswer("the node takes bytes that are not a transaction")

    async def ask_logs(self, block: int) -> None:
        await self._requests_to_withdraw(block, block)

    async def _requests_to_withdraw(self, first: int, last: int) -> tuple[WithdrawalRequested, ...]:
        try:
            return await self._reader.withdrawal_requests(first, last)
        except MethodMissing as error:
            # To us it is the same: channels must be asked for one by one.
            raise LogRangeRefused("eth_getLogs", error.rpc_code, error.message) from error

    @property
    def odd_nodes(self) -> Mapping[int, str]:
        rpc = self._reader.rpc
        return rpc.odd if isinstance(rpc, QuorumRpc) else {}

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        return tuple(preview.payable for preview in await self._reader.preview_settle(claims))

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        requests = self._reader.logs.requests(from_block, to_block)
        if requests > MAX_WATCH_REQUESTS:
            raise LogRangeRefused("eth_getLogs", 0, f"the search takes {requests} requests")
        found = await self._requests_to_withdraw(from_block, to_block)
        return tuple(event.channel for event in found)

    async def prepare_fund(self, funding: FundingAuthorization, worth: Worth) -> SignedTransaction:
        return await self.prepare_call(self._fund_call(funding), worth)

    async def prepare_settle(self, claims: Sequence[Claim], worth: Worth) -> SignedTransaction:
        return await self.prepare_call(settlement_calldata(self.deployment, claims), worth)

    async def prepare_close(self, claim: Claim, fee: Amount, worth: Worth) -> SignedTransaction:
        return await self.prepare_call(calls.close(self.deployment, claim, fee), worth)

    async def waiting_payout(self, token: Address, receiver: Address) -> Amount:
        return await self._reader.waiting_payout(token, receiver)

    async def prepare_push(
        self, token: Address, receiver: Address, worth: Worth
    ) -> SignedTransaction:
        return await self.prepare_call(calls.push_payout(self.deployment, token, receiver), worth)

    async def replace(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        return await self._sender.replace(tx, value_at_stake=worth.wei)

    async def cancel(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        return await self._sender.cancel(tx, value_at_stake=worth.wei)

    async def simulate(self, tx: SignedTransaction) -> Simulation:
        return await self._sender.simulate_again(tx)

    async def simulate_fund(self, funding: FundingAuthorization) -> Simulation:
        return await self._sender.simulate(self._fund_call(funding))

    async def broadcast(self, tx: SignedTransaction) -> None:
        await self._sender.broadcast(tx)

    async def outcome(self, tx: SignedTransaction) -> Outcome:
        return await self._sender.outcome(tx.hash, nonce=tx.nonce)

    def resume(
        self, txs: Iterable[SignedTransaction], given_up: Iterable[SignedTransaction]
    ) -> None:
        self._sender.resume(txs, given_up)

    def give_up(self, tx: SignedTransaction) -> None:
        self._sender.give_up(tx)

    def finish(self, nonce: int) -> None:
        self._sender.finish(nonce)

    def insist(self, *, on: bool) -> None:
        self._sender.insists = on

    async def mined_nonces(self) -> int:
        return (await self._sender.nonce_counts()).mined

    def _fund_call(self, funding: FundingAuthorization) -> Call:
        given = funding.opening if isinstance(funding, OneStepFunding) else funding
        return calls.submit_funding(self.deployment, funding.authorization.channel, given)

    async def prepare_call(self, call: Call, worth: Worth) -> SignedTransaction:
        """Sign a call as the operator's next transaction, within what it is worth."""
        return await self._sender.prepare(call, value_at_stake=worth.wei)
