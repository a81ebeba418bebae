"""Reading the logs of many blocks from nodes that limit how many they give at once.

Public nodes refuse ranges that are too wide or hold too many logs, each by a rule of its own. So
the range is halved on every refusal, down to one block, and grows again after a while.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.errors import (
    AnswerTooLarge,
    BadAnswer,
    LogsRefused,
    RpcRefused,
    RpcUnavailable,
)
from piecework.chain.events import Log
from piecework.chain.limits import MAX_LOG_RANGE_BLOCKS
from piecework.chain.rpc import (
    JsonRpc,
    address_from,
    data_bytes,
    hash_of,
    member,
    quantity,
)
from piecework_protocol.types import Address, to_hex

# Answers in a row before the range is doubled: a node that refused once refuses again at once.
_ANSWERS_BEFORE_GROWTH: Final = 16
# A node that never answers is down. One that times out over wide ranges answers narrower ones.
_HALVINGS_WITHOUT_ANSWER: Final = 3
_NO_SUCH_METHOD: Final = -32601


@dataclass(frozen=True, slots=True)
class Scanned:
    """The logs of the blocks from `first` to `last`, both included. Go on at `last` + 1."""

    first: int
    last: int
    logs: tuple[Log, ...]


async def scan_logs(
    rpc: JsonRpc,
    address: Address,
    topics: Sequence[Any],
    first: int,
    last: int,
    *,
    widest: int = MAX_LOG_RANGE_BLOCKS,
) -> AsyncIterator[Scanned]:
    """Walk the logs of one contract from block `first` to `last`, both included, in order.

    Every part is complete, so that a caller who stores `last` of a part can go on from there after
    an error or a restart.

    Raises:
        LogsRefused: the node refuses a single block, or has no eth_getLogs.
        BadAnswer: an answer is malformed, or holds logs that were not asked for.
        RpcUnavailable: the node does not answer.
    """
    width, answers, silent = widest, 0, 0
    start = first
    while start <= last:
        end = min(last, start + width - 1)
        try:
            logs = await _logs(rpc, address, topics, start, end)
        except (RpcRefused, AnswerTooLarge, RpcUnavailable) as error:
            silent = silent + 1 if isinstance(error, RpcUnavailable) else 0
            if silent > _HALVINGS_WITHOUT_ANSWER:
                raise
            if start == end or getattr(error, "rpc_code", None) == _NO_SUCH_METHOD:
                if isinstance(error, RpcUnavailable):
                    raise
                raise LogsRefused(f"the node gives no logs of block {start}: {error}") from error
            width, answers = (end - start + 1) // 2, 0
            continue
        yield Scanned(start, end, logs)
        start, answers, silent = end + 1, answers + 1, 0
        if answers >= _ANSWERS_BEFORE_GROWTH:
            width, answers = min(widest, width * 2), 0


async def _logs(
    rpc: JsonRpc, address: Address, topics: Sequence[Any], first: int, last: int
) -> tuple[Log, ...]:
    query = {
        "address": to_hex(address),
        "fromBlock": hex(first),
        "toBlock": hex(last),
        "topics": list(topics),
    }
    logs = parse_logs(await rpc.call("eth_getLogs", query))
    for log in logs:
        if not first <= log.block <= last or log.address != address:
            raise BadAnswer("the node returned logs that were not asked for")
    return tuple(sorted(logs, key=lambda log: (log.block, log.index)))


def parse_logs(raw: Any) -> list[Log]:
    """The logs of eth_getLogs or of a receipt."""
    if not isinstance(raw, list):
        raise BadAnswer("the node returned no list of logs")
    return [
        Log(
            address_from(member(entry, "address", "a log"), "a log's address"),
            tuple(hash_of(t, "a topic") for t in member(entry, "topics", "a log")),
            data_bytes(member(entry, "data", "a log"), "a log's data"),
            quantity(member(entry, "blockNumber", "a log"), "a log's block"),
            quantity(member(entry, "logIndex", "a log"), "a log's index"),
            hash_of(member(entry, "transactionHash", "a log"), "a log's transaction"),
        )
        for entry in raw
    ]
