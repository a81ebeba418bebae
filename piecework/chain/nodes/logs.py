"""Search logs in ranges that the node accepts.

Public nodes refuse ranges that are too wide or hold too many logs, each by a rule of its own. The
width is halved at each refusal, down to one block, and kept for the next search. Until the first
refusal it doubles with each answer, and later after a while.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.contracts.events import Log
from piecework.chain.errors import (
    AnswerTooLarge,
    BadAnswer,
    LogRangeRefused,
    MethodMissing,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
)
from piecework.chain.limits import MAX_LOG_RANGE_BLOCKS, MAX_LOG_SEARCH_BLOCKS
from piecework.chain.nodes.rpc import JsonRpc, address_from, data_bytes, hash_of, member, quantity
from piecework_protocol.types import Address, to_hex

MAX_LOG_REQUESTS: Final = 10_000
"""Of one search. A node that takes one block a request is not asked for a year of them."""
_REQUESTS_BEFORE_JUDGEMENT: Final = 200
"""A search may pass a stretch that is full of logs. Then its width grows again."""
# After a refusal a wider range is tried again only now and then: it costs a request.
_ANSWERS_BEFORE_GROWTH: Final = 16
# A node that answers no range is down. One that times out over wide ranges answers narrower ones.
_HALVINGS_WITHOUT_ANSWER: Final = 3


@dataclass(frozen=True, slots=True)
class Scanned:
    """The logs of the blocks from `first` to `last`, both included. Go on at `last` + 1."""

    first: int
    last: int
    logs: tuple[Log, ...]


class LogSearch:
    """`eth_getLogs` over one node. It remembers how many blocks the node takes at once."""

    def __init__(self, rpc: JsonRpc) -> None:
        self._rpc = rpc
        self._refused = False
        self._answers = 0
        self.width = MAX_LOG_RANGE_BLOCKS
        """Blocks a request, as far as is known."""

    def requests(self, from_block: int, to_block: int) -> int:
        """How many requests a search takes, as far as is known."""
        return -(-(to_block - from_block + 1) // self.width)

    async def scan(
        self, address: Address, topics: Sequence[Any], from_block: int, to_block: int
    ) -> AsyncIterator[Scanned]:
        """Walk the logs of one contract between two blocks, both included, in chain order.

        Every part is complete. So a caller that stores `last` of a part can go on after it, also
        when the search ends with an error or the program stops.

        Raises:
            LogRangeRefused: the node refuses even one block, or the search takes too many requests.
            MethodMissing: the node has no logs.
            BadAnswer: an answer is malformed, or holds logs that were not asked for.
            RpcUnavailable: the node does not answer.
        """
        start, silent, asked = from_block, 0, 0
        while start <= to_block:
            self._require_few(asked, start, to_block)
            asked += 1
            end = min(to_block, start + self.width - 1)
            try:
                logs = await self._logs(address, topics, start, end)
            except (RpcLimited, MethodMissing):
                raise
            except RpcUnavailable:
                silent += 1
                if start == end or silent > _HALVINGS_WITHOUT_ANSWER:
                    raise
                self._narrow(start, end)
                continue
            except (RpcRefused, AnswerTooLarge) as error:
                # Nodes name this refusal in many ways. A narrower question can do no harm.
                if start == end:
                    message = getattr(error, "message", str(error))
                    raise LogRangeRefused(
                        "eth_getLogs", 0, f"{message} (block {start} alone)"
                    ) from error
                self._narrow(start, end)
                continue
            self._answered(whole=end - start + 1 == self.width)
            yield Scanned(start, end, logs)
            start, silent = end + 1, 0

    def _require_few(self, asked: int, start: int, last: int) -> None:
        hopeless = self._refused and self.requests(start, last) > MAX_LOG_REQUESTS
        if asked >= MAX_LOG_REQUESTS or (hopeless and asked >= _REQUESTS_BEFORE_JUDGEMENT):
            blocks = last - start + 1
            raise LogRangeRefused("eth_getLogs", 0, f"it takes {self.width} of {blocks} blocks")

    def _narrow(self, start: int, end: int) -> None:
        self._refused, self._answers = True, 0
        self.width = max(1, (end - start + 1) // 2)

    def _answered(self, *, whole: bool) -> None:
        """A range that was cut at the end of the search says nothing of a wider one."""
        self._answers += whole
        if whole and (not self._refused or self._answers >= _ANSWERS_BEFORE_GROWTH):
            self._answers = 0
            self.width = min(MAX_LOG_SEARCH_BLOCKS, self.width * 2)

    async def _logs(
        self, address: Address, topics: Sequence[Any], first: int, last: int
    ) -> tuple[Log, ...]:
        query = {
            "address": to_hex(address),
            "topics": list(topics),
            "fromBlock": hex(first),
            "toBlock": hex(last),
        }
        logs = parse_logs(await self._rpc.call("eth_getLogs", query))
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
