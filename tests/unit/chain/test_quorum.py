"""k of n nodes must agree about money, and one that lies is outvoted or stops everything."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    LogRangeRefused,
    NodesDisagree,
    RpcRefused,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.limits import (
    MAX_HEIGHT_LOSS_BLOCKS,
    MAX_RPC_REST_S,
    RPC_GRACE_S,
    RPC_REST_S,
)
from piecework.chain.nodes.quorum import QuorumRpc
from piecework_protocol.types import keccak256, to_hex
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time

HASH, OTHER = "0x" + "aa" * 32, "0x" + "bb" * 32
TAKEN = to_hex(keccak256(b"\0"))
"""The hash of the bytes 0x00."""
BLOCK = {"number": "0x40", "hash": HASH, "timestamp": "0x1", "baseFeePerGas": "0x7", "size": "0x1"}
LOG = {
    "address": "0x" + "01" * 20,
    "topics": [HASH],
    "data": "0x",
    "blockNumber": "0x10",
    "logIndex": "0x0",
    "transactionHash": HASH,
}
RECEIPT = {
    "blockNumber": "0x10",
    "blockHash": HASH,
    "gasUsed": "0x5208",
    "effectiveGasPrice": "0x1",
    "status": "0x1",
    "logs": [LOG],
}
TRUTH: Mapping[str, Any] = {
    "eth_chainId": "0x7a69",
    "eth_blockNumber": "0x40",
    "eth_getBlockByNumber": BLOCK,
    "eth_getCode": "0xABCD",
    "eth_call": "0x" + "00" * 32,
    "eth_getBalance": "0x5",
    "eth_getTransactionCount": "0x4",
    "eth_getTransactionReceipt": RECEIPT,
    "eth_getLogs": [LOG],
    "eth_maxPriorityFeePerGas": "0x1",
    "eth_estimateGas": "0x5208",
    "eth_sendRawTransaction": TAKEN,
}
ASKED: Mapping[str, tuple[Any, ...]] = {
    "eth_chainId": (),
    "eth_getBlockByNumber": ("latest", False),
    "eth_getCode": ("0x01", "latest"),
    "eth_call": ({"to": "0x01"}, "latest"),
    "eth_getBalance": ("0x01", "latest"),
    "eth_getTransactionCount": ("0x01", "0x10"),
    "eth_getTransactionReceipt": (HASH,),
    "eth_getLogs": ({"fromBlock": "0x10", "toBlock": "0x10"},),
}
LIES: Mapping[str, Any] = {
    "eth_chainId": "0x1",
    "eth_getBlockByNumber": {**BLOCK, "timestamp": "0xffff"},
    "eth_getCode": "0x",
    "eth_call": "0x" + "00" * 31 + "01",
    "eth_getBalance": "0xffffff",
    "eth_getTransactionCount": "0x5",
    "eth_getTransactionReceipt": {**RECEIPT, "status": "0x0"},
    "eth_getLogs": [],
}
"""What one node says instead. Every question about money has a row."""


class Node:
    """A node that answers from a table: values, errors, or functions of the parameters."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.answers = {**TRUTH, **(answers or {})}
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.closed = False

    async def call(self, method: str, *params: Any) -> Any:
        self.asked.append((method, params))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer(*params) if callable(answer) else copy.deepcopy(answer)

    async def close(self) -> None:
        self.closed = True


def test_a_quorum_that_cannot_be_reached_is_refused() -> None:
    for quorum in (0, 3):
        with pytest.raises(ValueError, match="cannot be reached"):
            QuorumRpc([Node(), Node()], quorum)


@pytest.mark.parametrize("method", ASKED)
async def test_nodes_that_agree_give_the_answer(method: str) -> None:
    quorum = QuorumRpc([Node(), Node(), Node()], 2)
    assert await quorum.call(method, *ASKED[method]) == TRUTH[method]
    assert quorum.odd == {}


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("method", ASKED)
async def test_one_node_of_three_that_lies_is_outvoted_and_named(method: str, liar: int) -> None:
    nodes = [Node({method: LIES[method]} if place == liar else {}) for place in range(3)]
    quorum = QuorumRpc(nodes, 2)
    assert await quorum.call(method, *ASKED[method]) == TRUTH[method]
    assert quorum.odd == {liar: method}
    nodes[liar].answers[method] = TRUTH[method]
    await quorum.call(method, *ASKED[method])
    assert quorum.odd == {}, "it is forgiven when it says the same again"


