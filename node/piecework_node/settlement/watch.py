"""Watch the chain's node, its head, the clock and the gas tank, instead of trusting them.

One round asks the node every kind of question that settlement needs, before settlement needs it.
What fails goes to the board under the probe's name. `worker check` runs one round, the daemon runs
one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from piecework.base.clock import Clock
from piecework.chain.errors import ChainError, InsufficientGas, TransactionReverted
from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS
from piecework.chain.sending.transactions import GasPrice
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard, code_of
from piecework_node.settlement.policy import settle_wei
from piecework_protocol.types import Timestamp

RESERVE_SETTLEMENTS: Final = 5
"""Settlements of one claim that the gas tank must pay for at the present price."""
HEAD_BLOCKS: Final = 10
MIN_HEAD_AGE_S: Final = 60.0
"""The head is too old after ten times the block time, and at least this. Proposers miss slots."""
MAX_CLOCK_BEHIND_S: Final = 30.0
"""Blocks do not come from the future. Further behind them our clock is wrong."""
MAX_DEVELOPMENT_CLOCK_BEHIND_S: Final = 300.0
"""Tests of a development chain move its clock."""


class NodePort(Protocol):
    """The questions of the watch. Every method raises `ChainError`."""

    async def verify(self) -> None: ...

    async def head(self) -> tuple[int, Timestamp]: ...

    async def gas_price(self) -> GasPrice: ...

    async def gas_balance(self) -> int:
        """Return wei that the operator holds."""
        ...

    async def finalized(self) -> int:
        """Return the height up to which blocks are final."""
        ...

    async def ask_nonce(self) -> None:
        """Ask for the operator's next nonce, and whether others use its key."""
        ...

    async def ask_estimate(self) -> None:
        """Ask for the gas of a transfer of nothing to ourselves. A revert is not an answer."""
        ...

    async def ask_outcome(self) -> None:
        """Ask for the outcome of a transaction that does not exist."""
        ...

    async def ask_send(self) -> None:
        """Send bytes that are not a transaction. A node that takes transactions refuses them."""
        ...

    async def ask_logs(self, block: int) -> None:
        """Search one block for events."""
        ...

    @property
    def odd_nodes(self) -> Mapping[int, str]:
        """Nodes of a quorum that differ from it, with the method."""
        ...


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """What the watch tolerates, in seconds."""

    head_age_s: float | None
    """None: a development chain, which mines when it is asked to."""
    clock_behind_s: float

    @classmethod
    def of(cls, chain_id: int, block_time_s: float) -> WatchLimits:
        """Return the limits for a chain whose blocks come every `block_time_s` seconds."""
        if chain_id in DEVELOPMENT_CHAIN_IDS:
            return cls(None, MAX_DEVELOPMENT_CLOCK_BEHIND_S)
        return cls(max(MIN_HEAD_AGE_S, HEAD_BLOCKS * block_time_s), MAX_CLOCK_BEHIND_S)


Probe = Callable[["NodeWatch"], Awaitable[None]]


class NodeWatch:
    """The watch of one chain node."""

    def __init__(
        self,
        port: NodePort,
        board: FaultBoard,
        *,
        clock: Clock,
        limits: WatchLimits,
        metrics: Metrics,
    ) -> None:
        self._port, self.board, self._clock = port, board, clock
        self._limits, self._metrics = limits, metrics
        self._height = -1
        self._moved_at = clock.monotonic()
        self._price = GasPrice(0)

    @property
    def height(self) -> int:
        """The highest block that was seen. -1: none yet."""
        return self._height

    @property
    def price(self) -> GasPrice:
        """The gas price that was seen last. 0 before the first look."""
        return self._price

    async def round(self) -> None:
        """Make every check, side by side. What each found is on the board afterwards."""
        await self.look_at_head()
        await asyncio.gather(*(self._probe(name, ask) for name, ask in _PROBES.items()))
        # After the others: it weighs the balance with the price that they found.
        await self._probe("gas tank", NodeWatch._gas_tank)
        self._note_odd_nodes()

    @property
    def failing(self) -> bool:
        """Whether a check of the last round failed, so that the next one is due at once."""
        return self.board.is_failing("head", "gas tank", *_PROBES)

    async def look_at_head(self) -> bool:
        """Check that the head moves and that it is of our time. Return whether the node told."""
        try:
            height, block_time = await self._port.head()
        except ChainError as error:
            self._failed("head", error)
            return False
        found = self._judge(height, block_time)
        if found is None:
            self.board.passed("head")
        else:
            self.board.failed("head", *found)
        return True

    def _judge(self, height: int, block_time: Timestamp) -> tuple[Code, str] | None:
        moment, age = self._clock.monotonic(), self._clock.wall() - block_time
        if height > self._height:
            self._height, self._moved_at = height, moment
        self._metrics.head(age)
        if -age > self._limits.clock_behind_s:
            return Code.CLOCK_BEHIND, f"the latest block is from {-age:.0f} s in the future"
        most = self._limits.head_age_s
        if most is None or age <= most:
            return None
        still = moment - self._moved_at
        moves = f"has stood for {still:.0f} s" if still > most else "moves"
        return Code.HEAD_OLD, f"block {height} is {age:.0f} s old, and the head {moves}"

    async def _probe(self, name: str, ask: Probe) -> None:
        try:
            await ask(self)
        except TransactionReverted as error:
            # No probe asks anything that can revert. A node that says so would let none of our
            # transactions be signed.
            self.board.failed(name, Code.NODE_BROKEN, f"{name}: {error}")
        except ChainError as error:
            self._failed(name, error)
        else:
            self.board.passed(name)

    def _failed(self, check: str, error: ChainError) -> None:
        self.board.failed(check, code_of(error) or Code.NODE_REFUSES, str(error))

    # --- probes

    async def _contracts(self) -> None:
        await self._port.verify()

    async def _finality(self) -> None:
        await self._port.finalized()

    async def _gas_price(self) -> None:
        self._price = await self._port.gas_price()

    async def _nonce(self) -> None:
        await self._port.ask_nonce()

    async def _estimate(self) -> None:
        await self._port.ask_estimate()

    async def _outcome(self) -> None:
        await self._port.ask_outcome()

    async def _send(self) -> None:
        await self._port.ask_send()

    async def _logs(self) -> None:
        await self._port.ask_logs(max(0, self._height))

    async def _gas_tank(self) -> None:
        held = await self._port.gas_balance()
        self._metrics.tank(held)
        needed = RESERVE_SETTLEMENTS * settle_wei(self._price)
        if held < needed:
            raise InsufficientGas(
                f"the operator holds {held} wei, and {RESERVE_SETTLEMENTS} settlements may cost "
                f"{needed}"
            )

    def _note_odd_nodes(self) -> None:
        odd = self._port.odd_nodes
        if not odd:
            self.board.passed("quorum")
            return
        named = ", ".join(f"number {node + 1} ({method})" for node, method in sorted(odd.items()))
        self.board.failed("quorum", Code.NODE_ODD, f"of rpc_urls {named}")


_PROBES: Final[Mapping[str, Probe]] = {
    "contracts": NodeWatch._contracts,
    "finality": NodeWatch._finality,
    "gas price": NodeWatch._gas_price,
    "nonce": NodeWatch._nonce,
    "estimate": NodeWatch._estimate,
    "outcome": NodeWatch._outcome,
    "send": NodeWatch._send,
    "logs": NodeWatch._logs,
}
CHECKS: Final = ("head", "gas tank", *_PROBES)
"""The names under which the watch reports to the board."""
