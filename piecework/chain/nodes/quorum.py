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

A question is answered as soon as enough nodes have decided it. The others have a short grace, so
that one which says something else is noted. A node that stays silent rests: it is asked like the
others, and for a while nobody waits for it. Where the others alone decide nothing, everybody waits
for it all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from piecework.chain.errors import (
    AnswerTooLarge,
    BadAnswer,
    ChainError,
    NodesDisagree,
    RpcLimited,
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
from piecework.chain.nodes.refusals import Answer, classify
from piecework.chain.nodes.rpc import HttpRpc, JsonRpc, data_bytes, member, quantity
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


_Decided = Callable[[Sequence[_Said]], bool]
"""Whether what was said so far is enough for an answer."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """While nobody waits for a node that was silent."""

    until: float
    """By the clock of the running loop."""
    length_s: float


@dataclass(frozen=True, slots=True)
class _Estimates:
    """What nodes say to an estimate."""

    all: list[_Said]
    """Estimates and reverts, without what is neither."""
    agreed: list[_Said]
    """The larger side: those near the middle estimate, or the reverts."""
    middle: int

    @classmethod
    def of(cls, said: Sequence[_Said]) -> _Estimates:
        reverts = [one for one in said if one.revert is not None]
        known = [(_or_none(quantity, one.value, "an estimate"), one) for one in said]
        estimates = [(gas, one) for gas, one in known if gas is not None]
        middle = _lower_middle([gas for gas, _ in estimates]) if estimates else 0
        near = [one for gas, one in estimates if middle <= 2 * gas and gas <= 2 * middle]
        agreed = reverts if len(reverts) > len(near) else near
        return cls([*reverts, *(one for _, one in estimates)], agreed, middle)


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
        self._highest = 0
        """The highest block that the quorum has said it has."""
        self._silences: dict[int, _Rest] = {}
        """By place in the list: nodes that were silent and have answered nothing since."""
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
        said, errors = await self._ask_all(method, params, self._agree)
        agreed = self._alike(said)
        if not agreed:
            raise self._unanswered(method, len(said), len({one.key for one in said}), errors)
        self._note_odd(method, said, agreed[0].key)
        if agreed[0].revert is not None:
            raise agreed[0].revert
        return agreed[0].value

    def _alike(self, said: Sequence[_Said]) -> list[_Said]:
        """The equal answers of as many as must agree. Empty: there are none."""
        alike = ([one for one in said if one.key == other.key] for other in said)
        return next((same for same in alike if len(same) >= self._quorum), [])

    def _agree(self, said: Sequence[_Said]) -> bool:
        return bool(self._alike(said))

    def _suffice(self, answers: Collection[Any]) -> bool:
        """Whether as many answered as must agree."""
        return len(answers) >= self._quorum

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
        """The highest block of this tag that as many nodes have as must agree.

        Where a node is silent, one that lies would be the lowest of those that count. So the latest
        block does not fall far behind what the quorum once had, and before it would, everybody is
        waited for.
        """
        least = self._highest - MAX_HEIGHT_LOSS_BLOCKS if tag == "latest" else 0

        def number(block: Any) -> int:
            return 0 if block is None else quantity(block.get("number"), "a block number")

        def heights(said: Sequence[_Said]) -> list[int]:
            if tag == "latest":
                read = [_or_none(quantity, one.value, "the block number") for one in said]
            else:
                read = [_or_none(number, one.value) for one in said]
            return sorted((height for height in read if height is not None), reverse=True)

        def decided(said: Sequence[_Said]) -> bool:
            known = heights(said)
            return self._suffice(known) and known[self._quorum - 1] >= least

        method = "eth_blockNumber" if tag == "latest" else "eth_getBlockByNumber"
        params = () if tag == "latest" else (tag, False)
        said, errors = await self._ask_all(method, params, decided, raw=True)
        known = heights(said)
        if not self._suffice(known):
            if errors:
                raise errors[0]
            raise BadAnswer(f"fewer than {self._quorum} nodes say how high the chain is")
        height = max(known[self._quorum - 1], least)
        self._highest = max(self._highest, height)
        return height

    async def _receipt(self, method: str, params: Sequence[Any]) -> Any:
        """A receipt that the quorum has. A node that lags has none yet, and that is not a lie.

        Nodes that differ are seldom liars. Only if one of them must be, a slow node is waited for.
        """
        try:
            return await self._found(method, params, self._suffice)
        except NodesDisagree:
            return await self._found(method, params, self._agree)

    async def _found(self, method: str, params: Sequence[Any], decided: _Decided) -> Any:
        said, errors = await self._ask_all(method, params, decided)
        if not self._suffice(said):
            raise errors[0]
        none = [one for one in said if one.value is None]
        found = [one for one in said if one.value is not None]
        agreed = self._alike(found)
        if agreed:
            late = none if none and await self._is_old(agreed[0].value) else []
            self._note_odd(method, [*found, *late], agreed[0].key)
            return agreed[0].value
        invented = [one for one in found if await self._is_old(one.value)]
        if invented and not self._suffice(none):
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

        def decided(said: Sequence[_Said]) -> bool:
            knows = [one for one in said if _is_transaction(one.value)]
            denied = any(one.value is None for one in said)
            return self._suffice(knows) or (denied and self._suffice(said))

        said, errors = await self._ask_all(method, params, decided)
        if not self._suffice(said):
            raise errors[0]
        known = [one.value for one in said if _is_transaction(one.value)]
        if self._suffice(known):
            # The receipts say which one is mined. Here only whether it waits counts.
            return next((one for one in known if one["blockNumber"] is None), known[0])
        if sum(one.value is not None for one in said) == len(said):
            raise BadAnswer(f"the nodes returned no transaction to {method}")
        return None

    async def _estimate(self, method: str, params: Sequence[Any]) -> Any:
        """The middle estimate, or the revert that more nodes say.

        Nodes a block apart may differ for a moment. So a disagreement is asked again at one block,
        where a slow node is waited for if the others still differ.
        """
        if len(params) == 1:
            try:
                return await self._estimated(method, params, patient=False)
            except NodesDisagree:
                params = (*params, hex(await self._height("latest")))
        return await self._estimated(method, params, patient=True)

    async def _estimated(self, method: str, params: Sequence[Any], *, patient: bool) -> Any:
        def decided(said: Sequence[_Said]) -> bool:
            votes = _Estimates.of(said)
            return self._suffice(votes.agreed if patient else votes.all)

        said, errors = await self._ask_all(method, params, decided)
        votes = _Estimates.of(said)
        agreed = votes.agreed
        if not self._suffice(agreed):
            if not self._suffice(votes.all):
                raise errors[0] if errors else BadAnswer("the nodes returned no estimate")
            raise self._disagree(method)
        places = {one.node for one in said}
        self._note_others(method, places, places - {one.node for one in agreed})
        if agreed[0].revert is not None:
            raise agreed[0].revert
        return hex(votes.middle)

    async def _price(self, method: str, params: Sequence[Any]) -> Any:
        return hex(_lower_middle(await self._numbers(method, params)))

    async def _tip(self, method: str, params: Sequence[Any]) -> Any:
        """The middle tip, and of two the higher. Its cap bounds it, and no tip gets nowhere."""
        numbers = sorted(await self._numbers(method, params))
        return hex(numbers[len(numbers) // 2])

    async def _numbers(self, method: str, params: Sequence[Any]) -> list[int]:
        """What the nodes say that say a number. They are enough."""

        def numbers(said: Sequence[_Said]) -> list[int]:
            read = [_or_none(quantity, one.value, f"the answer to {method}") for one in said]
            return [number for number in read if number is not None]

        said, errors = await self._ask_all(
            method, params, lambda said: self._suffice(numbers(said))
        )
        return self._enough(method, numbers(said), errors)

    async def _history(self, method: str, params: Sequence[Any]) -> Any:
        """The history of the node whose rewards are the middle ones."""

        def paid(said: Sequence[_Said]) -> list[tuple[int, Any]]:
            return [(sum_, one.value) for one in said if (sum_ := _paid(one.value)) is not None]

        said, errors = await self._ask_all(method, params, lambda said: self._suffice(paid(said)))
        enough = self._enough(method, paid(said), errors)
        return sorted(enough, key=lambda one: one[0])[(len(enough) - 1) // 2][1]

    def _enough(self, method: str, known: list[T], errors: Sequence[ChainError]) -> list[T]:
        if self._suffice(known):
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

        A node that returns another hash than the bytes have took something else, or nothing. One
        that lies may keep the bytes to itself, so as many as must agree are waited for. Before it
        counts as refused, everybody is: who takes it decides, however late.
        """

        async def send(place: int) -> Any:
            try:
                return await self._asked(place, method, params)
            except ChainError as error:
                return error

        expected = to_hex(keccak256(data_bytes(params[0], "a transaction")))

        def decided(given: Sequence[Any]) -> bool:
            return self._suffice([1 for one in given if _lower(one) == expected or _holds(one)])

        answers = await self._side_by_side(send, decided)
        errors = [one for one in answers.values() if isinstance(one, ChainError)]
        taken = {n: one for n, one in answers.items() if not isinstance(one, ChainError)}
        odd = {node for node, value in taken.items() if _lower(value) != expected}
        self._note_others(method, answers, odd)
        if len(odd) < len(taken):
            return expected
        # What a node says of the transaction is worth more than that another one is away.
        refused = [error for error in errors if not isinstance(error, RpcUnavailable)]
        if any(map(_holds, refused)):
            return expected  # a node holds it, whatever the others think of its fee
        if refused:
            first = refused[0]
            if isinstance(first, RpcRefused):
                by = sum(isinstance(error, RpcRefused) for error in refused)
                first.by_all = by == len(self._nodes)
            raise first
        if odd:
            return taken[min(odd)]
        raise errors[0]

    async def _ask_all(
        self, method: str, params: Sequence[Any], decided: _Decided, *, raw: bool = False
    ) -> tuple[list[_Said], list[ChainError]]:
        """Ask every node side by side: what they said, and why the others said nothing.

        Who is silent when it is decided is in neither.
        """

        async def ask(place: int) -> _Said | ChainError:
            try:
                value = await self._asked(place, method, params)
            except TransactionReverted as error:
                return _Said(place, f"revert {error.data.hex()}", revert=error)
            except ChainError as error:
                return error
            return _Said(place, "" if raw else _comparable(method, value), value)

        def is_enough(given: Sequence[_Said | ChainError]) -> bool:
            refused = [1 for one in given if isinstance(one, RpcRefused | AnswerTooLarge)]
            hopeless = len(refused) > len(self._nodes) - self._quorum
            said = [one for one in given if isinstance(one, _Said)]
            return decided(said) or (hopeless and self._suffice(refused))

        answers = (await self._side_by_side(ask, is_enough)).values()
        said = [answer for answer in answers if isinstance(answer, _Said)]
        return said, [answer for answer in answers if isinstance(answer, ChainError)]

    async def _side_by_side(
        self, ask: Callable[[int], Coroutine[Any, Any, T]], decided: Callable[[Sequence[T]], bool]
    ) -> dict[int, T]:
        """Ask every node until that decides, and a grace longer. By place: what each one gave.

        Nothing goes on behind it.
        """
        tasks = [asyncio.create_task(ask(place)) for place in range(len(self._nodes))]
        try:
            pending = set(tasks)
            while pending and not decided([task.result() for task in tasks if task.done()]):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            waited = {
                n: task for n, task in enumerate(tasks) if not (task.done() or self._rests(n))
            }
            if waited:
                await asyncio.wait(waited.values(), timeout=RPC_GRACE_S)
            for place, task in waited.items():
                if not task.done():
                    self._note_silent(place)
            return {place: task.result() for place, task in enumerate(tasks) if task.done()}
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _asked(self, place: int, method: str, params: Sequence[Any]) -> Any:
        """Ask one node, and remember whether it answers at all."""
        try:
            value = await self._nodes[place].call(method, *params)
        except RpcUnavailable as error:
            if not isinstance(error, RpcLimited):
                self._note_silent(place)
            raise
        except ChainError:
            self._silences.pop(place, None)
            raise
        self._silences.pop(place, None)
        return value

    def _rests(self, place: int) -> bool:
        """Whether nobody waits for a node now."""
        rest = self._silences.get(place)
        return rest is not None and asyncio.get_running_loop().time() < rest.until

    def _note_silent(self, place: int) -> None:
        """Let a node rest. Questions that were asked side by side count once."""
        if self._rests(place):
            return
        before = self._silences.get(place)
        length = RPC_REST_S if before is None else min(2 * before.length_s, MAX_RPC_REST_S)
        until = asyncio.get_running_loop().time() + length
        self._silences[place] = _Rest(until, length)

    def _note_odd(self, method: str, said: Sequence[_Said], key: str) -> None:
        for one in said:
            if one.key != key:
                self.odd[one.node] = method
            elif self.odd.get(one.node) == method:
                del self.odd[one.node]

    def _note_others(self, method: str, said: Iterable[int], odd: set[int]) -> None:
        """Note who is odd by a rule of its own, and forgive the others that said something."""
        for node in said:
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


def _holds(answer: Any) -> bool:
    """Whether a node refused a transaction because it has it."""
    return isinstance(answer, RpcRefused) and classify(answer.message) is Answer.KNOWN


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
