"""Sort a node's JSON-RPC error by what can be done about it. Pure.

Codes are not standard and words nearly are, so both are looked at. The tables hold what geth, reth,
erigon, nethermind, besu, anvil and the public endpoints in front of them answer.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from piecework.chain.contracts.abi import decode_revert
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


class Answer(enum.Enum):
    """What a refusal of a raw transaction means."""

    KNOWN = "known"
    NONCE_USED = "nonce used"
    FEE_TOO_LOW = "fee too low"
    NO_FUNDS = "no funds"
    OTHER = "other"


# Wordings of geth, reth, nethermind, besu, erigon, anvil and our embedded chain, in lower case.
_WORDINGS: tuple[tuple[Answer, tuple[str, ...]], ...] = (
    (Answer.KNOWN, ("already known", "alreadyknown", "already imported", "known transaction")),
    (Answer.NONCE_USED, ("nonce too low", "old nonce", "nonce is too low", "noncetoolow")),
    (
        Answer.FEE_TOO_LOW,
        (
            "underpriced",
            "less than block base fee",
            "feetoolow",
            "below current base fee",
            "fee too low",
        ),
    ),
    (
        Answer.NO_FUNDS,
        ("insufficient funds", "insufficient balance", "upfront cost", "insufficientfunds"),
    ),
)


def classify(message: str) -> Answer:
    """Sort a node's refusal of eth_sendRawTransaction; the codes are not standard, the words nearly
    are."""
    text = message.lower()
    for answer, wordings in _WORDINGS:
        if _any_of(wordings, text):
            return answer
    return Answer.OTHER


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
