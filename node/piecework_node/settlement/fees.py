"""What the worker asks for sending a client's transaction, and whether a fee pays for one. Pure.

A fee is worth its transaction when it covers 1.2 times the gas, the data fee of a rollup included.
A fee that the operator did not set follows the gas price, with room for a rise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.records import Worth
from piecework_node.runtime.fees import OfferedFees
from piecework_node.settlement.policy import WEI_PER_COIN, SettlePolicy, worth_of
from piecework_protocol.limits import MAX_CHANNEL_AMOUNT
from piecework_protocol.types import Amount

COVER_PERCENT: Final = 120
"""How much of its gas a fee must cover."""
GAS_PRICE_ROOM: Final = 2
"""A computed fee still covers the gas after the gas price has doubled."""
SIGNIFICANT_DIGITS: Final = 2
"""Of a computed fee, rounded up. Small moves of the gas price change no offer."""


class Takes(NamedTuple):
    """What a transaction takes."""

    gas: int
    data_bytes: int


class Errand(enum.Enum):
    """A transaction that a worker sends for a client."""

    OPEN = "open"
    TOP_UP = "top up"
    CLOSE = "close"


NEEDS: Final = {
    Errand.OPEN: Takes(130_000, 700),
    Errand.TOP_UP: Takes(110_000, 700),
    Errand.CLOSE: Takes(75_000, 900),
}
"""The dearest form of each. A test holds the gas to the contracts' own measurements."""


@dataclass(frozen=True, slots=True)
class FeeSettings:
    """What the operator set, in base units. None: computed from the gas price."""

    open: Amount | None = None
    top_up: Amount | None = None
    close: Amount | None = None
    min_top_up: Amount = Amount(0)
    credit_first: Amount = Amount(0)
    """What a payer may owe whose opening is not mined. An opening costs at least this."""


def errand_wei(price: GasPrice, errand: Errand) -> int:
    """Return what a transaction costs now, in wei, its data included."""
    need = NEEDS[errand]
    return need.gas * price.wei_per_gas + need.data_bytes * price.data.wei_per_byte


def worth_of_fee(policy: SettlePolicy, fee: int) -> Worth:
    """Return the most that a transaction may cost which brings this fee."""
    worth = worth_of(policy, fee)
    return worth if worth.wei is None else Worth(worth.units, worth.wei * 100 // COVER_PERCENT)


class FeeSchedule:
    """The fees of one worker at the gas price of now."""

    def __init__(
        self, settings: FeeSettings, policy: SettlePolicy, price: Callable[[], GasPrice]
    ) -> None:
        """`price` gives the gas price that was seen last."""
        self.settings, self._policy, self._price = settings, policy, price

    def asked(self) -> OfferedFees:
        """Return what an offer of this moment asks."""
        s = self.settings
        opening = self._asked(Errand.OPEN, s.open)
        return OfferedFees(
            open=Amount(max(opening, s.credit_first)),
            top_up=self._asked(Errand.TOP_UP, s.top_up),
            close=self._asked(Errand.CLOSE, s.close),
            min_top_up=s.min_top_up,
        )

    def covers(self, errand: Errand, fee: int) -> bool:
        """Whether a fee pays for its transaction at the gas price of now.

        That of an opening also pays for what its payer may take before it is mined.
        """
        if errand is Errand.OPEN and fee < self.settings.credit_first:
            return False
        worth = worth_of_fee(self._policy, fee)
        return worth.wei is None or errand_wei(self._price(), errand) <= worth.wei

    def _asked(self, errand: Errand, chosen: Amount | None) -> Amount:
        if chosen is not None:
            return chosen
        wei = errand_wei(self._price(), errand) * GAS_PRICE_ROOM * COVER_PERCENT
        units = -(-wei * self._policy.native_coin_price // (100 * WEI_PER_COIN))
        return Amount(min(_rounded_up(units), MAX_CHANNEL_AMOUNT))


def _rounded_up(units: int) -> int:
    step: int = 10 ** max(0, len(str(units)) - SIGNIFICANT_DIGITS)
    return -(-units // step) * step
