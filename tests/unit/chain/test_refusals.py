"""A node's refusals are sorted by what can be done about them."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    LogRangeRefused,
    MethodMissing,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.logs import LogSearch
from piecework.chain.refusals import refusal

# Wordings of public endpoints and of node programs, as they were seen.
CASES: list[tuple[str, int, str, type[ChainError]]] = [
    ("eth_call", -32005, "daily request count exceeded, request rate limited", RpcLimited),
    ("eth_call", 429, "Your app has exceeded its compute units per second capacity", RpcLimited),
    ("eth_call", -32007, "50/second request limit reached - upgrade to increase it", RpcLimited),
    ("eth_call", -32000, "header not found", RpcLimited),
    ("eth_chainId", -32016, "over rate limit", RpcLimited),
    ("eth_chainId", -32090, "Too many requests, retry in 1s", RpcLimited),
    ("eth_blockNumber", -32603, "request timed out", RpcLimited),
    ("eth_maxPriorityFeePerGas", -32601, "whatever", MethodMissing),
    ("eth_maxPriorityFeePerGas", -32000, "Unsupported method", MethodMissing),
    ("eth_feeHistory", -32004, "method not supported", MethodMissing),
    ("eth_getLogs", -32005, "query returned more than 10000 results", LogRangeRefused),
    ("eth_getLogs", -32600, "ranges over 10 blocks are not supported on freetier", LogRangeRefused),
    ("eth_getLogs", -32005, "rate limit", RpcLimited),
    ("eth_sendRawTransaction", -32000, "nonce too low", RpcRefused),
    ("eth_sendRawTransaction", -32603, "already known", RpcRefused),
    ("eth_call", 3, "execution reverted", TransactionReverted),
    ("eth_estimateGas", -32000, "execution reverted: rate limit exceeded", TransactionReverted),
]


@pytest.mark.parametrize(("method", "code", "message", "kind"), CASES)
def test_a_refusal_is_sorted_by_its_code_and_words(
    method: str, code: int, message: str, kind: type[ChainError]
) -> None:
    assert type(refusal(method, {"code": code, "message": message})) is kind


@pytest.mark.parametrize("error", [{}, {"code": "x"}, {"code": True, "message": 5}, {"data": {}}])
def test_a_malformed_error_object_is_a_plain_refusal(error: dict[str, Any]) -> None:
    assert type(refusal("eth_call", error)) is RpcRefused


def test_a_passing_refusal_may_be_repeated_like_an_unanswered_question() -> None:
    assert issubclass(RpcLimited, RpcUnavailable)
    assert not issubclass(RpcLimited, RpcRefused)


# --- searching logs


class LogNode:
    """A node that returns one log a block and refuses ranges wider than `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.asked: list[tuple[int, int]] = []

    async def call(self, method: str, *params: Any) -> Any:
        assert method == "eth_getLogs"
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        self.asked.append((first, last))
        if last - first + 1 > self.most:
            raise refusal(method, {"code": -32602, "message": f"at most {self.most} blocks"})
        return list(range(first, last + 1))

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("most", [1, 3, 10, 64, 5000])
async def test_a_narrow_node_is_asked_in_parts_until_nothing_is_missing(most: int) -> None:
    node = LogNode(most)
    search = LogSearch(node)
    assert await search.find({}, 5, 68) == list(range(5, 69))
    assert search.width >= 1
    node.asked.clear()
    assert await search.find({}, 100, 163) == list(range(100, 164))
    assert len(node.asked) == search.requests(100, 163), "the width is remembered"


async def test_a_node_that_refuses_even_one_block_is_given_up() -> None:
    node = LogNode(0)
    with pytest.raises(LogRangeRefused):
        await LogSearch(node).find({}, 0, 2000)
    assert len(node.asked) < 20


async def test_a_search_that_takes_too_many_requests_is_refused_before_it_starts() -> None:
    node = LogNode(1)
    search = LogSearch(node)
    await search.find({}, 0, 1)
    node.asked.clear()
    with pytest.raises(LogRangeRefused, match="it takes 1 of"):
        await search.find({}, 0, 20_000)
    assert node.asked == []


async def test_something_else_than_a_list_is_no_empty_list() -> None:
    class Null(LogNode):
        async def call(self, method: str, *params: Any) -> Any:
            return None

    with pytest.raises(BadAnswer):
        await LogSearch(Null(1)).find({}, 0, 0)