@pytest.mark.parametrize("method", ASKED)
async def test_one_node_of_two_that_lies_stops_everything(method: str) -> None:
    for nodes in ([Node(), Node({method: LIES[method]})], [Node({method: LIES[method]}), Node()]):
        with pytest.raises(NodesDisagree):
            await QuorumRpc(nodes, 2).call(method, *ASKED[method])


@pytest.mark.parametrize("method", ASKED)
async def test_a_node_that_is_away_is_no_liar_and_counts_for_nothing(method: str) -> None:
    away = dict.fromkeys((method, "eth_blockNumber"), RpcUnavailable("away"))
    quorum = QuorumRpc([Node(away), Node(), Node()], 2)
    assert await quorum.call(method, *ASKED[method]) == TRUTH[method]
    assert quorum.odd == {}
    with pytest.raises(RpcUnavailable):
        await QuorumRpc([Node(away), Node()], 2).call(method, *ASKED[method])


async def test_what_nodes_add_of_their_own_does_not_count() -> None:
    other = {**BLOCK, "size": "0x2", "author": "0x03", "hash": HASH.upper().replace("X", "x")}
    quorum = QuorumRpc([Node(), Node({"eth_getBlockByNumber": other})], 2)
    assert (await quorum.call("eth_getBlockByNumber", "0x40", False))["number"] == "0x40"


# --- nodes at different heights


def at_height(height: int) -> Node:
    """A node that knows blocks up to a height, and whose balances are the heights."""

    def balance(_: str, tag: str) -> str:
        if int(tag, 16) > height:
            raise RpcUnavailable("header not found")
        return tag

    return Node({"eth_blockNumber": hex(height), "eth_getBalance": balance})


@pytest.mark.parametrize(("heights", "quorum", "common"), [((9, 7, 8), 2, 8), ((9, 7, 8), 3, 7)])
async def test_the_latest_block_is_the_highest_that_the_quorum_has(
    heights: tuple[int, ...], quorum: int, common: int
) -> None:
    rpc = QuorumRpc([at_height(height) for height in heights], quorum)
    assert await rpc.call("eth_getBalance", "0x01", "latest") == hex(common)
    assert await rpc.call("eth_blockNumber") == hex(common)


async def test_one_node_that_runs_ahead_moves_nothing() -> None:
    rpc = QuorumRpc([at_height(10**9), at_height(7), at_height(8)], 2)
    assert await rpc.call("eth_blockNumber") == "0x8"


async def test_what_is_final_is_what_the_quorum_calls_final() -> None:
    def finalized(number: int) -> Callable[..., Any]:
        def block(tag: str, _: bool) -> Any:
            return {**BLOCK, "number": hex(number) if tag == "finalized" else tag}

        return block

    nodes = [Node({"eth_getBlockByNumber": finalized(number)}) for number in (50, 20, 30)]
    rpc = QuorumRpc(nodes, 2)
    assert (await rpc.call("eth_getBlockByNumber", "finalized", False))["number"] == hex(30)


async def test_a_node_that_gives_no_number_has_no_height() -> None:
    answers: list[Any] = [None, {}, "0xzz", 5]
    for broken in answers:
        with pytest.raises(BadAnswer):
            await QuorumRpc([Node({"eth_blockNumber": broken}), Node()], 2).call("eth_blockNumber")


# --- receipts


async def test_a_receipt_that_one_node_has_not_got_yet_is_not_there_yet() -> None:
    early = {**RECEIPT, "blockNumber": "0x41"}
    nodes = [Node({"eth_getTransactionReceipt": early}), Node({"eth_getTransactionReceipt": None})]
    assert await QuorumRpc(nodes, 2).call("eth_getTransactionReceipt", HASH) is None


