"""What a sender and a reader make of a node's answers, with a node that answers from a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from piecework.chain.calls import mint, send_native
from piecework.chain.errors import (
    BadAnswer,
    InsufficientGas,
    NoFinality,
    NonceTaken,
    RpcRefused,
    RpcUnavailable,
)
from piecework.chain.fees import Fees
from piecework.chain.finality import FINALIZED, Finality, at_depth, finalized_height
from piecework.chain.rawtx import SignedTransaction, UnsignedTransaction
from piecework.chain.transactions import Finalized, Pending, Superseded, TransactionSender, Unknown
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.types import Address, Amount, to_hex
from tests.support.chains import signer

WORKER, OTHER = signer("worker"), signer("other")
TOKEN = Address(bytes([3]) * 20)
BLOCK_HASH = "0x" + "aa" * 32
TX = UnsignedTransaction(31337, 4, Fees(3 * 10**9, 10**9), 21_000, OTHER.address, 1, b"").sign(
    WORKER
)
RECEIPT = {
    "blockNumber": "0x5",
    "blockHash": BLOCK_HASH,
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x1",
    "status": "0x1",
    "logs": [],
}


class ScriptedRpc:
    """A `JsonRpc` whose answers are values, exceptions, or functions of the parameters."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = {**HEALTHY, **answers}
        self.asked: list[str] = []

    async def call(self, method: str, *params: Any) -> Any:
        self.asked.append(method)
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer(*params) if callable(answer) else answer

    async def close(self) -> None:
        """Nothing is open."""


def block(tag: str, _: bool) -> Any:
    number = "0x40" if tag == "latest" else "0x10" if tag == "finalized" else tag
    return {"number": number, "hash": BLOCK_HASH, "timestamp": "0x1", "baseFeePerGas": "0x3b9aca00"}


HEALTHY: Mapping[str, Any] = {
    "eth_estimateGas": "0x5208",
    "eth_getBlockByNumber": block,
    "eth_maxPriorityFeePerGas": "0x1",
    "eth_getBalance": hex(10**18),
    "eth_getTransactionCount": "0x4",
    "eth_getTransactionReceipt": None,
    "eth_getTransactionByHash": None,
    "eth_blockNumber": "0x40",
    "eth_sendRawTransaction": "0x" + TX.hash.hex(),
}


def sender(
    answers: Mapping[str, Any] | None = None, finality: Finality = FINALIZED
) -> TransactionSender:
    return TransactionSender(ScriptedRpc(answers or {}), WORKER, 31337, finality=finality)


def refusal(message: str) -> RpcRefused:
    return RpcRefused("eth_sendRawTransaction", -32000, message)


async def test_preparing_asks_and_signs_but_sends_nothing() -> None:
    rpc = ScriptedRpc({})
    tx = await TransactionSender(rpc, WORKER, 31337).prepare(mint(TOKEN, OTHER.address, Amount(5)))
    assert "eth_sendRawTransaction" not in rpc.asked
    assert (tx.nonce, tx.sender, tx.unsigned.to) == (4, WORKER.address, TOKEN)
    assert tx.max_fee == 2 * 10**9 + 1
    assert SignedTransaction.from_raw(tx.raw) == tx


async def test_the_price_of_gas_is_base_fee_and_a_believable_tip() -> None:
    assert await sender().wei_per_gas() == 10**9 + 1
    assert await sender({"eth_maxPriorityFeePerGas": hex(10**18)}).wei_per_gas() == 51 * 10**9


async def test_preparing_the_same_call_with_the_same_nonce_gives_the_same_bytes() -> None:
    call = send_native(OTHER.address, 1)
    assert await sender().prepare(call, nonce=9) == await sender().prepare(call, nonce=9)


async def test_nonces_of_a_journal_are_not_handed_out_again() -> None:
    restarted = sender()
    restarted.resume([TX])
    assert (await restarted.prepare(send_native(OTHER.address, 1))).nonce == TX.nonce + 1
    alien = UnsignedTransaction(31337, 1, Fees(1, 1), 21_000, OTHER.address, 1, b"").sign(OTHER)
    elsewhere = UnsignedTransaction(1, 1, Fees(1, 1), 21_000, OTHER.address, 1, b"").sign(WORKER)
    for wrong in (alien, elsewhere):
        with pytest.raises(InvariantBroken):
            restarted.resume([wrong])


async def test_a_node_that_goes_away_during_a_broadcast_leaves_no_gap_in_the_nonces() -> None:
    one = sender({"eth_sendRawTransaction": RpcUnavailable("gone")})
    with pytest.raises(RpcUnavailable):
        await one.execute(send_native(OTHER.address, 1))
    assert (await one.prepare(send_native(OTHER.address, 1))).nonce == 4


