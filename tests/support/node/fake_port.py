"""A chain with a mempool: implements `settlement.chain.ChainPort` over `FakeEscrow`.

Transactions carry JSON. Only mined ones have effects; the escrow's rules (monotone, capped, skipped
rows) are applied when a block comes, so that claiming twice shows as money paid twice, were it
possible.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from piecework.chain.contracts.calls import Claim
from piecework.chain.errors import (
    FeeTooHigh,
    FeeTooLow,
    LogRangeRefused,
    NodesDisagree,
    NonceTaken,
    RpcUnavailable,
    TransactionReverted,
    WrongChain,
)
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.nonces import NonceCounts, Nonces
from piecework.chain.sending.rawtx import SignedTransaction, UnsignedTransaction
from piecework.chain.sending.transactions import (
    Finalized,
    GasPrice,
    Mined,
    Outcome,
    Pending,
    Simulation,
    Superseded,
    Unknown,
    WouldDo,
    WouldRevert,
)
from piecework_node.journal.records import OneStepFunding, Worth
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.objects import EVERYTHING
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Timestamp
from tests.support.node.fake_escrow import FakeEscrow
from tests.support.node.faults import KillSwitch
from tests.support.node.harness import DOMAIN, OPERATOR

FIRST_FEE = 100
GAS = 21_000


class FakePort(FakeEscrow):
    """The chain of one worker, with everything that can go wrong on the way to it."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = KillSwitch()
        self.pool: dict[bytes, SignedTransaction] = {}
        self.mined: dict[bytes, Mined] = {}
        self.sent: dict[bytes, SignedTransaction] = {}
        self.final: set[bytes] = set()
        self.used: dict[int, bytes] = {}
        self.height = 10
        self.time = Timestamp(1_800_000_000)
        self.price = 0
        self.gas = 10**18
        self.most_blocks = 2_000
        self.simulations = 0
        self.simulate_refuses = False
        self.wrong = False
        self.refuses_settlements = False
        """Whether each estimate of a settlement reverts."""
        self.disagrees = False
        """Whether the nodes disagree about claims and withdrawals, and about nothing else."""
        self.mute_closings = False
        """Whether the node says nothing when a closing is prepared."""
        self.broadcasts: list[bytes] = []
        self.requests: list[tuple[int, ChannelId]] = []
        self.nonces, self.insists = Nonces(), False
        self.mined_count: int | None = None
        """What the node says is mined. None: the truth."""
        self.pending_count: int | None = None
        """What the node says is mined or waits. None: what is true of our own."""
        self.waiting = self.pushed = 0
        """Base units that wait for the receiver, and that were pushed to it."""
        self.paid: dict[ChannelId, int] = {}
        self.reverting: set[bytes] = set()
        """Transactions that the block refuses, whatever a simulation said before."""

    async def verify(self) -> None:
        self._answer()
        if self.wrong:
            raise WrongChain("the node serves another chain")

    async def head(self) -> tuple[int, Timestamp]:
        self._answer()
        return self.height, self.time

    async def gas_price(self) -> GasPrice:
        self._answer()
        return GasPrice(self.price)

    async def gas_balance(self) -> int:
        self._answer()
        return self.gas

    async def finalized(self) -> int:
        self._answer()
        return self.height

    async def ask_nonce(self) -> None:
        self._answer()
        self.nonces.explained(self._counts())

    async def mined_nonces(self) -> int:
        self._answer()
        return self._counts().mined

    def _counts(self) -> NonceCounts:
        """What the node says. By default the truth: its pool holds our own alone."""
        nonce = 0
        while nonce in self.used:
            nonce += 1
        mined = nonce if self.mined_count is None else self.mined_count
        pooled = {tx.nonce for tx in self.pool.values()}
        while nonce in pooled:
            nonce += 1
        pending = max(nonce, mined) if self.pending_count is None else self.pending_count
        return NonceCounts(mined, pending)

    async def ask_estimate(self) -> None:
        self._answer()

    async def ask_outcome(self) -> None:
        self._answer()

    async def ask_send(self) -> None:
        self._answer()

    async def ask_logs(self, block: int) -> None:
        self._answer()
        if not self.most_blocks:
            raise LogRangeRefused("eth_getLogs", -32005, "no events on this plan")

    @property
    def odd_nodes(self) -> Mapping[int, str]:
        return {}

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        self._answer()
        return tuple(self._payable(c.voucher.channel, c.voucher.cumulative) for c in claims)

    def _payable(self, channel: ChannelId, cumulative: int) -> int:
        known = self.channels.get(channel)
        if known is None or known.state not in (ChannelState.OPEN, ChannelState.WITHDRAWING):
            return 0
        return max(0, min(cumulative, known.deposit) - known.settled)

    def _must_agree(self) -> None:
        if self.disagrees:
            raise NodesDisagree("of 2 nodes no 2 say the same")

    async def withdrawals(self, from_block: int, to_block: int) -> tuple[ChannelId, ...]:
        self._answer()
        self._must_agree()
        if to_block - from_block >= self.most_blocks:
            raise LogRangeRefused("eth_getLogs", -32005, "too many blocks")
        return tuple(c for block, c in self.requests if from_block <= block <= to_block)

    async def simulate(self, tx: SignedTransaction) -> Simulation:
        self._answer()
        body = json.loads(tx.unsigned.data)
        pays = [self._payable(ChannelId(bytes.fromhex(c)), a) for c, a in body["rows"]]
        return WouldDo() if body["kind"] != "settle" or any(pays) else WouldRevert("NothingNew()")

    async def simulate_fund(self, funding: FundingAuthorization) -> Simulation:
        a, pool = funding.authorization, self._purse(funding)
        self._answer()
        self.simulations += 1
        if self.simulate_refuses:
            return WouldRevert("InsufficientBalance()")
        return WouldDo() if pool >= a.funded else WouldRevert("InsufficientBalance()")

    def _purse(self, funding: FundingAuthorization) -> int:
        """What the payer holds where the authorization takes it from."""
        channel = funding.authorization.channel
        held = self.held if isinstance(funding, OneStepFunding) else self.pooled
        return held.get((channel.token, channel.payer), 0)

    async def prepare_fund(self, funding: FundingAuthorization, worth: Worth) -> SignedTransaction:
        a, pool = funding.authorization, self._purse(funding)
        self._answer()
        if pool < a.funded:
            raise TransactionReverted("InsufficientBalance", {"balance": pool})
        self._weigh(FIRST_FEE, worth)
        return self._make("fund", [(a.channel.id(DOMAIN), a.funded)])

    async def prepare_settle(self, claims: Sequence[Claim], worth: Worth) -> SignedTransaction:
        self._answer()
        self._must_agree()
        if self.refuses_settlements:
            raise TransactionReverted("NothingNew", {})
        return self._make("settle", [(c.voucher.channel, c.voucher.cumulative) for c in claims])

    async def prepare_close(self, claim: Claim, fee: Amount, worth: Worth) -> SignedTransaction:
        self._answer()
        if self.mute_closings:
            raise RpcUnavailable("the node does not answer")
        known = self.channels.get(claim.voucher.channel)
        if known is None or known.state is ChannelState.CLOSED:
            raise TransactionReverted("ChannelNotOpen", {})
        self._weigh(FIRST_FEE, worth)
        return self._make("close", [(claim.voucher.channel, claim.voucher.cumulative)])

    async def waiting_payout(self, token: Address, receiver: Address) -> Amount:
        self._answer()
        return Amount(self.waiting)

    async def prepare_push(
        self, token: Address, receiver: Address, worth: Worth
    ) -> SignedTransaction:
        self._answer()
        self._weigh(FIRST_FEE, worth)
        return self._make("push", [])

    def _make(
        self, kind: str, rows: list[tuple[bytes, int]], nonce: int | None = None, fee: int = 0
    ) -> SignedTransaction:
        if nonce is None:
            counts = self._counts()
            nonce = (
                self.nonces.next(counts.mined) if self.insists else self.nonces.explained(counts)
            )
            self.nonces.hold(nonce)
            old = self.nonces.given_up(nonce) if counts.pending > nonce else None
            fee = 0 if old is None else _raised(old.max_fee)
        fee = fee or FIRST_FEE
        body = {"kind": kind, "rows": [[c.hex(), a] for c, a in rows], "nonce": nonce, "fee": fee}
        data = json.dumps(body).encode()
        fees = Fees(fee, 1)
        unsigned = UnsignedTransaction(DOMAIN.chain_id, nonce, fees, GAS, None, 0, data)
        return unsigned.sign(OPERATOR)

    async def replace(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        self._answer()
        body = json.loads(tx.unsigned.data)
        rows = [(bytes.fromhex(c), a) for c, a in body["rows"]]
        if body["kind"] == "push" and not self.waiting:
            raise TransactionReverted("NothingToPush", {})
        fee = _raised(tx.max_fee)
        self._weigh(fee, worth)
        return self._make(body["kind"], rows, tx.nonce, fee)

    async def cancel(self, tx: SignedTransaction, worth: Worth) -> SignedTransaction:
        self._answer()
        fee = _raised(tx.max_fee)
        self._weigh(fee, worth)
        return self._make("cancel", [], tx.nonce, fee)

    @staticmethod
    def _weigh(fee: int, worth: Worth) -> None:
        """Hold a transaction to what it is worth. It takes GAS."""
        if worth.wei is not None and fee * GAS > worth.wei:
            raise FeeTooHigh(f"it costs {fee * GAS} wei and is worth {worth.wei}")

    async def broadcast(self, tx: SignedTransaction) -> None:
        self.switch.point()
        self._answer()
        if tx.nonce in self.used and self.used[tx.nonce] != tx.hash:
            raise NonceTaken("nonce used")
        rivals = [o.max_fee for o in self.pool.values() if o.nonce == tx.nonce and o != tx]
        if rivals and tx.max_fee < _raised(max(rivals)):
            raise FeeTooLow("replacement transaction underpriced")
        self.broadcasts.append(tx.hash)
        self.sent[tx.hash] = tx
        if tx.hash not in self.mined:
            self.pool[tx.hash] = tx
        self.switch.point()

    async def outcome(self, tx: SignedTransaction) -> Outcome:
        self._answer()
        if tx.hash in self.mined:
            mined = self.mined[tx.hash]
            return Finalized(mined) if tx.hash in self.final else mined
        if tx.hash in self.pool:
            return Pending()
        winner = self.used.get(tx.nonce)
        return Superseded() if winner is not None and winner in self.final else Unknown()

    def resume(
        self, txs: Iterable[SignedTransaction], given_up: Iterable[SignedTransaction]
    ) -> None:
        self.nonces = Nonces()  # what a process that starts knows
        for tx in given_up:
            self.give_up(tx)
        for tx in txs:
            self.nonces.hold(tx.nonce)

    def give_up(self, tx: SignedTransaction) -> None:
        self.nonces.give_up(tx.nonce, tx.unsigned.fees)

    def finish(self, nonce: int) -> None:
        self.nonces.finish(nonce)

    def insist(self, *, on: bool) -> None:
        self.insists = on

    # --- what tests do

    def mine(self, *, finalize: bool = True) -> None:
        """A block with everything in the pool, the highest bid of each nonce.

        What waits above a nonce that nobody uses goes on waiting.
        """
        self.height += 1
        best: dict[int, SignedTransaction] = {}
        for tx in self.pool.values():
            if tx.nonce not in best or tx.max_fee > best[tx.nonce].max_fee:
                best[tx.nonce] = tx
        for nonce in sorted(best):
            if all(lower in self.used for lower in range(nonce)):
                self._execute(best[nonce])
        self.pool = {k: tx for k, tx in self.pool.items() if tx.nonce not in self.used}
        if finalize:
            self.final |= set(self.mined)

    def _execute(self, tx: SignedTransaction) -> None:
        body = json.loads(tx.unsigned.data)
        success = True
        if body["kind"] == "push":
            self.pushed, self.waiting = self.pushed + self.waiting, 0
        for text, amount in body["rows"]:
            channel = ChannelId(bytes.fromhex(text))
            if body["kind"] == "fund":
                success = tx.hash not in self.reverting
                if success:
                    self.open(channel, amount)
                continue
            payable = self._payable(channel, amount)
            if payable:
                self.channels[channel].settled = Amount(self.channels[channel].settled + payable)
                self.paid[channel] = self.paid.get(channel, 0) + payable
            if body["kind"] == "close":
                success = self.channels[channel].state is not ChannelState.CLOSED
                self.channels[channel].state = ChannelState.CLOSED
        self.used[tx.nonce] = tx.hash
        self.mined[tx.hash] = Mined(self.height, Bytes32(bytes(32)), 50_000, 1, success, ())

    def drop_pool(self) -> None:
        """The node forgets what it had not mined."""
        self.pool.clear()

    def drop_from_pool(self, tx_hash: bytes) -> None:
        """The node forgets one transaction that it had not mined."""
        del self.pool[tx_hash]

    def reorganize(self, *, pooled: bool = False) -> None:
        """Every block with a transaction goes, and what settlements paid in it. None was final.

        pooled: the node keeps the transactions, and they wait for a block again.
        """
        assert not self.final
        if pooled:
            self.pool |= {key: self.sent[key] for key in self.mined}
        self.mined.clear()
        self.used.clear()
        for channel, paid in self.paid.items():
            self.channels[channel].settled = Amount(self.channels[channel].settled - paid)
        self.paid.clear()

    def supersede(self, tx: SignedTransaction) -> None:
        """Another transaction of the operator's key is final with the same nonce."""
        self.pool.pop(tx.hash, None)
        winner = bytes(32)
        self.used[tx.nonce] = winner
        self.final.add(winner)

    def withdraw(self, channel: ChannelId, at: float, amount: int = EVERYTHING) -> None:
        """The payer asks for its money back, or for a part of it, at a time."""
        self.height += 1
        known = self.channels[channel]
        known.state = ChannelState.WITHDRAWING
        known.requested, known.requested_at = Amount(amount), Timestamp(int(at))
        self.requests.append((self.height, channel))

    def call_off(self, channel: ChannelId) -> None:
        """The payer calls its request off."""
        self.height += 1
        known = self.channels[channel]
        known.state = ChannelState.OPEN
        known.requested, known.requested_at = Amount(0), Timestamp(0)

    def _answer(self) -> None:
        super()._answer()
        if self.switch.dead:
            raise RpcUnavailable("dead")


def _raised(fee: int) -> int:
    """What replaces a transaction with this fee."""
    return fee + fee // 8 + 1
