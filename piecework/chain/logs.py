"""Search logs in ranges that the node accepts.

Public nodes refuse wide ranges, some of more than ten blocks. The width is halved at each refusal,
down to one block, and kept for the next search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from piecework.chain.errors import AnswerTooLarge, BadAnswer, LogRangeRefused, RpcRefused
from piecework.chain.limits import MAX_LOG_RANGE_BLOCKS
from piecework.chain.rpc import JsonRpc

MAX_LOG_REQUESTS: Final = 10_000
"""Of one search. A node that takes one block a request is not asked for a year of them."""


class LogSearch:
    """`eth_getLogs` over one node. It remembers how many blocks the node takes at once."""

    def __init__(self, rpc: JsonRpc) -> None:
        self._rpc = rpc
        self.width = MAX_LOG_RANGE_BLOCKS
        """Blocks a request, as far as is known."""

    def requests(self, from_block: int, to_block: int) -> int:
        """How many requests a search takes, as far as is known."""
        return -(-(to_block - from_block + 1) // self.width)

    async def find(self, query: Mapping[str, Any], from_block: int, to_block: int) -> list[Any]:
        """Return the raw logs between two blocks, both included, in chain order.

        Raises:
            LogRangeRefused: the node refuses even one block, or the search takes too many requests.
            ChainError: the node does not answer.
        """
        found: list[Any] = []
        start = from_block
        while start <= to_block:
            if self.requests(start, to_block) > MAX_LOG_REQUESTS:
                blocks = to_block - start + 1
                raise LogRangeRefused("eth_getLogs", 0, f"it takes {self.width} of {blocks} blocks")
            end = min(to_block, start + self.width - 1)
            part = await self._part(query, start, end)
            if part is not None:
                found += part
                start = end + 1
        return found

    async def _part(self, query: Mapping[str, Any], start: int, end: int) -> list[Any] | None:
        """The logs of one request. None: it was refused, and the next one is half as wide."""
        asked = {**query, "fromBlock": hex(start), "toBlock": hex(end)}
        try:
            logs = await self._rpc.call("eth_getLogs", asked)
        except (RpcRefused, AnswerTooLarge) as error:
            # Nodes name this refusal in many ways. A narrower question can do no harm.
            if start == end:
                message = getattr(error, "message", str(error))
                raise LogRangeRefused("eth_getLogs", 0, message) from error
            self.width = max(1, (end - start + 1) // 2)
            return None
        if not isinstance(logs, list):
            raise BadAnswer("the node returned no list of logs")
        return logs
