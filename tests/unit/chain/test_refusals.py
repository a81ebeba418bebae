"""A node's refusals are sorted by what can be done about them."""

from __future__ import annotations

from typing import Any

import pytest

from piecework.chain.errors import (
    ChainError,
    LogRangeRefused,
    MethodMissing,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.nodes.refusals import refusal

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
