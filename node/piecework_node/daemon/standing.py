"""What the registry says of the worker: clients and indexes believe it, and not the worker."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

from piecework.base.text import one_line
from piecework.chain.contracts.records import RegisteredWorker
from piecework.chain.errors import ChainError
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_protocol.types import Address, address_hex

REGISTRATION: Final = "registration"
"""The name under which registration, stake and payout are reported to the board."""
REGISTERED_ADDRESS: Final = "registered address"
MAX_SHOWN_CHARACTERS: Final = 100
LOOK_S: Final = 120.0
"""Between two looks. The stake of a worker does not vanish within seconds."""


class RegistrySource(Protocol):
    """What is read of the registry. `chain.reader.ChainReader` is one."""

    async def worker(self, operator: Address) -> RegisteredWorker | None:
        """Return what the registry says of an operator.

        Raises:
            ChainError: the node does not say.
        """
        ...


class StandingWatch:
    """Reports to the board whether clients may trust this worker with jobs."""

    def __init__(
        self,
        registry: RegistrySource,
        board: FaultBoard,
        *,
        operator: Address,
        receiver: Address,
        addresses: tuple[str, ...],
    ) -> None:
        """addresses: where clients reach the worker. The registered one should be among them, for
        clients that no index answers. Without any they change with each start.
        """
        self._registry, self._board = registry, board
        self._operator, self._receiver, self._addresses = operator, receiver, addresses

    async def run(self, poll_s: float) -> None:
        """Look again and again until cancelled. What is wrong is looked at after `poll_s`."""
        while True:
            await asyncio.sleep(poll_s if self._board.is_failing(REGISTRATION) else LOOK_S)
            await self.look_if_told()

    async def look_if_told(self) -> None:
        """Look once. A node that does not answer is for others to report."""
        with contextlib.suppress(ChainError):
            await self.look()

    async def look(self) -> RegisteredWorker | None:
        """Look once, and return what the registry says.

        Raises:
            ChainError: the node does not say. The board stays as it was.
        """
        known = await self._registry.worker(self._operator)
        found = self._judge(known)
        if found is None:
            self._board.passed(REGISTRATION)
        else:
            self._board.failed(REGISTRATION, *found)
        if known is None or not self._addresses or known.endpoint in self._addresses:
            self._board.passed(REGISTERED_ADDRESS)
        else:
            named = one_line(known.endpoint, MAX_SHOWN_CHARACTERS) or "nothing"
            detail = f"{named} is registered, and the worker is at {', '.join(self._addresses)}"
            self._board.failed(REGISTERED_ADDRESS, Code.ENDPOINT_DIFFERS, detail)
        return known

    def _judge(self, known: RegisteredWorker | None) -> tuple[Code, str] | None:
        if known is None:
            name = address_hex(self._operator)
            return Code.NOT_REGISTERED, f"the operator {name} is not in the registry"
        if not known.active:
            leaving = known.unbond_requested_at > 0
            why = "its owner has asked for it back" if leaving else "it is too small or frozen"
            return Code.STAKE_INACTIVE, f"the stake is not active: {why}"
        if known.payout != self._receiver:
            registered, own = address_hex(known.payout), address_hex(self._receiver)
            return Code.PAYOUT_DIFFERS, f"the registered payout is {registered}, and ours is {own}"
        return None
