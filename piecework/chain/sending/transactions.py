"""Sending, in two phases, so that a caller can journal in between.

`prepare` signs and sends nothing; `broadcast` sends the same bytes as often as one likes; `outcome`
looks. One effect never gets two nonces here: to try again is to broadcast the journaled bytes, or
to `replace` them with the same nonce. Whoever restarts calls `resume` with the journaled
transactions that are not final yet. Which nonce a new transaction gets: see `nonces`.

`execute` is for tools without a journal. It remembers what it sent and saw no end of, if it would
count twice. Who asks for the same again goes on with that, or is told that it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from piecework.chain.contracts.calls import Call, send_native
from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    EarlierCallMined,
    FeeTooHigh,
    FeeTooLow,
    InsufficientGas,
    NonceTaken,
    RpcRefused,
    SignerError,
    StuckTransaction,
    TransactionReverted,
)
from piecework.chain.limits import DEFAULT_MINING_TIMEOUT_S, DEFAULT_POLL_S, RESEND_S
from piecework.chain.nodes.finality import FINALIZED, Finality, finalized_height
from piecework.chain.nodes.refusals import Answer, classify
from piecework.chain.nodes.rpc import JsonRpc, call_object, hash_of, member, quantity, web3_over
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.fees import (
    FeePolicy,
    Fees,
    GasNeed,
    bump_fees,
    choose_fees,
    gas_limit,
    require_balance,
)
from piecework.chain.sending.gas_price import fee_market
from piecework.chain.sending.l1_fees import NO_L1, L1Fees, L1Price
from piecework.chain.sending.nonces import NonceCounts, Nonces
from piecework.chain.sending.outcomes import Finalized, Mined, Outcome, Pending, Superseded, Unknown
from piecework.chain.sending.rawtx import SignedTransaction, UnsignedTransaction
from piecework_protocol.errors import invariant
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Bytes32, to_hex

if TYPE_CHECKING:
    from web3 import AsyncWeb3
    from web3.types import TxParams, Wei

__all__ = [
    "Finalized",
    "Mined",
    "Outcome",
    "Pending",
    "SignedTransaction",
    "Superseded",
    "TransactionSender",
    "Unknown",
]


@dataclass(frozen=True, slots=True)
class WouldDo:
    """The chain would carry the call out now."""


@dataclass(frozen=True, slots=True)
class WouldRevert:
    """The chain would refuse the call now."""

    reason: str


Simulation: TypeAlias = WouldDo | WouldRevert


@dataclass(frozen=True, slots=True)
class GasPrice:
    """What a transaction costs now: wei per gas, and the price of its data on a rollup."""

    wei_per_gas: int
    data: L1Price = NO_L1


async def gas_price_of(rpc: JsonRpc, policy: FeePolicy, l1: L1Fees) -> GasPrice:
    """Ask what a transaction costs now. It needs no key.

    Raises:
        ChainError: the node does not tell.
    """
    market = await fee_market(rpc)
    tip = min(market.priority_fee, policy.max_priority_fee_wei)
    return GasPrice(market.base_fee + tip, await l1.price())


class TransactionSender:
    """Signs and sends for one key. One per key and process: it hands out the nonces.

    journaled: a journal holds every transaction of this key (`resume`), so that one which is not
        in it is another program's. Without it, a few of another process are let pass.
    """

    def __init__(
        self,
        rpc: JsonRpc,
        signer: AsyncSigner,
        chain_id: int,
        *,
        fees: FeePolicy | None = None,
        finality: Finality = FINALIZED,
        journaled: bool = False,
    ) -> None:
        self.rpc = rpc
        self.signer = signer
        self.chain_id = chain_id
        self.policy = fees or FeePolicy()
        self.finality = finality
        self._lock = asyncio.Lock()
        self._nonces, self._journaled = Nonces(), journaled
        self.insists = False
        """Whether a new transaction takes a nonce with which another program's waits. One of the
        two is mined then."""
        self._l1 = L1Fees(rpc)
        self._unsettled: list[list[SignedTransaction]] = []
        """What `execute` sent and saw no end of. Those of one attempt have one nonce."""

    @cached_property
    def _w3(self) -> AsyncWeb3[Any]:
        return web3_over(self.rpc)

    @classmethod
    def of(
        cls,
        reader: ChainReader,
        signer: AsyncSigner,
        *,
        fees: FeePolicy | None = None,
        journaled: bool = False,
    ) -> TransactionSender:
        """A sender through the reader's node, for the reader's chain."""
        return cls(
            reader.rpc,
            signer,
            reader.deployment.chain_id,
            fees=fees,
            finality=reader.finality,
            journaled=journaled,
        )

    def resume(
        self,
        journaled: Iterable[SignedTransaction],
        given_up: Iterable[SignedTransaction] = (),
    ) -> None:
        """Count the nonces of transactions that an earlier process signed as taken.

        given_up: those that it gave up, as `give_up`.
        """
        for tx in given_up:
            self.give_up(tx)
        for tx in journaled:
            invariant(tx.sender == self.signer.address, "a journaled transaction is another key's")
            invariant(
                tx.unsigned.chain_id == self.chain_id, "a journaled transaction is another chain's"
            )
            self._nonces.hold(tx.nonce)

    async def prepare(
        self, call: Call, *, value_at_stake: int | None, nonce: int | None = None
    ) -> SignedTransaction:
        """Estimate, choose fees and nonce, and sign. Nothing is sent.

        `value_at_stake` in wei: the transaction is not expected to cost more. None: whatever the
        fee policy allows. Errors, all before anything is sent: `TransactionReverted` (it would fail
        now), `FeeTooHigh`, `InsufficientGas`, `NonceUnexplained`, `RpcUnavailable`. The nonce
        counts as taken from here on. `forget` frees it if the transaction was never sent.
        """
        expected = await self.estimate(call)
        data = (await self._l1.price()).beside_gas(call.data)
        gas = GasNeed(expected, gas_limit(expected, call.gas_hint), data)
        market = await fee_market(self.rpc)
        fees = choose_fees(market, gas, self.policy, value_at_stake)
        balance = await self.balance()
        require_balance(balance, gas, fees, call.value, to_hex(self.signer.address))
        async with self._lock:
            if nonce is None:
                counts = await self.nonce_counts()
                nonce = self._next(counts, insist=self.insists)
                old = self._nonces.given_up(nonce) if counts.pending > nonce else None
                if old is not None:  # the pool has it
                    fees = bump_fees(old, market, gas, self.policy, value_at_stake)
                    require_balance(balance, gas, fees, call.value, to_hex(self.signer.address))
            self._nonces.hold(nonce)
        try:
            return await self._unsigned(call, nonce, gas.limit, fees).signed_by(self.signer)
        except SignerError:
            self._nonces.free(nonce)
            raise

    def forget(self, tx: SignedTransaction) -> None:
        """Free the nonce of a transaction that was never broadcast."""
        self._nonces.free(tx.nonce)

    def give_up(self, tx: SignedTransaction) -> None:
        """Free the nonce of a journaled transaction that was broadcast and may still be mined.

        What takes the nonce then outbids it. So one of the two is mined, whichever it is.
        """
        self._nonces.give_up(tx.nonce, tx.unsigned.fees)

    def finish(self, nonce: int) -> None:
        """A transaction with this nonce is final, whoever's it is."""
        self._nonces.finish(nonce)

    async def broadcast(self, tx: SignedTransaction) -> Bytes32:
        """Send the bytes; sending them again is harmless. Returns the hash.

        `NonceTaken` when another transaction with this nonce was mined, `FeeTooLow` when the node
        wants more, `InsufficientGas`, `RpcUnavailable` (it may have arrived all the same: see
        `outcome`), `RpcRefused`.
        """
        try:
            answer = await self._w3.eth.send_raw_transaction(tx.raw)
        except RpcRefused as error:
            await self._refused(tx, error)
            return tx.hash
        if bytes(answer) != tx.hash:
            raise BadAnswer("the node returned another transaction's hash")
        return tx.hash

    async def outcome(self, tx_hash: Bytes32, *, nonce: int | None = None) -> Outcome:
        """What became of a transaction. With its `nonce` it can be told apart whether it was
        superseded."""
        mined = await self._receipt(tx_hash)
        if mined is not None:
            return Finalized(mined) if await self._is_final(mined) else mined
        known = await self.rpc.call("eth_getTransactionByHash", to_hex(tx_hash))
        if known is not None:
            # Between the two questions a block may have come; a pending one has no block.
            pooled = member(known, "blockNumber", "a transaction") is None
            return Pending() if pooled else await self._mined_or_pending(tx_hash)
        if (
            nonce is not None
            and await self._count(await finalized_height(self.rpc, self.finality)) > nonce
        ):
            # Mined after the first question? The receipt is asked for again before giving up on it.
            again = await self._receipt(tx_hash)
            return Superseded() if again is None else again
        return Unknown()

    async def wait_mined(
        self,
        tx_hash: Bytes32,
        timeout_s: float = DEFAULT_MINING_TIMEOUT_S,
        poll_s: float = DEFAULT_POLL_S,
    ) -> Mined:
        """Poll until a block holds it; `StuckTransaction` after the timeout (it may still be mined
        later)."""
        return (await self._any_mined([tx_hash], timeout_s, poll_s))[1]

    async def _any_mined(
        self, hashes: Sequence[Bytes32], timeout_s: float, poll_s: float
    ) -> tuple[Bytes32, Mined]:
        """Poll until a block holds one of these, of which the last is the newest."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await self._found(hashes)
                    if found is not None:
                        return found
                    await asyncio.sleep(poll_s)
        except TimeoutError:
            raise StuckTransaction(
                f"transaction {to_hex(hashes[-1])} was not mined in time. "
                "Look again later, or replace it with higher fees."
            ) from None

    async def _found(self, hashes: Sequence[Bytes32]) -> tuple[Bytes32, Mined] | None:
        """The one of these that a block holds now."""
        for tx_hash in hashes:
            mined = await self._receipt(tx_hash)
            if mined is not None:
                return tx_hash, mined
        return None

    async def replace(
        self, tx: SignedTransaction, *, value_at_stake: int | None
    ) -> SignedTransaction:
        """The same effect with the same nonce and both fees at least 12.5 % higher, signed and not
        sent.

        `value_at_stake` bounds it as in `prepare`. Only one of the two can be mined. Journal the
        new bytes beside the old ones: either may win. `TransactionReverted` when the effect would
        fail now, `FeeTooHigh` when it is not worth its new price: see `cancel`.
        """
        u = tx.unsigned
        # On the latest block: on a pending one the old transaction may have had its effect already.
        expected = await self.estimate(_call_of(tx), "latest")
        gas = GasNeed(expected, u.gas_limit, (await self._l1.price()).beside_gas(u.data))
        fees = bump_fees(u.fees, await fee_market(self.rpc), gas, self.policy, value_at_stake)
        require_balance(await self.balance(), gas, fees, u.value, to_hex(self.signer.address))
        raised = UnsignedTransaction(u.chain_id, u.nonce, fees, u.gas_limit, u.to, u.value, u.data)
        return await raised.signed_by(self.signer)

    async def cancel(
        self, tx: SignedTransaction, *, value_at_stake: int | None
    ) -> SignedTransaction:
        """A transfer of nothing to ourselves with the same nonce and higher fees: fills the gap.

        `value_at_stake` in wei is what waits behind the gap.
        """
        nothing = send_native(self.signer.address, 0)
        data = (await self._l1.price()).beside_gas(b"")
        gas = GasNeed(nothing.gas_hint, nothing.gas_hint, data)
        market = await fee_market(self.rpc)
        fees = bump_fees(tx.unsigned.fees, market, gas, self.policy, value_at_stake)
        require_balance(await self.balance(), gas, fees, 0, to_hex(self.signer.address))
        unsigned = self._unsigned(nothing, tx.nonce, nothing.gas_hint, fees)
        return await unsigned.signed_by(self.signer)

    async def simulate(self, call: Call) -> Simulation:
        """Whether the chain would carry out a call of ours now. It costs nothing.

        Raises:
            ChainError: the node does not say.
        """
        request = call_object(call.to, call.data, sender=self.signer.address, value=call.value)
        try:
            await self.rpc.call("eth_call", request, "latest")
        except TransactionReverted as error:
            return WouldRevert(error.reason)
        return WouldDo()

    async def simulate_again(self, tx: SignedTransaction) -> Simulation:
        """Whether the chain would carry out a signed transaction of ours now, as `simulate`."""
        return await self.simulate(_call_of(tx))

    async def execute(
        self,
        call: Call,
        *,
        timeout_s: float = DEFAULT_MINING_TIMEOUT_S,
        poll_s: float = DEFAULT_POLL_S,
    ) -> Mined:
        """Prepare, broadcast and wait, for tools that keep no journal.

        After an error the transaction may still be mined. The error says so. Asked for the same
        again, and if it would count twice, this sender goes on with what waits. It sends a new one
        when the old one failed or cannot be mined any more.

        Raises:
            TransactionReverted: it failed.
            EarlierCallMined: the same was asked for before, and is done. Nothing was sent.
            ChainError: it was not sent, or its end was not seen.
        """
        sent = await self._still_waiting(call, poll_s)
        async with self._remembering(call, sent):
            await self._submit(call, sent)
            tx_hash, mined = await self._until_mined(sent, timeout_s, poll_s)
        if not mined.success:
            raise await self.explain(next(tx for tx in sent if tx.hash == tx_hash), mined)
        return mined

    @contextlib.asynccontextmanager
    async def _remembering(self, call: Call, sent: list[SignedTransaction]) -> AsyncIterator[None]:
        """Remember what was sent for a call if its end is not seen, and say so in the error."""
        try:
            yield
        except BaseException as error:
            if sent:
                # If it waits all the same, the node's own count of pending ones holds its nonce. If
                # the node has dropped it, what comes next must not wait for it, and may have it.
                self._nonces.free(sent[-1].nonce)
                if call.counts_twice:
                    self._unsettled.append(sent)
            if sent and isinstance(error, ChainError):
                # Its class says what can be done about the node, so it stays.
                text = str(error) if str(error).endswith((".", "?")) else f"{error}."
                gap = await self._gap_below(sent[-1]) if isinstance(error, StuckTransaction) else ""
                error.args = (f"{text} {_what_waits(call, sent[-1])}{gap}",)
            raise

    async def _still_waiting(self, call: Call, poll_s: float) -> list[SignedTransaction]:
        """Take an earlier attempt at a call that still waits. Empty: there is none.

        An attempt that is over is forgotten. `EarlierCallMined` if it did what was wanted.
        """
        while sent := next((txs for txs in self._unsettled if _makes(txs[0], call)), None):
            self._unsettled.remove(sent)
            hashes = [tx.hash for tx in sent]
            async with self._remembering(call, sent):
                used = await self._count("latest") > sent[-1].nonce
                found = await self._found(hashes)
                if used and found is None:  # perhaps by one of these: a node may lag
                    with contextlib.suppress(StuckTransaction):
                        found = await self._any_mined(hashes, RESEND_S, poll_s)
            if found is not None and found[1].success:
                raise EarlierCallMined(
                    f"an earlier call of this kind was mined in block {found[1].block} "
                    f"({to_hex(found[0])}). Ask again if it is wanted once more."
                )
            if not used and found is None:
                return sent
        return []

    async def _submit(self, call: Call, sent: list[SignedTransaction]) -> None:
        """Send a call, or what was sent for it before. `sent` grows with it."""
        if not sent:
            sent.append(await self.prepare(call, value_at_stake=None))  # the fee policy bounds it
            try:
                await self.broadcast(sent[0])
            except (FeeTooLow, InsufficientGas, NonceTaken) as error:
                if isinstance(error.__cause__, RpcRefused) and error.__cause__.by_all:
                    self.forget(sent.pop())  # no node holds it
                raise
            return
        self._nonces.hold(sent[-1].nonce)
        too_low = sent[-1].max_fee < (await fee_market(self.rpc)).base_fee
        try:
            await self.broadcast(sent[-1])
        except FeeTooLow:
            too_low = True
        except NonceTaken:
            return  # perhaps by itself
        if too_low:
            # Also when the old one is mined meanwhile, the wait finds out.
            with contextlib.suppress(FeeTooHigh, FeeTooLow, NonceTaken):
                sent.append(await self.replace(sent[-1], value_at_stake=None))
                await self.broadcast(sent[-1])

    async def _gap_below(self, tx: SignedTransaction) -> str:
        """Say which nonce below a transaction nobody uses, if that is so."""
        with contextlib.suppress(ChainError):
            missing = (await self.nonce_counts()).pending
            if missing < tx.nonce:
                return f" It waits for nonce {missing}, which nobody uses: a node counted wrongly."
        return ""

    async def _until_mined(
        self, sent: list[SignedTransaction], timeout_s: float, poll_s: float
    ) -> tuple[Bytes32, Mined]:
        """Wait, and send the newest again now and then: a node may have dropped it, or replaced it
        by another one of the same nonce (`NonceTaken`, and `sent` is empty if that is mined)."""
        hashes = [tx.hash for tx in sent]
        for _ in range(int(timeout_s / RESEND_S)):
            with contextlib.suppress(StuckTransaction):
                return await self._any_mined(hashes, RESEND_S, poll_s)
            try:
                await self.broadcast(sent[-1])
            except FeeTooLow:
                pass  # it waits in the pool, or what took its place does
            except NonceTaken:
                # Perhaps by itself: one node behind an address has mined it, and the one that was
                # asked does not know it yet. Who is told of a failure now does it a second time.
                used = await self._count("latest") > sent[-1].nonce
                with contextlib.suppress(StuckTransaction):
                    return await self._any_mined(hashes, RESEND_S, poll_s)
                if used:
                    sent.clear()
                raise
        return await self._any_mined(hashes, timeout_s % RESEND_S, poll_s)

    async def explain(self, tx: SignedTransaction, mined: Mined) -> TransactionReverted:
        """Why a mined transaction failed, by running it again at the state after its block."""
        u = tx.unsigned
        address = self._w3.to_checksum_address
        request: TxParams = {"from": address(tx.sender), "data": u.data, "gas": u.gas_limit}
        request["value"] = cast("Wei", u.value)
        if u.to is not None:
            request["to"] = address(u.to)
        try:
            await self._w3.eth.call(request, mined.block)
        except TransactionReverted as error:
            return error
        except ChainError as error:
            return TransactionReverted("", {"replay": str(error)})
        return TransactionReverted("", {})

    async def gas_price(self) -> GasPrice:
        """What a transaction costs now, to weigh one before preparing it."""
        return await gas_price_of(self.rpc, self.policy, self._l1)

    async def balance(self) -> int:
        """Wei that the key holds."""
        return await self._w3.eth.get_balance(self._w3.to_checksum_address(self.signer.address))

    async def nonce_counts(self) -> NonceCounts:
        """What the chain counts of this key's transactions."""
        # In this order: a block in between shows as one more that waits, and it is ours.
        return NonceCounts(await self._count("latest"), await self._count("pending"))

    async def next_nonce(self, *, insist: bool = False) -> int:
        """The nonce that a new transaction would get.

        insist: take it even if another program's transaction waits with it.

        Raises:
            NonceUnexplained: the node holds transactions of this key that are not ours.
            ChainError: the node does not say.
        """
        return self._next(await self.nonce_counts(), insist=insist)

    def _next(self, counts: NonceCounts, *, insist: bool) -> int:
        if not self._journaled:
            return self._nonces.beside_others(counts)
        return self._nonces.next(counts.mined) if insist else self._nonces.explained(counts)

    # --- what the node says

    def _unsigned(self, call: Call, nonce: int, gas: int, fees: Fees) -> UnsignedTransaction:
        return UnsignedTransaction(self.chain_id, nonce, fees, gas, call.to, call.value, call.data)

    async def estimate(self, call: Call, *block: str) -> int:
        """Gas that a call of ours would use now, on the given block or on the node's pending one.

        Raises:
            ChainError: it would fail, or the node does not say.
        """
        # Raw: web3 always names a block. Without one, nodes that can estimate on top of their
        # pending block.
        request = call_object(call.to, call.data, sender=self.signer.address, value=call.value)
        try:
            return quantity(await self.rpc.call("eth_estimateGas", request, *block), "an estimate")
        except RpcRefused as error:
            if classify(error.message) is Answer.NO_FUNDS:
                raise _no_funds(self.signer) from error
            raise

    async def _count(self, block: int | Literal["latest", "pending"]) -> int:
        address = self._w3.to_checksum_address(self.signer.address)
        return await self._w3.eth.get_transaction_count(address, block)

    async def _is_final(self, mined: Mined) -> bool:
        """Deep enough, and the canonical block at that height is the one of the receipt."""
        if mined.block > await finalized_height(self.rpc, self.finality):
            return False
        block = await self.rpc.call("eth_getBlockByNumber", hex(mined.block), False)
        return (
            block is not None
            and hash_of(member(block, "hash", "a block"), "a hash") == mined.block_hash
        )

    async def _mined_or_pending(self, tx_hash: Bytes32) -> Outcome:
        mined = await self._receipt(tx_hash)
        return Pending() if mined is None else mined

    async def _receipt(self, tx_hash: Bytes32) -> Mined | None:
        raw = await self.rpc.call("eth_getTransactionReceipt", to_hex(tx_hash))
        if raw is None or member(raw, "blockNumber", "a receipt") is None:
            return None
        return Mined.of(raw)

    async def _refused(self, tx: SignedTransaction, error: RpcRefused) -> None:
        """Return when the refusal means that the node already has this very transaction, else
        raise."""
        answer = classify(error.message)
        if answer is Answer.KNOWN:
            return
        if answer is Answer.NONCE_USED:
            known = await self.rpc.call("eth_getTransactionByHash", to_hex(tx.hash))
            if known is not None:
                return
            raise NonceTaken(
                f"nonce {tx.nonce} of {to_hex(tx.sender)} was used by another transaction. "
                "Is another program using this key?"
            ) from error
        if answer is Answer.FEE_TOO_LOW:
            raise FeeTooLow(
                f"the node wants higher fees for this transaction: {error.message}"
            ) from error
        if answer is Answer.NO_FUNDS:
            raise _no_funds(self.signer) from error
        raise error


def _call_of(tx: SignedTransaction) -> Call:
    """The call that a transaction makes, for another look at it."""
    u = tx.unsigned
    return Call("again", u.to, u.data, u.gas_limit, u.value)


def _makes(tx: SignedTransaction, call: Call) -> bool:
    """Whether a transaction makes this call."""
    u = tx.unsigned
    return (u.to, u.data, u.value) == (call.to, call.data, call.value)


def _what_waits(call: Call, tx: SignedTransaction) -> str:
    """What may still be mined, and what can be done about it."""
    look = "Look for it first: asked for by a new command, the same would be done a second time. "
    return (
        f"Transaction {to_hex(tx.hash)} has nonce {tx.nonce} of {to_hex(tx.sender)} and may still "
        f"be mined. {look if call.counts_twice else ''}"
        "To give it up, use its nonce for something else in a wallet."
    )


def _no_funds(signer: AsyncSigner) -> InsufficientGas:
    return InsufficientGas(
        f"{to_hex(signer.address)} cannot pay for gas. Send it some of the chain's native coin."
    )
