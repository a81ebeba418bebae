"""Ask k of n nodes that must agree, where the answer is about money.

Nodes are rarely at the same height. So a question about the latest block is asked at the highest
block that k of them have, by number. Equal answers of k nodes are the answer. A node that says
something else is remembered in `odd`, and its word counts for nothing. When no k agree, the
question has no answer: `NodesDisagree`.

A transaction goes to every node. What only prices it (a tip, an estimate) comes from the first
node that answers, because caps bound it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    NodesDisagree,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.rpc import HttpRpc, JsonRpc, quantity

_BLOCK_PARAMETER: Final[Mapping[str, int]] = {
    "eth_call": 1,
    "eth_getBalance": 1,
    "eth_getCode": 1,
    "eth_getTransactionCount": 1,
    "eth_getStorageAt": 2,
    "eth_getBlockByNumber": 0,
}
"""Where the block stands among the parameters of a question about state."""
_AGREED: Final = frozenset({*_BLOCK_PARAMETER, "eth_chainId", "eth_getLogs"})
_HEIGHTS: Final = frozenset({"latest", "safe", "finalized"})
_BLOCK_MEMBERS: Final = ("number", "hash", "timestamp", "baseFeePerGas")
_RECEIPT_MEMBERS: Final = ("blockNumber", "blockHash", "gasUsed", "effectiveGasPrice", "status")
_LOG_MEMBERS: Final = ("address", "topics", "data", "blockNumber", "logIndex", "transactionHash")


@dataclass(frozen=True, slots=True)
class _Said:
    """What one node answered: a value, or an error that is itself an answer (a revert)."""

    node: int
    key: str
    """Equal for equal answers."""
    value: Any = None
    revert: TransactionReverted | None = None


class QuorumRpc:
    """Several nodes as one `JsonRpc`. Also raises `NodesDisagree`."""

    def __init__(self, nodes: Sequence[JsonRpc], quorum: int) -> None:
        """`quorum` is how many nodes must say the same. It is 1 to the number of nodes.

        Raises:
            ValueError: it is not.
        """
        if not 1 <= quorum <= len(nodes):
            raise ValueError(f"a quorum of {quorum} out of {len(nodes)} nodes cannot be reached")
        self._nodes, self._quorum = tuple(nodes), quorum
        self.odd: dict[int, str] = {}
        """By place in the list: the method that a node last answered otherwise than the quorum."""

    async def call(self, method: str, *params: Any) -> Any:
        """Ask as many nodes as the method needs."""
        if method == "eth_sendRawTransaction":
            return await self._send(method, params)
        if method == "eth_getTransactionReceipt":
            return await self._receipt(method, params)
        if method == "eth_blockNumber":
            return hex(await self._height("latest"))
        if method not in _AGREED or "pending" in params:
            return await self._first(method, params)
        place = _BLOCK_PARAMETER.get(method)
        if place is not None and len(params) > place and params[place] in _HEIGHTS:
            fixed = hex(await self._height(params[place]))
            params = (*params[:place], fixed, *params[place + 1 :])
        return await self._agreed(method, params)

    async def close(self) -> None:
        """Close every node's connections."""
        await asyncio.gather(*(node.close() for node in self._nodes))

    # --- questions

    async def _agreed(self, method: str, params: Sequence[Any]) -> Any:
        said, errors = await self._ask_all(method, params)
        by_key: dict[str, list[_Said]] = {}
        for one in said:
            by_key.setdefault(one.key, []).append(one)
        agreed = next((same for same in by_key.values() if len(same) >= self._quorum), None)
        if agreed is None:
            raise self._unanswered(method, len(said), len(by_key), errors)
        self._note_odd(method, said, agreed[0].key)
        if agreed[0].revert is not None:
            raise agreed[0].revert
        return agreed[0].value

    def _unanswered(
        self, method: str, said: int, kinds: int, errors: Sequence[ChainError]
    ) -> ChainError:
        if said < self._quorum or kinds < 2:
            return errors[0] if errors else RpcUnavailable(f"no node answered {method}")
        return self._disagree(method)

    def _disagree(self, method: str) -> NodesDisagree:
        return NodesDisagree(
            f"of {len(self._nodes)} nodes no {self._quorum} say the same to {method}"
        )

    async def _height(self, tag: str) -> int:
        """The highest block of this tag that as many nodes have as must agree."""

        def number(block: Any) -> int:
            return 0 if block is None else quantity(block.get("number"), "a block number")

        if tag == "latest":
            said, errors = await self._ask_all("eth_blockNumber", ())
            heights = [_or_none(quantity, one.value, "the block number") for one in said]
        else:
            said, errors = await self._ask_all("eth_getBlockByNumber", (tag, False), raw=True)
            heights = [_or_none(number, one.value) for one in said]
        known = sorted((height for height in heights if height is not None), reverse=True)
        if len(known) < self._quorum:
            if errors:
                raise errors[0]
            raise BadAnswer(f"fewer than {self._quorum} nodes say how high the chain is")
        return known[self._quorum - 1]

    async def _receipt(self, method: str, params: Sequence[Any]) -> Any:
        """A receipt that the quorum has. A node that lags has none yet, and that is no lie."""
        said, errors = await self._ask_all(method, params)
        if len(said) < self._quorum:
            raise errors[0]
        none = [one for one in said if one.value is None]
        found = [one for one in said if one.value is not None]
        alike = [[one for one in found if one.key == other.key] for other in found]
        agreed = next((same for same in alike if len(same) >= self._quorum), None)
        if agreed is not None:
            late = none if none and await self._is_old(agreed[0].value) else []
            self._note_odd(method, [*found, *late], agreed[0].key)
            return agreed[0].value
        invented = [one for one in found if await self._is_old(one.value)]
        if invented and len(none) < self._quorum:
            raise self._disagree(method)
        self._note_odd(method, [*none, *invented], "null")
        return None

    async def _is_old(self, receipt: Any) -> bool:
        """Whether the quorum is past a receipt's block, so that it must know it too."""
        block = receipt.get("blockNumber") if isinstance(receipt, dict) else None
        height = _or_none(quantity, block, "a receipt's block")
        return height is None or height <= await self._height("latest")

    async def _first(self, method: str, params: Sequence[Any]) -> Any:
        """The first node's word, or the next one's while a node cannot be asked."""
        last: ChainError = RpcUnavailable(f"no node answered {method}")
        for node in self._nodes:
            try:
                return await node.call(method, *params)
            except (RpcUnavailable, BadAnswer) as error:
                last = error
        raise last

    async def _send(self, method: str, params: Sequence[Any]) -> Any:
        """Give a transaction to every node. One that takes it is enough."""
        answers = await asyncio.gather(
            *(node.call(method, *params) for node in self._nodes), return_exceptions=True
        )
        taken = [answer for answer in answers if not isinstance(answer, BaseException)]
        if taken:
            return taken[0]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ChainError):
                raise answer
        # What a node says of the transaction is worth more than that another one is away.
        refused = [a for a in answers if not isinstance(a, RpcUnavailable)]
        raise next(error for error in (*refused, *answers) if isinstance(error, ChainError))

    async def _ask_all(
        self, method: str, params: Sequence[Any], *, raw: bool = False
    ) -> tuple[list[_Said], list[ChainError]]:
        """Ask every node side by side: what they said, and why the others said nothing."""

        async def ask(place: int, node: JsonRpc) -> _Said | ChainError:
            try:
                value = await node.call(method, *params)
            except TransactionReverted as error:
                return _Said(place, f"revert {error.data.hex()}", revert=error)
            except ChainError as error:
                return error
            return _Said(place, "" if raw else _comparable(method, value), value)

        answers = await asyncio.gather(*(ask(i, node) for i, node in enumerate(self._nodes)))
        said = [answer for answer in answers if isinstance(answer, _Said)]
        return said, [answer for answer in answers if isinstance(answer, ChainError)]

    def _note_odd(self, method: str, said: Sequence[_Said], key: str) -> None:
        for one in said:
            if one.key != key:
                self.odd[one.node] = method
            elif self.odd.get(one.node) == method:
                del self.odd[one.node]