async def test_a_receipt_of_an_old_block_that_another_node_denies_is_a_lie_of_one() -> None:
    nodes = [Node(), Node({"eth_getTransactionReceipt": None})]
    with pytest.raises(NodesDisagree):
        await QuorumRpc(nodes, 2).call("eth_getTransactionReceipt", HASH)


async def test_an_invented_receipt_is_outvoted() -> None:
    honest = {"eth_getTransactionReceipt": None}
    nodes = [Node(honest), Node(honest), Node({"eth_getTransactionReceipt": RECEIPT})]
    rpc = QuorumRpc(nodes, 2)
    assert await rpc.call("eth_getTransactionReceipt", HASH) is None
    assert rpc.odd == {2: "eth_getTransactionReceipt"}


# --- reverts, sending, prices


async def test_a_revert_is_an_answer_that_must_be_agreed_on() -> None:
    refused = TransactionReverted("NothingNew", {}, b"\1\2\3\4")
    both = QuorumRpc([Node({"eth_call": refused}), Node({"eth_call": refused})], 2)
    with pytest.raises(TransactionReverted):
        await both.call("eth_call", {}, "latest")
    with pytest.raises(NodesDisagree):
        await QuorumRpc([Node({"eth_call": refused}), Node()], 2).call("eth_call", {}, "latest")


async def test_a_transaction_goes_to_every_node_and_one_that_takes_it_is_enough() -> None:
    nodes = [Node({"eth_sendRawTransaction": RpcUnavailable("away")}), Node()]
    assert await QuorumRpc(nodes, 2).call("eth_sendRawTransaction", "0x00") == TAKEN
    assert all(("eth_sendRawTransaction", ("0x00",)) in node.asked for node in nodes)


async def test_what_a_node_says_of_a_transaction_counts_more_than_that_one_is_away() -> None:
    low = RpcRefused("eth_sendRawTransaction", -32000, "nonce too low")
    nodes = [Node({"eth_sendRawTransaction": e}) for e in (RpcUnavailable("away"), low)]
    with pytest.raises(RpcRefused, match="nonce too low"):
        await QuorumRpc(nodes, 2).call("eth_sendRawTransaction", "0x00")


# --- what honest nodes say a little differently

REVERT = TransactionReverted("NothingNew", {}, b"\1\2\3\4")
PENDING = ("0x01", "pending")


def answering(method: str, *answers: Any) -> list[Node]:
    """One node for each answer."""
    return [Node({method: answer}) for answer in answers]


def with_liar(place: int, lie: Any, *honest: Any) -> tuple[Any, ...]:
    return (*honest[:place], lie, *honest[place:])


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("lie", ["0x3e8", "0x0"])
async def test_a_pending_nonce_is_one_that_the_quorum_reaches(liar: int, lie: str) -> None:
    nodes = answering("eth_getTransactionCount", *with_liar(liar, lie, "0x4", "0x4"))
    assert await QuorumRpc(nodes, 2).call("eth_getTransactionCount", *PENDING) == "0x4"


async def test_pools_differ_and_nobody_is_odd_for_it() -> None:
    nodes = answering("eth_getTransactionCount", "0x6", "0x4", "0x5")
    rpc = QuorumRpc(nodes, 2)
    assert await rpc.call("eth_getTransactionCount", *PENDING) == "0x5"
    assert rpc.odd == {}
    away = RpcUnavailable("away")
    one = QuorumRpc(answering("eth_getTransactionCount", "0x4", away, away), 2)
    with pytest.raises(RpcUnavailable):
        await one.call("eth_getTransactionCount", *PENDING)


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("lie", [REVERT, "0x1", "0xffffffffff", None])
async def test_one_estimate_of_three_moves_nothing(liar: int, lie: Any) -> None:
    nodes = answering("eth_estimateGas", *with_liar(liar, lie, "0x5208", "0x5300"))
    rpc = QuorumRpc(nodes, 2)
    assert await rpc.call("eth_estimateGas", {}) in ("0x5208", "0x5300")
    assert rpc.odd == {liar: "eth_estimateGas"}
    nodes[liar].answers["eth_estimateGas"] = "0x5250"
    assert await rpc.call("eth_estimateGas", {}) == "0x5250"
    assert rpc.odd == {}


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_revert_of_an_estimate_is_a_vote(liar: int) -> None:
    rpc = QuorumRpc(answering("eth_estimateGas", *with_liar(liar, "0x5208", REVERT, REVERT)), 2)
    with pytest.raises(TransactionReverted):
        await rpc.call("eth_estimateGas", {})
    assert rpc.odd == {liar: "eth_estimateGas"}


