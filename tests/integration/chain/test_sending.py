"""What a chain does to transactions, on real anvil: drops, gaps, reorganizations, fees, restarts.

The promise: one intention has one effect, whatever happens between signing and finality.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from piecework.chain.contracts import calls
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.faucet import (
    GIFT_WEI,
    faucet_signer,
    fund_native,
    mint_tokens,
    take_from_faucet,
)
from piecework.chain.errors import (
    FeeTooHigh,
    FeeTooLow,
    InsufficientGas,
    NonceTaken,
    RpcUnavailable,
    StuckTransaction,
    TransactionReverted,
    WrongChain,
)
from piecework.chain.nodes.finality import at_depth
from piecework.chain.nodes.rpc import HttpRpc, JsonRpc
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.fees import FeePolicy
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import (
    Finalized,
    Mined,
    Pending,
    Superseded,
    TransactionSender,
    Unknown,
)
from piecework_protocol.types import Amount, to_hex
from tests.support.chain.chains import ETHER, POLL_S, USD, Chain, TestMarket, deployed, signer

pytestmark = pytest.mark.process

WORKER, OTHER = signer("worker"), signer("other")
GWEI = 10**9


@pytest.fixture
async def market(anvil: Anvil) -> AsyncIterator[TestMarket]:
    """A market on anvil in which the worker has gas."""
    async with deployed(anvil) as made:
        await made.give(WORKER.address, wei=ETHER)
        yield made


class CountsNothing:
    """A node that says of every key that it has sent nothing yet. Implements `JsonRpc`."""

    def __init__(self, rpc: JsonRpc) -> None:
        self._rpc, self.sent = rpc, 0

    async def call(self, method: str, *params: Any) -> Any:
        self.sent += method == "eth_sendRawTransaction"
        counts = method == "eth_getTransactionCount"
        return "0x0" if counts else await self._rpc.call(method, *params)

    async def close(self) -> None:
        await self._rpc.close()


async def manual_mining(market: TestMarket) -> None:
    """Blocks come only when a test asks for one."""
    await market.rpc.call("evm_setAutomine", False)


async def balance(market: TestMarket) -> int:
    return await market.reader.token_balance(market.token, OTHER.address)


def one_dollar(market: TestMarket) -> calls.Call:
    """A call whose effect can be counted."""
    return calls.mint(market.token, OTHER.address, Amount(USD))


async def test_a_transaction_is_pending_then_mined_then_final(market: TestMarket) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    assert await sender.outcome(tx.hash) == Unknown()
    assert await sender.broadcast(tx) == tx.hash
    assert await sender.outcome(tx.hash) == Pending()
    with pytest.raises(StuckTransaction, match="not mined"):
        await sender.wait_mined(tx.hash, timeout_s=0.05, poll_s=POLL_S)
    await market.rpc.call("evm_mine")
    mined = await sender.wait_mined(tx.hash, poll_s=POLL_S)
    assert mined.success
    assert await sender.outcome(tx.hash) == mined
    shallow = TransactionSender(market.rpc, WORKER, market.chain.chain_id, finality=at_depth(2))
    assert await shallow.outcome(tx.hash) == mined
    await market.rpc.call("anvil_mine", "0x2")
    assert await shallow.outcome(tx.hash) == Finalized(mined)
    await market.rpc.call("anvil_mine", "0x80")
    assert await sender.outcome(tx.hash) == Finalized(mined)


async def test_broadcasting_the_same_bytes_again_has_one_effect(market: TestMarket) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    for _ in range(3):
        assert await sender.broadcast(tx) == tx.hash
    await market.rpc.call("evm_mine")
    for _ in range(2):
        assert await sender.broadcast(tx) == tx.hash
    await market.rpc.call("evm_mine")
    assert await balance(market) == USD


async def test_after_a_restart_the_journaled_bytes_have_exactly_one_effect(
    market: TestMarket,
) -> None:
    """Killed before the broadcast, after it, or after mining: the next process does the same."""
    for stop_after in ("prepare", "broadcast", "mined"):
        before = await balance(market)
        first = market.sender(WORKER)
        tx = await first.prepare(one_dollar(market), value_at_stake=None)
        journal = tx.raw
        if stop_after != "prepare":
            await market.rpc.call("evm_setAutomine", stop_after == "mined")
            await first.broadcast(tx)
            await market.rpc.call("evm_setAutomine", True)
        restarted = market.sender(WORKER)
        again = SignedTransaction.from_raw(journal)
        assert again == tx
        restarted.resume([again])
        following = await restarted.prepare(one_dollar(market), value_at_stake=None)
        assert following.nonce == tx.nonce + 1
        await restarted.broadcast(again)
        await market.rpc.call("evm_mine")
        assert (await restarted.wait_mined(tx.hash, poll_s=POLL_S)).success
        assert await balance(market) == before + USD


async def test_a_dropped_transaction_is_sent_again_as_it_was(market: TestMarket) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    await sender.broadcast(tx)
    await market.rpc.call("anvil_dropTransaction", "0x" + tx.hash.hex())
    assert await sender.outcome(tx.hash, nonce=tx.nonce) == Unknown()
    await sender.broadcast(tx)
    await market.rpc.call("evm_mine")
    assert isinstance(await sender.outcome(tx.hash), Mined)
    assert await balance(market) == USD


async def test_a_stuck_transaction_is_replaced_and_only_one_of_the_two_is_mined(
    market: TestMarket,
) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    await sender.broadcast(tx)
    assert await sender.outcome(tx.hash) == Pending()
    faster = await sender.replace(tx, value_at_stake=None)
    assert faster.nonce == tx.nonce
    assert faster.unsigned.data == tx.unsigned.data
    assert faster.max_fee * 1000 >= tx.max_fee * 1125
    assert faster.priority_fee * 1000 >= tx.priority_fee * 1125
    await sender.broadcast(faster)
    await market.rpc.call("evm_mine")
    assert (await sender.wait_mined(faster.hash, poll_s=POLL_S)).success
    assert await balance(market) == USD
    with pytest.raises(NonceTaken):
        await sender.broadcast(tx)
    await market.rpc.call("anvil_mine", "0x80")
    assert await sender.outcome(tx.hash, nonce=tx.nonce) == Superseded()
    assert isinstance(await sender.outcome(faster.hash, nonce=tx.nonce), Finalized)


async def test_a_transaction_that_the_base_fee_has_outgrown_is_replaced(market: TestMarket) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    await sender.broadcast(tx)
    await market.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(tx.max_fee * 3))
    await market.rpc.call("evm_mine")
    assert not isinstance(await sender.outcome(tx.hash), Mined)
    with pytest.raises(FeeTooLow):
        await sender.broadcast(tx)
    faster = await sender.replace(tx, value_at_stake=None)
    await sender.broadcast(faster)
    await market.rpc.call("evm_mine")
    assert (await sender.wait_mined(faster.hash, poll_s=POLL_S)).success
    assert await balance(market) == USD


async def test_a_cancelled_transaction_frees_those_behind_it(market: TestMarket) -> None:
    await manual_mining(market)
    sender = market.sender(WORKER)
    lost, behind = (
        await sender.prepare(one_dollar(market), value_at_stake=None),
        await sender.prepare(one_dollar(market), value_at_stake=None),
    )
    assert behind.nonce == lost.nonce + 1
    await sender.broadcast(behind)
    await market.rpc.call("evm_mine")
    assert await sender.outcome(behind.hash) == Pending()
    await sender.broadcast(await sender.cancel(lost, value_at_stake=None))
    await market.rpc.call("anvil_mine", "0x2")
    assert isinstance(await sender.outcome(behind.hash), Mined)
    assert await balance(market) == USD


async def test_a_reorganized_transaction_comes_back_by_its_journaled_bytes(
    market: TestMarket,
) -> None:
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    await sender.broadcast(tx)
    mined = await sender.wait_mined(tx.hash, poll_s=POLL_S)
    await market.rpc.call("anvil_mine", "0x3")
    await manual_mining(market)
    await market.rpc.call("anvil_reorg", 4, [])
    assert await balance(market) == 0
    assert not isinstance(
        await sender.outcome(tx.hash, nonce=tx.nonce), Mined | Finalized | Superseded
    )
    await sender.broadcast(tx)
    await market.rpc.call("evm_mine")
    again = await sender.wait_mined(tx.hash, poll_s=POLL_S)
    assert again.block_hash != mined.block_hash
    assert await balance(market) == USD


async def test_a_nonce_used_by_another_program_is_noticed(market: TestMarket) -> None:
    mine, theirs = market.sender(WORKER), market.sender(WORKER)
    tx = await mine.prepare(one_dollar(market), value_at_stake=None)
    await theirs.execute(calls.send_native(OTHER.address, 1), poll_s=POLL_S)
    with pytest.raises(NonceTaken, match="another program"):
        await mine.broadcast(tx)
    fresh = await mine.prepare(one_dollar(market), value_at_stake=None)
    assert fresh.nonce == tx.nonce + 1


async def test_a_transaction_that_was_never_sent_gives_its_nonce_back(market: TestMarket) -> None:
    sender = market.sender(WORKER)
    tx = await sender.prepare(one_dollar(market), value_at_stake=None)
    sender.forget(tx)
    assert (await sender.prepare(one_dollar(market), value_at_stake=None)).nonce == tx.nonce


async def test_concurrent_senders_of_one_key_get_distinct_nonces(market: TestMarket) -> None:
    import asyncio

    sender = market.sender(WORKER)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(sender.prepare(one_dollar(market), value_at_stake=None))
            for _ in range(8)
        ]
    nonces = sorted(task.result().nonce for task in tasks)
    assert nonces == list(range(nonces[0], nonces[0] + 8))


async def test_fees_above_the_cap_or_the_value_at_stake_are_not_paid(market: TestMarket) -> None:
    await market.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(1_000 * GWEI))
    await market.rpc.call("evm_mine")
    sender = market.sender(WORKER)
    with pytest.raises(FeeTooHigh):
        await sender.prepare(one_dollar(market), value_at_stake=None)
    patient = TransactionSender.of(market.reader, WORKER, fees=FeePolicy(max_fee_wei=5_000 * GWEI))
    with pytest.raises(FeeTooHigh):
        await patient.prepare(one_dollar(market), value_at_stake=50_000 * GWEI)
    tx = await patient.prepare(one_dollar(market), value_at_stake=ETHER // 2)
    assert tx.max_cost <= ETHER // 2


async def test_a_key_without_gas_is_told_so_before_anything_is_sent(market: TestMarket) -> None:
    with pytest.raises(InsufficientGas, match="native coin"):
        await market.sender(OTHER).prepare(one_dollar(market), value_at_stake=None)


async def test_a_call_that_would_revert_is_not_sent_and_names_its_reason(
    market: TestMarket,
) -> None:
    before = await market.reader.native_balance(WORKER.address)
    too_much = calls.withdraw_balance(market.deployment, market.token, Amount(1), OTHER.address)
    with pytest.raises(TransactionReverted) as refused:
        await market.sender(WORKER).prepare(too_much, value_at_stake=None)
    assert refused.value.name == "InsufficientBalance"
    assert refused.value.arguments["needed"] == 1
    assert await market.reader.native_balance(WORKER.address) == before


async def test_a_transaction_that_reverts_in_its_block_is_explained(market: TestMarket) -> None:
    """Two withdrawals of one balance, both fine when estimated: the second one fails on the
    chain."""
    await market.give(WORKER.address, tokens=USD)
    sender = market.sender(WORKER)
    for call in calls.approve_and_deposit(
        market.deployment, market.token, Amount(USD), WORKER.address
    ):
        await sender.execute(call, poll_s=POLL_S)
    out = calls.withdraw_balance(market.deployment, market.token, Amount(USD), OTHER.address)
    await manual_mining(market)
    first, second = (
        await sender.prepare(out, value_at_stake=None),
        await sender.prepare(out, value_at_stake=None),
    )
    await sender.broadcast(first)
    await sender.broadcast(second)
    await market.rpc.call("evm_mine")
    failed = await sender.wait_mined(second.hash, poll_s=POLL_S)
    assert not failed.success
    assert (await sender.explain(second, failed)).name == "InsufficientBalance"
    assert await balance(market) == USD


async def test_a_node_that_is_gone_is_named_without_its_key() -> None:
    async with HttpRpc("http://user:secret@127.0.0.1:9/v2/apikey", timeout_s=2, attempts=1) as rpc:
        with pytest.raises(RpcUnavailable) as gone:
            await rpc.call("eth_chainId")
    assert "127.0.0.1:9" in str(gone.value)
    assert "secret" not in str(gone.value)
    assert "apikey" not in str(gone.value)


async def test_the_faucet_gives_on_development_chains_only(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        faucet = await faucet_signer(market.rpc)
        assert faucet.address == any_chain.faucet.address
        await fund_native(market.rpc, faucet, OTHER.address, ETHER, poll_s=POLL_S)
        await mint_tokens(
            market.rpc, faucet, market.token, OTHER.address, Amount(USD), poll_s=POLL_S
        )
        assert await market.reader.native_balance(OTHER.address) == ETHER
        assert await balance(market) == USD
    async with Anvil(chain_id=8453) as public, HttpRpc(public.url) as rpc:
        with pytest.raises(WrongChain, match="no faucet"):
            await faucet_signer(rpc)


async def test_a_chain_that_was_started_anew_is_recognized(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        old = market.deployment
    async with Anvil() as fresh:
        with pytest.raises(WrongChain, match="there is no Escrow"):
            await ChainReader.connect(old, rpc_url=fresh.url)


async def test_those_who_ask_the_faucet_at_once_all_get_their_gift(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        askers = [signer(f"asker {n}").address for n in range(12)]
        async with asyncio.TaskGroup() as tasks:
            for asker in askers:
                tasks.create_task(take_from_faucet(market.rpc, market.token, asker, Amount(USD)))
        for asker in askers:
            assert await market.reader.token_balance(market.token, asker) == USD
            assert await market.rpc.call("eth_getBalance", to_hex(asker), "latest") == hex(GIFT_WEI)


async def test_the_faucet_says_at_last_that_a_nonce_is_taken(market: TestMarket) -> None:
    rpc = CountsNothing(market.rpc)
    with pytest.raises(NonceTaken):
        await fund_native(rpc, await faucet_signer(rpc), OTHER.address, 1, poll_s=POLL_S)
    assert 10 < rpc.sent < 100
