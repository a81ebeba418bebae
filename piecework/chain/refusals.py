"""Sort a node's JSON-RPC error by what can be done about it. Pure.

Codes are not standard and words nearly are, so both are looked at. The tables hold what geth, reth,
erigon, nethermind, besu, anvil and the public endpoints in front of them answer.
"""

from __future__ import annotations

from typing import Any, Final

from piecework.chain.abi import decode_revert
from piecework.chain.errors import (
    ChainError,
    LogRangeRefused,
    MethodMissing,
    RpcLimited,
    RpcRefused,
)

PASSING_CODES: Final = frozenset({429, -32005, -32016, -32029, -32090, -32097})
"""EIP-1474's "limit exceeded", HTTP's 429 in a body, and what large providers made of the two."""
PASSING_WORDS: Final = (
    "rate limit",
    "ratelimit",
    "limit exceeded",
    "limit reached",
    "limited",
    "too many requests",
    "request count exceeded",
    "requests per second",
    "compute units",
    "over capacity",
    "exceeded its capacity",
    "exceeded the quota",
    "usage limit",
    "throttle",
    "try again",
    "retry",
    "temporarily",
    "timeout",
    "timed out",
    "overloaded",
    "server busy",
    "service unavailable",
    "no available upstream",
    "header not found",
)
MISSING_CODE: Final = -32601
MISSING_WORDS: Final = (
    "method not found",
    "does not exist/is not available",
    "method does not exist",
    "method not supported",
    "method is not supported",
    "unsupported method",
    "method not allowed",
    "method is not available",
    "not whitelisted",
)
KNOWN_WORDS: Final = ("already known", "alreadyknown", "already imported", "known transaction")
"""A node has this very transaction."""
RANGE_WORDS: Final = (
    "range",
    "returned more than",
    "too many results",
    "too many logs",
    "too many blocks",
    "response size",
    "result size",
    "limited to",
    "blocks at most",
    "max results",
    "maximum number of blocks",
    "exceed maximum block",
)
_RUNS_CODE: Final = frozenset({"eth_call", "eth_estimateGas"})


def refusal(method: str, error: dict[str, Any]) -> ChainError:
    """Return a JSON-RPC error as the exception to raise.

    It is a `TransactionReverted`, `LogRangeRefused`, `RpcLimited`, `MethodMissing`, or a plain
    `RpcRefused`. Only `RpcLimited` may pass by itself.
    """
    code = error.get("code")
    code = code if isinstance(code, int) and not isinstance(code, bool) else 0
    message, data = str(error.get("message", "")), error.get("data")
    if isinstance(data, dict):
        data = data.get("data")
    words = message.lower()
    if method in _RUNS_CODE and (code == 3 or "revert" in words):
        return decode_revert(_hex_or_empty(data))
    if method == "eth_getLogs" and _any_of(RANGE_WORDS, words):
        return LogRangeRefused(method, code, message, data)
    if code == MISSING_CODE or _any_of(MISSING_WORDS, words):
        return MethodMissing(method, code, message, data)
    if code in PASSING_CODES or _any_of(PASSING_WORDS, words):
        return RpcLimited(str(RpcRefused(method, code, message, data)))
    return RpcRefused(method, code, message, data)


def is_known(message: str) -> bool:
    """Whether a node refuses a transaction because it has it already."""
    return _any_of(KNOWN_WORDS, message.lower())


def _any_of(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)


def _hex_or_empty(value: Any) -> bytes:
    """Revert data. Some nodes put a word before it, some leave it out."""
    if not isinstance(value, str) or "0x" not in value:
        return b""
    try:
        return bytes.fromhex(value[value.index("0x") + 2 :])
    except ValueError:
        return b""