@pytest.mark.parametrize("other", [REVERT, "0x1", "0xffffff"])
async def test_two_nodes_that_must_agree_on_an_estimate_and_do_not_stop_it(other: Any) -> None:
    for answers in ((other, "0x5208"), ("0x5208", other)):
        with pytest.raises(NodesDisagree):
            await QuorumRpc(answering("eth_estimateGas", *answers), 2).call("eth_estimateGas", {})
    alone = QuorumRpc(answering("eth_estimateGas", RpcUnavailable("away"), "0x5208"), 2)
    with pytest.raises(RpcUnavailable):
        await alone.call("eth_estimateGas", {})


async def test_an_estimate_of_a_block_is_asked_at_one_that_the_quorum_has() -> None:
    nodes = [Node({"eth_blockNumber": hex(height)}) for height in (9, 7, 8)]
    await QuorumRpc(nodes, 2).call("eth_estimateGas", {}, "latest")
    assert all(("eth_estimateGas", ({}, "0x8")) in node.asked for node in nodes)


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("lie", [hex(10**18), "0x0"])
@pytest.mark.parametrize("method", ["eth_maxPriorityFeePerGas", "eth_gasPrice"])
async def test_a_price_is_the_middle_one(method: str, lie: str, liar: int) -> None:
    rpc = QuorumRpc(answering(method, *with_liar(liar, lie, "0x5", "0x7")), 2)
    assert await rpc.call(method) in ("0x5", "0x7")
    assert rpc.odd == {}, "prices differ"


async def test_of_two_prices_the_lower_one_counts() -> None:
    rpc = QuorumRpc(answering("eth_gasPrice", hex(10**18), "0x7"), 2)
    assert await rpc.call("eth_gasPrice") == "0x7"


async def test_of_two_tips_the_higher_one_counts() -> None:
    """A cap bounds it. From a tip of nothing no replacement gets anywhere."""
    rpc = QuorumRpc(answering("eth_maxPriorityFeePerGas", "0x0", "0x7"), 2)
    assert await rpc.call("eth_maxPriorityFeePerGas") == "0x7"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_transaction_that_a_node_holds_is_sent_whatever_others_think_of_its_fee(
    order: tuple[int, int],
) -> None:
    method, raw = "eth_sendRawTransaction", "0x01"
    answers = [
        RpcRefused(method, -32000, "transaction underpriced"),
        RpcRefused(method, -32000, "already known"),
    ]
    rpc = QuorumRpc(answering(method, *(answers[place] for place in order)), 2)
    assert await rpc.call(method, raw) == to_hex(keccak256(b"\x01"))