def nodes(urls: Sequence[str], quorum: int, *, timeout_s: float) -> JsonRpc | None:
    """Return the nodes at these addresses as one. None: there are none.

    `quorum` is how many must agree. 0: more than half.
    """
    if not urls:
        return None
    opened = [HttpRpc(url, timeout_s=timeout_s) for url in urls]
    return QuorumRpc(opened, quorum or len(urls) // 2 + 1) if len(urls) > 1 else opened[0]


def _or_none(read: Callable[..., int], *arguments: Any) -> int | None:
    """A number, or None of what is no number."""
    try:
        return read(*arguments)
    except (BadAnswer, AttributeError):
        return None


def _comparable(method: str, value: Any) -> str:
    """An answer without what nodes add of their own, so that equal ones compare equal."""
    if method == "eth_getBlockByNumber":
        value = _members(value, _BLOCK_MEMBERS)
    elif method == "eth_getLogs":
        value = _logs(value)
    elif method == "eth_getTransactionReceipt" and isinstance(value, dict):
        value = {**_members(value, _RECEIPT_MEMBERS), "logs": _logs(value.get("logs"))}
    return json.dumps(_lower(value), sort_keys=True)


def _members(value: Any, names: Sequence[str]) -> Any:
    return {name: value.get(name) for name in names} if isinstance(value, dict) else value


def _logs(value: Any) -> Any:
    return [_members(log, _LOG_MEMBERS) for log in value] if isinstance(value, list) else value


def _lower(value: Any) -> Any:
    """Hex digits in one case."""
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, list):
        return [_lower(one) for one in value]
    return {k: _lower(v) for k, v in value.items()} if isinstance(value, dict) else value
