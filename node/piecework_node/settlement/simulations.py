"""Simulations of openings: at most one for each payer and block.

A payer that sends one authorization after the other cannot make the worker ask the node for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from piecework.chain.sending.transactions import WouldDo
from piecework_node.settlement.chain import ChainPort
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.types import Address

MAX_REMEMBERED: Final = 4096
"""Payers of one block. Beyond this the oldest is forgotten."""


class OpeningSimulations:
    """Whether the chain would carry out an authorization, by payer, for the block of now."""

    def __init__(self, port: ChainPort, height: Callable[[], int]) -> None:
        """`height` gives the highest block that was seen."""
        self._port, self._height = port, height
        self._at = -1
        self._known: dict[Address, bool] = {}

    async def would_open(self, funding: FundingAuthorization) -> bool:
        """Return whether the authorization would succeed now.

        A second authorization of a payer in one block is told what the first one was told.

        Raises:
            ChainError: the node does not say.
        """
        if self._height() != self._at:
            self._at = self._height()
            self._known.clear()
        payer = funding.authorization.channel.payer
        known = self._known.get(payer)
        if known is not None:
            return known
        would = isinstance(await self._port.simulate_fund(funding), WouldDo)
        if len(self._known) >= MAX_REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[payer] = would
        return would
