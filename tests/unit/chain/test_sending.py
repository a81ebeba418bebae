"""What a sender and a reader make of a node's answers, with a node that answers from a script."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from piecework.chain.contracts.calls import mint, send_native
from piecework.chain.errors import (
    BadAnswer,
    FeeTooHigh,
    InsufficientGas,
    MethodMissing,
    NoFinality,
    NonceTaken,
    NonceUnexplained,
    RpcRefused,
    RpcUnavailable,
    StuckTransaction,
    TransactionReverted,
)
from piecework.chain.limits import TIP_FLOOR_WEI
from piecework.chain.nodes.finality import FINALIZED, Finality, at_depth, finalized_height
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.l1_fees import (
    ARB_GAS_INFO,
    GAS_PRICE_ORACLE,
    TRANSACTION_OVERHEAD_BYTES,
    L1Charge,
    L1Price,
)
from piecework.chain.sending.rawtx import SignedTransaction, UnsignedTransaction
from piecework.chain.sending.transactions import (
    Finalized,
    Pending,
    Superseded,
    TransactionSender,
    Unknown,
    WouldDo,
    WouldRevert,
)
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.types import Address, Amount, keccak256, to_hex
from tests.support.chain.chains import signer
from tests.support.virtual_time import simulate

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
    "eth_getCode": "0x",
}


def sender(
    answers: Mapping[str, Any] | None = None, finality: Finality = FINALIZED
) -> TransactionSender:
    return TransactionSender(ScriptedRpc(answers or {}), WORKER, 31337, finality=finality)


def refusal(message: str) -> RpcRefused:
    return RpcRefused("eth_sendRawTransaction", -32000, message)


async def test_preparing_asks_and_signs_but_sends_nothing() -> None:
    rpc = ScriptedRpc({})
    tx = await TransactionSender(rpc, WORKER, 31337).prepare(
        mint(TOKEN, OTHER.address, Amount(5)), value_at_stake=None
    )
    assert "eth_sendRawTransaction" not in rpc.asked
    assert (tx.nonce, tx.sender, tx.unsigned.to) == (4, WORKER.address, TOKEN)
    assert tx.max_fee == 2 * 10**9 + 1
    assert SignedTransaction.from_raw(tx.raw) == tx


async def test_the_price_of_gas_is_base_fee_and_a_believable_tip() -> None:
    assert (await sender().gas_price()).wei_per_gas == 10**9 + 1
    dear = sender({"eth_maxPriorityFeePerGas": hex(10**18)})
    assert (await dear.gas_price()).wei_per_gas == 51 * 10**9


async def test_preparing_the_same_call_with_the_same_nonce_gives_the_same_bytes() -> None:
    call = send_native(OTHER.address, 1)
    assert await sender().prepare(call, nonce=9, value_at_stake=None) == await sender().prepare(
        call, nonce=9, value_at_stake=None
    )


async def test_nonces_of_a_journal_are_not_handed_out_again() -> None:
    restarted = sender()
    restarted.resume([TX])
    assert (
        await restarted.prepare(send_native(OTHER.address, 1), value_at_stake=None)
    ).nonce == TX.nonce + 1
    alien = UnsignedTransaction(31337, 1, Fees(1, 1), 21_000, OTHER.address, 1, b"").sign(OTHER)
    elsewhere = UnsignedTransaction(1, 1, Fees(1, 1), 21_000, OTHER.address, 1, b"").sign(WORKER)
    for wrong in (alien, elsewhere):
        with pytest.raises(InvariantBroken):
            restarted.resume([wrong])


def counting(mined: int, pending: int) -> Mapping[str, Any]:
    """A node that counts so many transactions of the key."""
    counts = {"latest": hex(mined), "pending": hex(pending)}
    return {"eth_getTransactionCount": lambda _, block: counts[block]}


async def test_a_sender_with_a_journal_uses_no_nonce_on_top_of_what_it_does_not_know() -> None:
    call = send_native(OTHER.address, 1)
    node = ScriptedRpc(counting(4, 1004))
    journaled = TransactionSender(node, WORKER, 31337, journaled=True)
    with pytest.raises(NonceUnexplained, match="counts 1004 transactions"):
        await journaled.prepare(call, value_at_stake=None)
    journaled.insists = True
    assert (await journaled.prepare(call, value_at_stake=None)).nonce == 4
    journaled.insists = False
    node.answers = {**HEALTHY, **counting(4, 5)}
    assert (await journaled.prepare(call, value_at_stake=None)).nonce == 5, "the first is its own"


async def test_a_gap_below_a_journaled_transaction_gets_the_next_one() -> None:
    far = UnsignedTransaction(31337, 1000, Fees(1, 1), 21_000, OTHER.address, 1, b"").sign(WORKER)
    restarted = TransactionSender(ScriptedRpc(counting(0, 0)), WORKER, 31337, journaled=True)
    restarted.resume([far])
    call = send_native(OTHER.address, 1)
    assert [(await restarted.prepare(call, value_at_stake=None)).nonce for _ in "12"] == [0, 1]
    restarted.forget(far)
    restarted.finish(998)
    assert [(await restarted.prepare(call, value_at_stake=None)).nonce for _ in "12"] == [999, 1000]


async def test_what_was_given_up_and_lies_in_the_pool_is_outbid_by_what_takes_its_nonce() -> None:
    call, old = send_native(OTHER.address, 1), Fees(40 * 10**9, 10**9)
    left = UnsignedTransaction(31337, 5, old, 21_000, OTHER.address, 1, b"").sign(WORKER)
    node = ScriptedRpc(counting(5, 6))
    for restarts in (False, True):
        journaled = TransactionSender(node, WORKER, 31337, journaled=True)
        journaled.resume([] if restarts else [left], [left] if restarts else [])
        if not restarts:
            journaled.give_up(left)
        worth = 21_000 * 45 * 10**9
        with pytest.raises(FeeTooHigh):
            await journaled.prepare(call, value_at_stake=worth - 1)
        tx = await journaled.prepare(call, value_at_stake=worth)
        assert (tx.nonce, tx.max_fee) == (5, 45 * 10**9)
    node.answers = {**HEALTHY, **counting(5, 5)}
    gone = TransactionSender(node, WORKER, 31337, journaled=True)
    gone.resume([], [left])
    assert (await gone.prepare(call, value_at_stake=worth)).max_fee < old.max_fee, "no pool has it"


async def test_a_tool_goes_on_behind_another_process_and_not_behind_a_thousand() -> None:
    call = send_native(OTHER.address, 1)
    assert (await sender(counting(4, 6)).prepare(call, value_at_stake=None)).nonce == 6
    with pytest.raises(NonceUnexplained, match="use another node"):
        await sender(counting(4, 1004)).prepare(call, value_at_stake=None)


async def test_a_node_that_goes_away_during_a_broadcast_leaves_no_gap_in_the_nonces() -> None:
    one = sender({"eth_sendRawTransaction": RpcUnavailable("gone")})
    with pytest.raises(RpcUnavailable):
        await one.execute(send_native(OTHER.address, 1))
    assert (await one.prepare(send_native(OTHER.address, 1), value_at_stake=None)).nonce == 4


def test_a_transaction_that_a_node_dropped_leaves_no_gap_in_the_nonces_of_a_tool() -> None:
    pending = {"eth_getTransactionCount": "0x4"}
    taken = lambda raw: to_hex(keccak256(bytes.fromhex(raw[2:])))  # noqa: E731
    one = sender({**pending, "eth_sendRawTransaction": taken})
    call = send_native(OTHER.address, 1)

    async def stuck_then_next() -> int:
        with pytest.raises(StuckTransaction):
            await one.execute(call, poll_s=1.0)
        return (await one.prepare(call, value_at_stake=None)).nonce

    assert simulate(stuck_then_next()) == 4


@pytest.mark.parametrize("message", ["already known", "transaction already imported"])
async def test_a_transaction_that_the_node_has_already_counts_as_sent(message: str) -> None:
    assert await sender({"eth_sendRawTransaction": refusal(message)}).broadcast(TX) == TX.hash


async def test_a_used_nonce_is_success_only_if_it_is_ours() -> None:
    used = {"eth_sendRawTransaction": refusal("nonce too low")}
    mine = {"eth_getTransactionByHash": {"blockNumber": "0x5"}}
    assert await sender(used | mine).broadcast(TX) == TX.hash
    with pytest.raises(NonceTaken):
        await sender(used).broadcast(TX)


def test_a_nonce_that_a_slow_node_calls_taken_is_looked_at_again_before_it_is_a_failure() -> None:
    def node(receipts: int) -> TransactionSender:
        """One that has the receipt after so many questions, and takes the bytes once."""
        looked, sent = itertools.count(1), list[str]()

        def send(raw: str) -> str:
            sent.append(raw)
            if len(sent) > 1:
                raise refusal("nonce too low")
            return to_hex(keccak256(bytes.fromhex(raw[2:])))

        return sender(
            {
                "eth_sendRawTransaction": send,
                "eth_getTransactionReceipt": lambda _: RECEIPT if next(looked) > receipts else None,
            }
        )

    call = send_native(OTHER.address, 1)
    assert simulate(node(4).execute(call, poll_s=1.0)).success
    with pytest.raises(NonceTaken):
        simulate(node(1000).execute(call, poll_s=1.0))


async def test_a_silent_node_leaves_the_outcome_open() -> None:
    with pytest.raises(RpcUnavailable):
        await sender({"eth_sendRawTransaction": RpcUnavailable("gone")}).broadcast(TX)


async def test_a_node_that_returns_another_hash_lies() -> None:
    with pytest.raises(BadAnswer, match="another transaction"):
        await sender({"eth_sendRawTransaction": "0x" + "00" * 32}).broadcast(TX)


async def test_a_node_that_will_not_estimate_for_want_of_money_says_who_needs_it() -> None:
    error = RpcRefused("eth_estimateGas", -32000, "insufficient funds for transfer")
    with pytest.raises(InsufficientGas, match=to_hex(WORKER.address)):
        await sender({"eth_estimateGas": error}).prepare(
            send_native(OTHER.address, 1), value_at_stake=None
        )


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


# --- the tip, the data fee, a simulation


MISSING = MethodMissing("eth_x", -32601, "the method eth_x does not exist/is not available")


async def test_a_node_without_a_tip_method_is_asked_for_what_blocks_paid() -> None:
    history = {"reward": [["0x0"], ["0x2540be400"], ["0x77359400"], []]}
    answers = {"eth_maxPriorityFeePerGas": MISSING, "eth_feeHistory": history}
    assert (await sender(answers).gas_price()).wei_per_gas == 10**9 + 10 * 10**9


async def test_without_a_history_the_tip_is_what_the_gas_price_has_above_the_base_fee() -> None:
    answers = {"eth_maxPriorityFeePerGas": MISSING, "eth_feeHistory": MISSING}
    priced = sender({**answers, "eth_gasPrice": hex(3 * 10**9)})
    assert (await priced.gas_price()).wei_per_gas == 3 * 10**9
    bare = sender({**answers, "eth_gasPrice": MISSING})
    assert (await bare.gas_price()).wei_per_gas == 10**9 + TIP_FLOOR_WEI


@pytest.mark.parametrize("history", [None, {}, {"reward": 1}, {"reward": []}, {"reward": [["x"]]}])
async def test_a_history_that_says_nothing_is_passed_over(history: Any) -> None:
    answers = {"eth_maxPriorityFeePerGas": MISSING, "eth_feeHistory": history}
    priced = sender({**answers, "eth_gasPrice": hex(3 * 10**9)})
    assert (await priced.gas_price()).wei_per_gas == 3 * 10**9


def rollup(
    oracle: Address, answers: Mapping[bytes, int | list[int]]
) -> Mapping[str, Callable[..., Any]]:
    """A node of a chain with a contract at `oracle` that answers calls by their selector."""

    def call(request: Mapping[str, str], _: str) -> str:
        assert request["to"].lower() == to_hex(oracle).lower()
        found = answers.get(bytes.fromhex(request["data"][2:10]))
        if found is None:
            raise TransactionReverted("", {})
        words = found if isinstance(found, list) else [found]
        return "0x" + b"".join(word.to_bytes(32, "big") for word in words).hex()

    def code(address: str, _: str) -> str:
        return "0xfe" if address.lower() == to_hex(oracle).lower() else "0x"

    return {"eth_call": call, "eth_getCode": code}


UPPER_BOUND, OF_BYTES = bytes.fromhex("f1c7a58b"), bytes.fromhex("49948e0e")


@pytest.mark.parametrize("selector", [UPPER_BOUND, OF_BYTES])
async def test_the_data_fee_of_an_op_stack_chain_is_beside_the_gas(selector: bytes) -> None:
    node = rollup(GAS_PRICE_ORACLE, {selector: 8192 * 7 - 1})
    price = (await sender(node).gas_price()).data
    assert price == L1Price(L1Charge.BESIDE_GAS, 7)
    assert price.beside_gas(bytes(380)) == 7 * 500


async def test_the_data_fee_of_arbitrum_is_a_part_of_the_gas() -> None:
    node = rollup(ARB_GAS_INFO, {bytes.fromhex("41b247a8"): [9, 11, 0, 0, 0, 0]})
    price = (await sender(node).gas_price()).data
    assert price == L1Price(L1Charge.IN_GAS, 11)
    assert price.beside_gas(bytes(380)) == 0


async def test_the_data_fee_counts_against_what_a_transaction_is_worth_and_the_balance() -> None:
    node = rollup(GAS_PRICE_ORACLE, {UPPER_BOUND: 8192 * 10**12})
    data_fee = TRANSACTION_OVERHEAD_BYTES * 10**12
    call = send_native(OTHER.address, 0)
    worth = 21_000 * (10**9 + 1) + data_fee
    await sender(node).prepare(call, value_at_stake=worth)
    with pytest.raises(FeeTooHigh):
        await sender(node).prepare(call, value_at_stake=worth - 1)
    poor = sender({**node, "eth_getBalance": hex(data_fee)})
    with pytest.raises(InsufficientGas):
        await poor.prepare(call, value_at_stake=None)


async def test_a_replacement_is_held_to_what_the_transaction_is_worth() -> None:
    worth = 21_000 * (3 * 10**9 + 10**9)
    assert (await sender().replace(TX, value_at_stake=worth)).nonce == TX.nonce
    with pytest.raises(FeeTooHigh):
        await sender().replace(TX, value_at_stake=21_000 * 3 * 10**9)
    with pytest.raises(FeeTooHigh):
        await sender().cancel(TX, value_at_stake=21_000 * 3 * 10**9)


async def test_a_simulation_says_what_the_chain_would_do_now() -> None:
    refused = TransactionReverted("NothingNew", {})
    assert await sender({"eth_call": "0x"}).simulate(send_native(OTHER.address, 1)) == WouldDo()
    assert await sender({"eth_call": refused}).simulate_again(TX) == WouldRevert("NothingNew()")
