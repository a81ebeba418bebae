"""Which operators are registered: the chain's word, kept for some minutes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from piecework.base.clock import Clock
from piecework.base.dialling import Dialler
from piecework.base.errors import PieceworkError
from piecework.chain.errors import ChainError
from piecework.chain.reading.reader import RegisteredWorker
from piecework.dialback import DialBackServer, chain_unavailable
from piecework.relay.limits import (
    MAX_OPERATORS,
    REGISTERED_S,
    REGISTRY_CALLS,
    REGISTRY_S,
    STALE_S,
    UNREGISTERED_S,
)
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address


class RegistryAway(PieceworkError):
    """The chain does not say whether an operator is registered."""


class WorkerRegistry(Protocol):
    """What a relay reads from the chain. `chain.reader.ChainReader` is one."""

    async def worker(self, operator: Address) -> RegisteredWorker | None: ...


@dataclass(frozen=True, slots=True)
class _Known:
    registered: bool
    at: float
    """Monotonic seconds."""


class RegisteredOperators:
    """Answers from memory where it can. Strangers cannot make it ask more than it wants to."""

    def __init__(self, registry: WorkerRegistry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock
        self._known: OrderedDict[Address, _Known] = OrderedDict()
        self._gate = asyncio.Semaphore(REGISTRY_CALLS)

    async def is_registered(self, operator: Address) -> bool:
        """Whether an operator has an active stake.

        Raises:
            RegistryAway: the chain does not answer, and nothing recent is known.
        """
        known = self._known.get(operator)
        age = float("inf") if known is None else self._clock.monotonic() - known.at
        if known is not None and age < (REGISTERED_S if known.registered else UNREGISTERED_S):
            return known.registered
        try:
            async with asyncio.timeout(REGISTRY_S), self._gate:
                worker = await self._registry.worker(operator)
        except (ChainError, TimeoutError):
            if known is not None and known.registered and age < STALE_S:
                return True
            raise RegistryAway("the chain does not answer") from None
        registered = worker is not None and worker.active
        self._known.pop(operator, None)
        self._known[operator] = _Known(registered, self._clock.monotonic())
        if len(self._known) > MAX_OPERATORS:
            self._known.popitem(last=False)
        return registered


def dial_back_server(
    operators: RegisteredOperators, dialler: Dialler, market: Domain, clock: Clock
) -> DialBackServer:
    """Build what dials for these operators. market: the domain of its escrow."""

    async def is_bonded(operator: Address) -> bool:
        try:
            return await operators.is_registered(operator)
        except RegistryAway:
            raise chain_unavailable() from None

    return DialBackServer(dialler, market, is_bonded, clock)