@pytest.mark.parametrize("liar", [0, 1, 2])
@pytest.mark.parametrize("lie", [{"reward": [[hex(10**18)]]}, {"reward": 5}, {}])
async def test_a_fee_history_is_that_of_the_node_in_the_middle(lie: Any, liar: int) -> None:
    five, seven = ({"reward": [[hex(paid)]]} for paid in (5, 7))
    rpc = QuorumRpc(answering("eth_feeHistory", *with_liar(liar, lie, five, seven)), 2)
    assert await rpc.call("eth_feeHistory", "0x5", "latest", [50]) in (five, seven)


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_transaction_that_one_node_knows_or_denies_is_what_the_others_say(
    liar: int,
) -> None:
    waits, mined = {"blockNumber": None}, {"blockNumber": "0x10"}
    method = "eth_getTransactionByHash"
    lies: list[Any] = [waits, mined, {}, "0x"]
    for lie in lies:
        rpc = QuorumRpc(answering(method, *with_liar(liar, lie, None, None)), 2)
        assert await rpc.call(method, HASH) is None
    for lie in [None, *lies[1:]]:
        rpc = QuorumRpc(answering(method, *with_liar(liar, lie, waits, waits)), 2)
        assert await rpc.call(method, HASH) == waits
    with pytest.raises(BadAnswer):
        await QuorumRpc(answering(method, {}, {}), 2).call(method, HASH)


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_a_node_that_returns_another_hash_has_not_taken_the_transaction(liar: int) -> None:
    method, raw = "eth_sendRawTransaction", "0x02c0"
    taken = to_hex(keccak256(bytes.fromhex(raw[2:])))
    nodes = answering(method, *with_liar(liar, OTHER, taken, RpcUnavailable("away")))
    rpc = QuorumRpc(nodes, 2)
    assert await rpc.call(method, raw) == taken
    assert rpc.odd == {liar: method}
    refused = RpcRefused(method, -32000, "no transaction")
    rpc = QuorumRpc(answering(method, *with_liar(liar, OTHER, refused, refused)), 2)
    with pytest.raises(RpcRefused, match="no transaction"):
        await rpc.call(method, raw)
    rpc = QuorumRpc(answering(method, OTHER, RpcUnavailable("away")), 1)
    assert await rpc.call(method, raw) == OTHER, "the sender sees that it is another's"


async def test_closing_closes_every_node() -> None:
    nodes = [Node(), Node()]
    await QuorumRpc(nodes, 1).close()
    assert all(node.closed for node in nodes)


async def test_a_node_that_denies_an_old_receipt_is_outvoted_too() -> None:
    rpc = QuorumRpc([Node(), Node(), Node({"eth_getTransactionReceipt": None})], 2)
    assert await rpc.call("eth_getTransactionReceipt", HASH) == RECEIPT
    assert rpc.odd == {2: "eth_getTransactionReceipt"}


# --- nodes that say nothing, in virtual time

NODE_TIMEOUT_S = 30.0
EVERY: Mapping[str, tuple[Any, ...]] = {
    **ASKED,
    "eth_blockNumber": (),
    "eth_estimateGas": ({},),
    "eth_maxPriorityFeePerGas": (),
    "eth_gasPrice": (),
    "eth_feeHistory": ("0x5", "latest", [50]),
    "eth_getTransactionByHash": (HASH,),
    "eth_sendRawTransaction": ("0x00",),
}
"""Every method with a rule for several nodes."""
MORE: Mapping[str, Any] = {
    "eth_gasPrice": "0x7",
    "eth_feeHistory": {"reward": [["0x1"]]},
    "eth_getTransactionByHash": {"blockNumber": None},
}


class SlowNode(Node):
    """Takes its time for an answer. One that takes too long is given up, as `HttpRpc` does it."""

    def __init__(self, delay_s: float, answers: Mapping[str, Any] | None = None) -> None:
        super().__init__({**MORE, **(answers or {})})
        self.delay_s = delay_s
        self.cancelled = 0

    async def call(self, method: str, *params: Any) -> Any:
        try:
            await pass_time(min(self.delay_s, NODE_TIMEOUT_S))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.delay_s >= NODE_TIMEOUT_S:
            raise RpcUnavailable("it did not answer in time")
        return await super().call(method, *params)


def silent() -> SlowNode:
    """Takes the question and says nothing."""
    return SlowNode(NODE_TIMEOUT_S)


def prompt(**answers: Any) -> SlowNode:
    return SlowNode(0.1, answers)