@pytest.mark.parametrize("message", ["already known", "transaction already imported"])
async def test_a_transaction_that_the_node_has_already_counts_as_sent(message: str) -> None:
    assert await sender({"eth_sendRawTransaction": refusal(message)}).broadcast(TX) == TX.hash


async def test_a_used_nonce_is_success_only_if_it_is_ours() -> None:
    used = {"eth_sendRawTransaction": refusal("nonce too low")}
    mine = {"eth_getTransactionByHash": {"blockNumber": "0x5"}}
    assert await sender(used | mine).broadcast(TX) == TX.hash
    with pytest.raises(NonceTaken):
        await sender(used).broadcast(TX)


async def test_a_silent_node_leaves_the_outcome_open() -> None:
    with pytest.raises(RpcUnavailable):
        await sender({"eth_sendRawTransaction": RpcUnavailable("gone")}).broadcast(TX)


async def test_a_node_that_returns_another_hash_lies() -> None:
    with pytest.raises(BadAnswer, match="another transaction"):
        await sender({"eth_sendRawTransaction": "0x" + "00" * 32}).broadcast(TX)


async def test_a_node_that_will_not_estimate_for_want_of_money_says_who_needs_it() -> None:
    error = RpcRefused("eth_estimateGas", -32000, "insufficient funds for transfer")
    with pytest.raises(InsufficientGas, match=to_hex(WORKER.address)):
        await sender({"eth_estimateGas": error}).prepare(send_native(OTHER.address, 1))


async def test_an_outcome_is_final_at_the_finalized_height_and_not_before() -> None:
    mined = {"eth_getTransactionReceipt": RECEIPT}
    assert isinstance(await sender(mined).outcome(TX.hash), Finalized)
    above = {"eth_getTransactionReceipt": RECEIPT | {"blockNumber": "0x11"}}
    assert not isinstance(await sender(above).outcome(TX.hash), Finalized)
    assert isinstance(await sender(above, at_depth(0x2F)).outcome(TX.hash), Finalized)
    assert not isinstance(await sender(above, at_depth(0x30)).outcome(TX.hash), Finalized)


async def test_a_receipt_from_a_block_that_is_no_longer_there_is_not_final() -> None:
    orphaned = {"eth_getTransactionReceipt": RECEIPT | {"blockHash": "0x" + "bb" * 32}}
    assert not isinstance(await sender(orphaned).outcome(TX.hash), Finalized)


async def test_a_missing_transaction_is_superseded_only_when_its_nonce_is_final() -> None:
    assert await sender({"eth_getTransactionCount": "0x4"}).outcome(TX.hash, nonce=4) == Unknown()
    assert (
        await sender({"eth_getTransactionCount": "0x5"}).outcome(TX.hash, nonce=4) == Superseded()
    )
    assert await sender({"eth_getTransactionCount": "0x5"}).outcome(TX.hash) == Unknown()


async def test_a_transaction_mined_between_two_questions_is_not_called_superseded() -> None:
    receipts: list[Any] = [None, RECEIPT]
    late: Callable[[str], Any] = lambda _: receipts.pop(0)  # noqa: E731
    raced = sender({"eth_getTransactionReceipt": late, "eth_getTransactionCount": "0x5"})
    assert getattr(await raced.outcome(TX.hash, nonce=4), "block", None) == 5


async def test_a_pooled_transaction_is_pending() -> None:
    assert (
        await sender({"eth_getTransactionByHash": {"blockNumber": None}}).outcome(TX.hash)
        == Pending()
    )


async def test_finality_never_falls_back_by_itself() -> None:
    def unknown_tag(tag: str, _: bool) -> Any:
        raise RpcRefused("eth_getBlockByNumber", -32602, f"unknown block tag {tag}")

    rpc = ScriptedRpc({"eth_getBlockByNumber": unknown_tag})
    with pytest.raises(NoFinality, match="Set finality"):
        await finalized_height(rpc, FINALIZED)
    assert await finalized_height(rpc, at_depth(12)) == 0x40 - 12
    assert await finalized_height(rpc, at_depth(1000)) == 0
    assert await finalized_height(ScriptedRpc({"eth_getBlockByNumber": None}), FINALIZED) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"status": None},
        {"blockHash": "0x12"},
        {"logs": {}},
        {"gasUsed": 7},
        {"logs": [{"address": "0x"}]},
    ],
)
async def test_a_malformed_receipt_is_a_bad_answer(change: dict[str, Any]) -> None:
    with pytest.raises(BadAnswer):
        await sender({"eth_getTransactionReceipt": RECEIPT | change}).outcome(TX.hash)


@pytest.mark.parametrize("method", ["eth_getTransactionReceipt", "eth_getTransactionByHash"])
async def test_an_answer_of_another_kind_is_a_bad_answer(method: str) -> None:
    answers: list[Any] = [[], "0x", {}, 7]
    for answer in answers:
        with pytest.raises(BadAnswer):
            await sender({method: answer}).outcome(TX.hash)
