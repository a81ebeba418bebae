"""Payouts that wait in the escrow: fees for transactions, and what a token refused to pay out.

They wait for the receiver under its token. Anybody may push them there, and nowhere else. The
worker pushes when they are worth their gas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from piecework.base.clock import Clock
from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet, Worth
from piecework_node.settlement.chain import ChainPort
from piecework_node.settlement.policy import SettlePolicy, Urgency, in_units, worth_of
from piecework_protocol.types import Address, Amount

PUSH_GAS: Final = 65_000
"""Measured with a plain token, and with room for one behind a proxy. A test holds it."""
PUSH_BYTES: Final = 200
LOOK_INTERVAL_S: Final = 60.0
META: Final = "payout_waiting/"
"""The journal keeps under this and the token what waited at the last look."""


class Payouts:
    """What waits for one receiver."""

    def __init__(
        self,
        port: ChainPort,
        journal: Journal,
        policy: SettlePolicy,
        clock: Clock,
        *,
        receiver: Address,
        tokens: tuple[Address, ...],
    ) -> None:
        self._port, self._journal, self._policy, self._clock = port, journal, policy, clock
        self.receiver, self._tokens = receiver, tokens
        self._waiting: dict[Address, Amount] = {}
        self._since: dict[Address, float] = {}
        self._looked_at = float("-inf")

    @property
    def waiting(self) -> Mapping[Address, Amount]:
        """Base units that wait, by token, as of the last look. Those of which some do."""
        return {token: amount for token, amount in self._waiting.items() if amount}

    async def look(self, *, now: bool = False) -> None:
        """Ask what waits, at most once a minute unless it must be now.

        Raises:
            ChainError: the node does not answer.
        """
        moment = self._clock.monotonic()
        if not now and moment - self._looked_at < LOOK_INTERVAL_S:
            return
        for token in self._tokens:
            amount = await self._port.waiting_payout(token, self.receiver)
            if amount != self._waiting.get(token):
                await self._journal.append([MetaSet(META + token.hex(), str(amount))])
            self._waiting[token] = amount
            if amount:
                self._since.setdefault(token, moment)
            else:
                self._since.pop(token, None)
        self._looked_at = moment

    def due(self, price: GasPrice, urgency: Urgency) -> tuple[Address, Worth] | None:
        """The token that is worth a push now, and what that may cost. None: they wait on."""
        asked = urgency is Urgency.ASKED
        wei = PUSH_GAS * price.wei_per_gas + PUSH_BYTES * price.data.wei_per_byte
        cost, moment = in_units(self._policy, wei), self._clock.monotonic()
        for token, amount in self.waiting.items():
            waited = moment - self._since[token] >= self._policy.interval_s
            rich = bool(cost) and amount >= cost * self._policy.gas_multiple
            if asked or rich or ((waited or urgency) and amount > cost):
                worth = worth_of(self._policy, amount)
                return token, Worth(worth.units, None) if asked else worth
        return None