async def timed(asking: Awaitable[Any]) -> tuple[Any, float]:
    """An answer or an error, and the seconds that it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    answer: Any
    try:
        answer = await asking
    except ChainError as error:
        answer = error
    return answer, loop.time() - start


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("method", EVERY)
def test_a_silent_node_of_three_costs_a_grace_once_and_then_nothing(
    method: str, place: int
) -> None:
    async def ask_twice() -> None:
        nodes: list[SlowNode] = [prompt(), prompt()]
        nodes.insert(place, silent())
        quorum = QuorumRpc(nodes, 2)
        for most_s in (RPC_GRACE_S, 0.0):
            answer, took_s = await timed(quorum.call(method, *EVERY[method]))
            assert answer == {**TRUTH, **MORE}[method]
            # Two questions at most: a height and what is asked for at it.
            assert took_s <= most_s + 2 * 0.1 + 1e-6
        assert quorum.odd == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing goes on behind it"
        assert nodes[place].cancelled >= 2

    simulate(ask_twice())


def test_a_node_that_is_a_little_late_is_still_noted_as_odd() -> None:
    async def ask() -> None:
        late = SlowNode(RPC_GRACE_S, {"eth_getCode": "0x"})
        quorum = QuorumRpc([prompt(), late, prompt()], 2)
        assert await quorum.call("eth_getCode", "0x01", "0x10") == "0xABCD"
        assert quorum.odd == {1: "eth_getCode"}

    simulate(ask())


def test_a_silent_node_is_waited_for_again_after_a_rest_that_grows_up_to_a_bound() -> None:
    async def ask() -> None:
        mute = silent()
        quorum = QuorumRpc([prompt(), prompt(), mute], 2)

        async def waits() -> bool:
            _, took_s = await timed(quorum.call("eth_chainId"))
            return took_s >= RPC_GRACE_S

        tries: list[float] = []
        while len(tries) < 12:
            if await waits():
                tries.append(asyncio.get_running_loop().time())
            await pass_time(1.0)
        rests = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert RPC_REST_S <= rests[0] <= RPC_REST_S + 3.0
        assert rests[1] > rests[0]
        assert all(MAX_RPC_REST_S <= rest <= MAX_RPC_REST_S + 3.0 for rest in rests[-2:])
        await pass_time(MAX_RPC_REST_S)
        mute.delay_s = 0.1
        assert not await waits()
        for _ in "12":
            mute.delay_s = NODE_TIMEOUT_S
            assert await waits(), "one that has answered begins anew"
            await pass_time(RPC_REST_S)

    simulate(ask())


def test_where_fewer_than_the_quorum_answer_the_silent_are_waited_for_and_the_error_stays() -> None:
    async def ask() -> None:
        for nodes in ([prompt(), silent(), silent()], [prompt(), silent()]):
            for _ in range(2):
                asking = QuorumRpc(nodes, 2).call("eth_chainId")
                answer, took_s = await timed(asking)
                assert isinstance(answer, RpcUnavailable) and took_s == NODE_TIMEOUT_S

    simulate(ask())


@pytest.mark.parametrize("method", LIES)
def test_a_slow_node_decides_where_the_others_differ_also_while_it_rests(method: str) -> None:
    async def ask() -> None:
        slow, liar = SlowNode(5.0), prompt()
        quorum = QuorumRpc([prompt(), liar, slow], 2)
        await quorum.call(method, *ASKED[method])
        liar.answers[method] = LIES[method]
        assert await quorum.call(method, *ASKED[method]) == TRUTH[method]
        assert quorum.odd == {1: method}

    simulate(ask())


@pytest.mark.parametrize("lie", [REVERT, "0x1", "0xffffffffff", None])
def test_a_slow_node_decides_about_an_estimate(lie: Any) -> None:
    async def ask() -> None:
        nodes = [prompt(), prompt(eth_estimateGas=lie), SlowNode(5.0)]
        assert await QuorumRpc(nodes, 2).call("eth_estimateGas", {}) == "0x5208"

    simulate(ask())


def test_honest_estimates_a_block_apart_do_not_wait_for_a_silent_node() -> None:
    async def ask() -> None:
        def at_block(_: Any, *block: str) -> str:
            if not block:
                raise REVERT
            return "0x5208"

        nodes = [prompt(), silent(), prompt(eth_estimateGas=at_block)]
        answer, took_s = await timed(QuorumRpc(nodes, 2).call("eth_estimateGas", {}))
        assert answer == "0x5208" and took_s <= RPC_GRACE_S + 0.3 + 1e-6

    simulate(ask())


def test_what_the_quorum_refuses_is_refused_without_the_silent_node() -> None:
    async def ask() -> None:
        method = "eth_getLogs"
        refused = LogRangeRefused(method, -32005, "a range of one block")
        nodes: Sequence[SlowNode] = [silent(), *(prompt(**{method: refused}) for _ in "12")]
        answer, took_s = await timed(QuorumRpc(nodes, 2).call(method, *EVERY[method]))
        assert answer is refused and took_s <= RPC_GRACE_S + 0.1 + 1e-6

    simulate(ask())


def test_a_transaction_waits_for_as_many_as_the_quorum_and_reaches_the_late_ones() -> None:
    async def send() -> None:
        method, late = "eth_sendRawTransaction", SlowNode(RPC_GRACE_S)
        nodes = [prompt(), SlowNode(5.0), late]
        assert await QuorumRpc(nodes, 2).call(method, "0x00") == TAKEN
        assert late.asked == [(method, ("0x00",))]

    simulate(send())


def test_a_transaction_is_refused_only_when_no_node_can_have_it() -> None:
    """Who is told of a refusal uses the nonce again. A node that had it would mine both."""

    async def send() -> None:
        method = "eth_sendRawTransaction"
        refused = RpcRefused(method, -32000, "insufficient funds for gas * price + value")
        late = SlowNode(5.0)
        nodes = [prompt(**{method: refused}), late, prompt(**{method: refused})]
        quorum = QuorumRpc(nodes, 2)
        for _ in "12":  # also while it rests
            assert await quorum.call(method, "0x00") == TAKEN
        late.answers[method] = refused
        answer, _ = await timed(quorum.call(method, "0x00"))
        assert answer is refused and refused.by_all
        late.answers[method] = RpcUnavailable("no answer in time")
        answer, _ = await timed(quorum.call(method, "0x00"))
        assert answer is refused and not refused.by_all, "it may have it all the same"

    simulate(send())


def test_a_liar_beside_a_resting_node_neither_lowers_the_chain_nor_denies_a_receipt() -> None:
    async def ask() -> None:
        liar, slow = prompt(), SlowNode(0.1)
        quorum = QuorumRpc([liar, prompt(), slow], 2)
        assert await quorum.call("eth_blockNumber") == "0x40"
        slow.delay_s = NODE_TIMEOUT_S
        await quorum.call("eth_chainId")
        slow.delay_s = 2.0
        liar.answers |= {"eth_blockNumber": "0x0", "eth_getTransactionReceipt": None}
        assert await quorum.call("eth_blockNumber") == "0x40", "it is waited for"
        assert await quorum.call("eth_getTransactionReceipt", HASH) == RECEIPT

    simulate(ask())


def test_a_liar_beside_a_silent_node_lowers_the_chain_by_little_and_denies_nothing_old() -> None:
    async def ask() -> None:
        liar, mute = prompt(), SlowNode(0.1)
        quorum = QuorumRpc([liar, prompt(), mute], 2)
        assert await quorum.call("eth_blockNumber") == "0x40"
        mute.delay_s = NODE_TIMEOUT_S
        liar.answers |= {"eth_blockNumber": "0x0", "eth_getTransactionReceipt": None}
        assert await quorum.call("eth_blockNumber") == hex(0x40 - MAX_HEIGHT_LOSS_BLOCKS)
        with pytest.raises(NodesDisagree):
            await quorum.call("eth_getTransactionReceipt", HASH)

    simulate(ask())


def test_a_call_that_is_cancelled_leaves_no_question_behind() -> None:
    async def ask() -> None:
        nodes = [prompt(), silent(), silent()]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await QuorumRpc(nodes, 2).call("eth_chainId")
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [node.cancelled for node in nodes] == [0, 1, 1]

    simulate(ask())
