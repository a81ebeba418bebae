"""A call that is asked for again after an error: nothing twice, and nothing that was not done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from piecework.chain.contracts.calls import Call, approve, mint, send_native
from piecework.chain.errors import (
    ChainError,
    EarlierCallMined,
    NonceTaken,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
    StuckTransaction,
    TransactionReverted,
)
from piecework.chain.nodes.quorum import QuorumRpc
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import TransactionSender
from piecework_protocol.types import Amount, to_hex
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time
from tests.unit.chain.test_sending import (
    OTHER,
    RECEIPT,
    TOKEN,
    WORKER,
    ScriptedRpc,
    block,
    refusal,
)

DEPOSIT = mint(TOKEN, WORKER.address, Amount(5))
"""Carried out twice, it counts twice."""
APPROVE = approve(TOKEN, OTHER.address, Amount(5))
GWEI = 10**9


class Ledger(ScriptedRpc):
    """A node with a pool. It mines what pays the base fee, in order, and at once if `mines`."""

    def __init__(self) -> None:
        super().__init__({})
        self.mines = True
        self.reverts = False
        self.counts_wrongly: int | None = None
        self.base_fee = GWEI
        self.pool: dict[int, SignedTransaction] = {}
        self.mined: dict[int, SignedTransaction] = {}
        self.failed: set[int] = set()
        self.answers |= {
            "eth_getTransactionCount": self._count,
            "eth_sendRawTransaction": self.take,
            "eth_getTransactionReceipt": self.receipt,
            "eth_getTransactionByHash": self._known,
            "eth_getBlockByNumber": self._block,
            "eth_call": "0x",
        }

    def effects(self, call: Call) -> int:
        """How often a call was carried out."""
        unsigned = [tx.unsigned for nonce, tx in self.mined.items() if nonce not in self.failed]
        return [(u.to, u.data, u.value) for u in unsigned].count((call.to, call.data, call.value))

    def mine(self) -> None:
        while (tx := self.pool.get(len(self.mined))) is not None and tx.max_fee >= self.base_fee:
            nonce = len(self.mined)
            self.mined[nonce] = self.pool.pop(nonce)
            if self.reverts:
                self.failed.add(nonce)

    def take(self, raw: str) -> str:
        tx = SignedTransaction.from_raw(bytes.fromhex(raw[2:]))
        old = self.pool.get(tx.nonce)
        if tx.nonce in self.mined:
            raise refusal("nonce too low")
        if old is not None and old != tx and tx.max_fee * 8 < old.max_fee * 9:
            raise refusal("replacement transaction underpriced")
        self.pool[tx.nonce] = tx
        if self.mines:
            self.mine()
        return to_hex(tx.hash)

    def receipt(self, tx_hash: str) -> Any:
        for nonce, tx in self.mined.items():
            if to_hex(tx.hash) == tx_hash:
                return RECEIPT | {"status": "0x0" if nonce in self.failed else "0x1"}
        return None

    def _count(self, _: str, block: str) -> str:
        count = len(self.mined) if self.counts_wrongly is None else self.counts_wrongly
        while block == "pending" and count in self.pool:
            count += 1
        return hex(count)

    def _known(self, tx_hash: str) -> Any:
        waits = tx_hash in {to_hex(tx.hash) for tx in self.pool.values()}
        return {"blockNumber": None} if waits else None

    def _block(self, tag: str, full: bool) -> Any:
        return block(tag, full) | {"baseFeePerGas": hex(self.base_fee)}


Story = Callable[[Ledger, TransactionSender], Coroutine[Any, Any, None]]


def told(story: Story) -> None:
    """Play a story with a node and the sender of a tool."""
    node = Ledger()
    simulate(story(node, TransactionSender(node, WORKER, 31337)))


async def stuck(node: Ledger, tool: TransactionSender, call: Call) -> None:
    """Ask for a call that is not mined in time."""
    node.mines = False
    with pytest.raises(StuckTransaction, match="may still be mined"):
        await tool.execute(call, poll_s=1.0)
    node.mines = True


def test_a_call_that_waits_above_a_gap_is_not_done_twice_when_it_is_asked_for_again() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.counts_wrongly = 2
        with pytest.raises(StuckTransaction, match="has nonce 2 of 0x"):
            await tool.execute(DEPOSIT, poll_s=1.0)
        node.counts_wrongly = None
        with pytest.raises(StuckTransaction, match="waits for nonce 0, which nobody uses"):
            await tool.execute(DEPOSIT, poll_s=1.0)
        assert list(node.pool) == [2], "it would be mined beside the first one"
        for wei in (1, 2):
            await tool.execute(send_native(OTHER.address, wei), poll_s=1.0)
        with pytest.raises(EarlierCallMined):
            await tool.execute(DEPOSIT, poll_s=1.0)
        assert node.effects(DEPOSIT) == 1
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == 2, "what is over is asked for anew"

    told(ask)


def test_a_call_that_waits_in_the_pool_is_waited_for_as_it_is_when_it_is_asked_for_again() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        first = node.pool[0]
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert list(node.mined.values()) == [first]
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success, "that success was the second's"
        assert node.effects(DEPOSIT) == 2

    told(ask)


def test_a_call_that_waits_is_outbid_when_the_fees_have_risen_above_it() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        first = node.pool[0]
        node.base_fee = 2 * first.max_fee
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == len(node.mined) == 1
        assert node.mined[0].max_fee >= node.base_fee

    told(ask)


def test_a_call_that_is_mined_while_it_would_be_outbid_is_done_once() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        first = node.pool[0]
        dear = {"baseFeePerGas": hex(2 * first.max_fee)}
        node.answers["eth_getBlockByNumber"] = lambda tag, full: block(tag, full) | dear
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert list(node.mined.values()) == [first]

    told(ask)


def test_a_call_for_which_the_node_wants_more_is_raised_once_each_time_it_is_asked_for() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        first = node.pool.pop(0)

        def dear(raw: str) -> str:
            if SignedTransaction.from_raw(bytes.fromhex(raw[2:])).max_fee < first.max_fee * 9 // 8:
                raise refusal("transaction underpriced")
            return node.take(raw)

        node.answers["eth_sendRawTransaction"] = dear
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == len(node.mined) == 1

    told(ask)


def test_a_node_that_limits_what_it_takes_raises_no_fee() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        tried = set()

        def limit(raw: str) -> str:
            tried.add(raw)
            raise RpcLimited("too many requests")

        node.answers["eth_sendRawTransaction"] = limit
        for _ in range(40):
            with pytest.raises(RpcLimited):
                await tool.execute(DEPOSIT)
        assert len(tried) == 1

    told(ask)


@pytest.mark.parametrize("error", [StuckTransaction, RpcUnavailable, asyncio.CancelledError])
def test_a_call_that_was_mined_after_its_error_is_told_and_then_done_if_it_is_wanted_again(
    error: type[BaseException],
) -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.mines = False
        if error is RpcUnavailable:
            node.answers["eth_getTransactionReceipt"] = RpcUnavailable("away")
        work = asyncio.create_task(tool.execute(DEPOSIT, poll_s=1.0))
        await pass_time(10.0)
        if error is asyncio.CancelledError:
            work.cancel()
        with pytest.raises(error):
            await work
        node.mine()
        first = to_hex(node.mined[0].hash)
        if error is RpcUnavailable:
            with pytest.raises(RpcUnavailable, match=rf"{first} .* may still be mined"):
                await tool.execute(DEPOSIT)
        node.answers["eth_getTransactionReceipt"] = node.receipt
        with pytest.raises(EarlierCallMined, match=rf"mined in block 5 \({first}\)\. Ask again"):
            await tool.execute(DEPOSIT, poll_s=1.0)
        assert (node.effects(DEPOSIT), list(node.pool)) == (1, [])
        node.mines = True
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == 2

    told(ask)


def test_a_call_that_was_mined_and_reverted_after_its_error_is_sent_anew() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        node.reverts = True
        node.mine()
        node.reverts = False
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert (node.effects(DEPOSIT), len(node.mined)) == (1, 2)
        node.reverts = True
        for _ in "12":
            with pytest.raises(TransactionReverted):
                await tool.execute(DEPOSIT, poll_s=1.0)
        assert len(node.mined) == 4, "who saw the end of it has nothing to remember"

    told(ask)


def test_equal_calls_side_by_side_are_each_remembered_on_their_own() -> None:
    async def both(tool: TransactionSender) -> list[Any]:
        asked = (tool.execute(DEPOSIT, poll_s=1.0) for _ in "12")
        return await asyncio.gather(*asked, return_exceptions=True)

    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.mines = False
        for _ in "12":
            assert {type(one) for one in await both(tool)} == {StuckTransaction}
            assert list(node.pool) == [0, 1]
        node.mines = True
        node.mine()
        assert [type(one) for one in await both(tool)] == [EarlierCallMined] * 2
        assert node.effects(DEPOSIT) == 2
        assert all(one.success for one in await both(tool))
        assert node.effects(DEPOSIT) == 4

    told(ask)


def test_what_may_be_repeated_is_not_remembered() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.mines = False
        with pytest.raises(StuckTransaction) as error:
            await tool.execute(APPROVE, poll_s=1.0)
        assert "may still be mined" in str(error.value)
        assert "a second time" not in str(error.value)
        node.mines = True
        node.mine()
        assert (await tool.execute(APPROVE, poll_s=1.0)).success
        assert node.effects(APPROVE) == 2, "the first allowance may be spent"

    told(ask)


def test_an_error_while_a_transaction_may_be_mined_says_which_and_what_to_do() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.answers["eth_sendRawTransaction"] = RpcUnavailable("the node is away")
        text = r"^the node is away\. Transaction 0x[0-9a-f]{64} has nonce 0 of 0x.*wallet"
        with pytest.raises(RpcUnavailable, match=text):
            await tool.execute(DEPOSIT)

    told(ask)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("by_us", [True, False])
def test_a_call_whose_nonce_another_transaction_has_used_is_sent_anew(
    by_us: bool, final: bool
) -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        node.pool.clear()
        if not final:
            node.answers["eth_getBlockByNumber"] = latest_alone
        sender = tool if by_us else TransactionSender(node, WORKER, 31337)
        await sender.execute(send_native(OTHER.address, 1), poll_s=1.0)
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == 1 and len(node.mined) == 2

    told(ask)


def latest_alone(tag: str, full: bool) -> Any:
    """A node that calls nothing final."""
    if tag == "finalized":
        raise RpcRefused("eth_getBlockByNumber", -32602, "unknown block tag")
    return block(tag, full)


def test_a_call_that_a_slow_node_does_not_know_as_mined_is_not_sent_anew() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        node.mine()
        node.answers["eth_getTransactionReceipt"] = None
        work = asyncio.create_task(tool.execute(DEPOSIT, poll_s=1.0))
        await pass_time(1.5)
        node.answers["eth_getTransactionReceipt"] = node.receipt
        with pytest.raises(EarlierCallMined):
            await work
        assert node.effects(DEPOSIT) == 1

    told(ask)


def test_a_nonce_that_is_lost_while_a_call_waits_frees_the_call_at_once() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        node.mines = False
        work = asyncio.create_task(tool.execute(DEPOSIT, poll_s=1.0))
        await pass_time(1.5)
        node.pool.clear()
        node.mines = True
        await TransactionSender(node, WORKER, 31337).execute(send_native(OTHER.address, 1))
        with pytest.raises(NonceTaken) as lost:
            await work
        assert "may still be mined" not in str(lost.value)
        assert (await tool.execute(DEPOSIT, poll_s=1.0)).success
        assert node.effects(DEPOSIT) == 1 and len(node.mined) == 2

    told(ask)


def test_a_dropped_call_is_sent_again_with_its_nonce() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        await stuck(node, tool, DEPOSIT)
        node.pool.clear()
        node.mines = False
        work = asyncio.create_task(tool.execute(DEPOSIT, poll_s=1.0))
        await pass_time(1.5)
        assert list(node.pool) == [0]
        node.pool.clear()
        node.mines = True
        other = await tool.execute(send_native(OTHER.address, 1), poll_s=1.0)
        assert other.success and (await work).success
        assert node.mined[0].unsigned.data == DEPOSIT.data and len(node.mined) == 2

    told(ask)


def test_what_no_node_took_is_forgotten() -> None:
    async def ask(node: Ledger, tool: TransactionSender) -> None:
        for message in ("transaction underpriced", "insufficient funds", "nonce too low"):
            node.answers["eth_sendRawTransaction"] = refusal(message)
            with pytest.raises(ChainError) as refused:
                await tool.execute(DEPOSIT)
            assert "may still be mined" not in str(refused.value)
        node.answers["eth_sendRawTransaction"] = node.take
        await TransactionSender(node, WORKER, 31337).execute(send_native(OTHER.address, 1))
        assert (await tool.execute(DEPOSIT)).success

    told(ask)


@pytest.mark.parametrize("message", ["transaction underpriced", "insufficient funds"])
def test_what_a_silent_node_may_hold_is_remembered_whatever_another_one_says(message: str) -> None:
    async def ask(node: Ledger, _: TransactionSender) -> None:
        refusing, silent = ScriptedRpc(node.answers), ScriptedRpc(node.answers)
        node.mines = False

        def take_silently(raw: str) -> str:
            node.take(raw)
            raise RpcUnavailable("no answer in time")

        refusing.answers["eth_sendRawTransaction"] = refusal(message)
        silent.answers["eth_sendRawTransaction"] = take_silently
        tool = TransactionSender(QuorumRpc([refusing, silent], 1), WORKER, 31337)
        with pytest.raises(ChainError, match="may still be mined"):
            await tool.execute(DEPOSIT, poll_s=1.0)
        node.mine()
        with pytest.raises(EarlierCallMined):
            await tool.execute(DEPOSIT, poll_s=1.0)
        assert node.effects(DEPOSIT) == len(node.mined) == 1

    told(ask)
