"""Ask k of n nodes that must agree, where the answer is about money.

Nodes are rarely at the same height. So a question about the latest block is asked at the highest
block that k of them have, by number. Equal answers of k nodes are the answer. A node that says
something else is remembered in `odd`, and its word counts for nothing. When no k agree, the
question has no answer: `NodesDisagree`.

A transaction goes to every node. What honest nodes say a little differently has a rule of its own,
so that one node in any place moves nothing:

- What waits in a pool (the pending nonce, a transaction without a receipt): as much as the quorum
  has. Pools differ, so nobody is odd for it.
- An estimate: the middle one, if the quorum is within twice and half of it. A revert is a vote.
- A price: the middle one, of two tips the higher. Caps bound it, and a transaction that is too
  cheap is outbid.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    NodesDisagree,
    RpcRefused,
    RpcUnavailable,
    TransactionReverted,
)
from piecework.chain.refusals import Answer, classify
from piecework.chain.rpc import HttpRpc, JsonRpc, data_bytes, member, quantity
from piecework_protocol.types import keccak256, to_hex

T = TypeVar("T")

_BLOCK_PARAMETER: Final[Mapping[str, int]] = {
    "eth_call": 1,
    "eth_getBalance": 1,
    "eth_getCode": 1,
    "eth_getTransactionCount": 1,
    "eth_getStorageAt": 2,
    "eth_getBlockByNumber": 0,
    "eth_estimateGas": 1,
    "eth_feeHistory": 1,
}
"""Where the block stands among the parameters of a question about state."""
_AGREED: Final = frozenset({*_BLOCK_PARAMETER, "eth_chainId", "eth_getLogs"})
"""Questions whose answers are equal, unless `_RULES` has another rule for them."""
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
        if method == "eth_blockNumber":
            return hex(await self._height("latest"))
        place = _BLOCK_PARAMETER.get(method)
        if place is not None and len(params) > place and params[place] in _HEIGHTS:
            fixed = hex(await self._height(params[place]))
            params = (*params[:place], fixed, *params[place + 1 :])
        if method == "eth_getTransactionCount" and "pending" in params:
            return await self._pooled(method, params)
        asking = _RULES.get(method, QuorumRpc._agreed if method in _AGREED else QuorumRpc._first)
        return await asking(self, method, params)

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
        """A receipt that the quorum has. A node that lags has none yet, and that is not a lie."""
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

    # --- what honest nodes say a little differently

    async def _pooled(self, method: str, params: Sequence[Any]) -> Any:
        """The highest count that as many nodes reach as must agree."""
        counts = sorted(await self._numbers(method, params), reverse=True)
        return hex(counts[self._quorum - 1])

    async def _transaction(self, method: str, params: Sequence[Any]) -> Any:
        """A transaction that the quorum knows. What fewer know is sent again, which is harmless."""
        said, errors = await self._ask_all(method, params)
        if len(said) < self._quorum:
            raise errors[0]
        known = [one.value for one in said if _is_transaction(one.value)]
        if len(known) >= self._quorum:
            # The receipts say which one is mined. Here only whether it waits counts.
            return next((one for one in known if one["blockNumber"] is None), known[0])
        if sum(one.value is not None for one in said) == len(said):
            raise BadAnswer(f"the nodes returned no transaction to {method}")
        return None

    async def _estimate(self, method: str, params: Sequence[Any]) -> Any:
        """The middle estimate, or the revert that more nodes say.

        Nodes a block apart may differ for a moment. So a disagreement is asked again at one block.
        """
        try:
            return await self._estimated(method, params)
        except NodesDisagree:
            if len(params) != 1:
                raise
        return await self._estimated(method, (*params, hex(await self._height("latest"))))

    async def _estimated(self, method: str, params: Sequence[Any]) -> Any:
        said, errors = await self._ask_all(method, params)
        reverts = [one for one in said if one.revert is not None]
        known = [(_or_none(quantity, one.value, "an estimate"), one) for one in said]
        estimates = [(gas, one) for gas, one in known if gas is not None]
        middle = _lower_middle([gas for gas, _ in estimates]) if estimates else 0
        near = [one for gas, one in estimates if middle <= 2 * gas and gas <= 2 * middle]
        agreed = reverts if len(reverts) > len(near) else near
        if len(agreed) < self._quorum:
            if len(reverts) + len(estimates) < self._quorum:
                raise errors[0] if errors else BadAnswer("the nodes returned no estimate")
            raise self._disagree(method)
        self._note_others(method, {one.node for one in said} - {one.node for one in agreed})
        if agreed[0].revert is not None:
            raise agreed[0].revert
        return hex(middle)

    async def _price(self, method: str, params: Sequence[Any]) -> Any:
        return hex(_lower_middle(await self._numbers(method, params)))

    async def _tip(self, method: str, params: Sequence[Any]) -> Any:
        """The middle tip, and of two the higher. Its cap bounds it, and no tip gets nowhere."""
        numbers = sorted(await self._numbers(method, params))
        return hex(numbers[len(numbers) // 2])

    async def _numbers(self, method: str, params: Sequence[Any]) -> list[int]:
        """What the nodes say that say a number. They are enough."""
        said, errors = await self._ask_all(method, params)
        known = [_or_none(quantity, one.value, f"the answer to {method}") for one in said]
        return self._enough(method, [number for number in known if number is not None], errors)

    async def _history(self, method: str, params: Sequence[Any]) -> Any:
        """The history of the node whose rewards are the middle ones."""
        said, errors = await self._ask_all(method, params)
        known = [(paid, one.value) for one in said if (paid := _paid(one.value)) is not None]
        enough = self._enough(method, known, errors)
        return sorted(enough, key=lambda one: one[0])[(len(enough) - 1) // 2][1]

    def _enough(self, method: str, known: list[T], errors: Sequence[ChainError]) -> list[T]:
        if len(known) >= self._quorum:
            return known
        raise errors[0] if errors else BadAnswer(f"the nodes returned no number to {method}")

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
        """Give a transaction to every node. One that takes it is enough.

        A node that returns another hash than the bytes have took something else, or nothing.
        """
        answers = await asyncio.gather(
            *(node.call(method, *params) for node in self._nodes), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ChainError):
                raise answer
        errors = [answer for answer in answers if isinstance(answer, ChainError)]
        expected = to_hex(keccak256(data_bytes(params[0], "a transaction")))
        odd = {
            node
            for node, answer in enumerate(answers)
            if not isinstance(answer, BaseException) and _lower(answer) != expected
        }
        self._note_others(method, odd)
        if len(odd) + len(errors) < len(answers):
            return expected
        # What a node says of the transaction is worth more than that another one is away.
        refused = [error for error in errors if not isinstance(error, RpcUnavailable)]
        if any(isinstance(e, RpcRefused) and classify(e.message) is Answer.KNOWN for e in refused):
            return expected  # a node holds it, whatever the others think of its fee
        if refused:
            raise refused[0]
        if odd:
            return answers[min(odd)]
        raise errors[0]

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

    def _note_others(self, method: str, odd: set[int]) -> None:
        """Note who is odd by a rule of its own. Whoever is not among them is forgiven."""
        for node in range(len(self._nodes)):
            if node in odd:
                self.odd[node] = method
            elif self.odd.get(node) == method:
                del self.odd[node]


_RULES: Final[Mapping[str, Callable[[QuorumRpc, str, Sequence[Any]], Awaitable[Any]]]] = {
    "eth_sendRawTransaction": QuorumRpc._send,
    "eth_getTransactionReceipt": QuorumRpc._receipt,
    "eth_getTransactionByHash": QuorumRpc._transaction,
    "eth_estimateGas": QuorumRpc._estimate,
    "eth_maxPriorityFeePerGas": QuorumRpc._tip,
    "eth_gasPrice": QuorumRpc._price,
    "eth_feeHistory": QuorumRpc._history,
}
"""How the answers of several nodes become one, where equal ones are not what counts."""


def nodes(urls: Sequence[str], quorum: int, *, timeout_s: float) -> JsonRpc | None:
    """Return the nodes at these addresses as one. None: there are none.

    `quorum` is how many must agree. 0: more than half.
    """
    if not urls:
        return None
    opened = [HttpRpc(url, timeout_s=timeout_s) for url in urls]
    return QuorumRpc(opened, quorum or len(urls) // 2 + 1) if len(urls) > 1 else opened[0]


def _or_none(read: Callable[..., int], *arguments: Any) -> int | None:
    """A number, or None of what is not a number."""
    try:
        return read(*arguments)
    except (BadAnswer, AttributeError):
        return None


def _lower_middle(numbers: Sequence[int]) -> int:
    """The middle number, and of two the lower: one that is too high moves nothing."""
    return sorted(numbers)[(len(numbers) - 1) // 2]


def _is_transaction(value: Any) -> bool:
    return isinstance(value, dict) and "blockNumber" in value


def _paid(history: Any) -> int | None:
    """What the blocks of a fee history paid together. None: it is none."""
    try:
        rows = member(history, "reward", "the fee history")
        return sum(quantity(row[0], "a reward") for row in rows if row)
    except (BadAnswer, TypeError, KeyError, IndexError):
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
