"""What a million output tokens cost the owner: power and gas, each with its source. Pure.

What is not known is None and counts nothing, and the source says why. Dollars come from the owner's
own settings alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

JOULES_PER_KWH: Final = 3_600_000
MILLION: Final = 1_000_000
ENOUGH_TOKENS: Final = 10_000
"""Energy over fewer tokens says too little."""
ENOUGH_CANVASES: Final = 100
"""Gas over fewer canvases says too little: one settlement pays for many."""
MAX_UNITS: Final = 2**96


@dataclass(frozen=True, slots=True)
class CostPart:
    """Base units for a million output tokens, and where they come from. None: not known."""

    units: int | None
    source: str


@dataclass(frozen=True, slots=True)
class Floor:
    """What a million output tokens cost, as far as it is known."""

    power: CostPart
    gas: CostPart

    @property
    def units(self) -> int | None:
        """The sum of what is known. None: nothing is."""
        known = [part.units for part in (self.power, self.gas) if part.units is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class PowerFacts:
    """What is known of the energy of a token.

    Attributes:
        joules: That the cards drew while jobs ran, by NVML. None: they do not tell.
        tokens: Charged in that time.
        watts: That the machine draws while jobs run, by the owner's own setting. 0: not set.
        tokens_per_second: Of all jobs together, as the engine was measured.
    """

    joules: float | None
    tokens: int
    watts: int
    tokens_per_second: int

    @property
    def joules_per_token(self) -> tuple[float | None, str]:
        """Return the energy of an output token and its source."""
        if self.joules is not None and self.tokens >= ENOUGH_TOKENS:
            each = self.joules / self.tokens
            return each, f"{each:.3g} J a token by NVML over {self.tokens:,} tokens"
        if self.watts and self.tokens_per_second:
            each = self.watts / self.tokens_per_second
            return each, f"{self.watts} W by busy_power_w at {self.tokens_per_second} tokens/s"
        if self.joules is None:
            return None, "no card tells its energy: set busy_power_w"
        return (
            None,
            f"fewer than {ENOUGH_TOKENS:,} tokens were measured, and no busy_power_w is set",
        )


def power_cost(
    facts: PowerFacts, usd_per_kwh: float | None, usd_per_token: float | None, decimals: int
) -> CostPart:
    """Return what the power of a million tokens costs, by the owner's own prices."""
    each, source = facts.joules_per_token
    if each is None:
        return CostPart(None, source)
    if not usd_per_kwh or not usd_per_token:
        return CostPart(None, f"{source}, but usd_per_kwh and usd_per_token are not set")
    usd = each * MILLION / JOULES_PER_KWH * usd_per_kwh
    units = usd / usd_per_token * 10**decimals
    if not math.isfinite(units) or units > MAX_UNITS:
        return CostPart(None, f"{source}, but usd_per_kwh and usd_per_token give no price")
    return CostPart(math.ceil(units), f"{source}, ${usd_per_kwh:g} a kWh")


def gas_cost(gas: int, fees: int, canvases: int, canvas_tokens: int) -> CostPart:
    """Return what the gas of a million tokens costs.

    Args:
        gas: Base units that the worker's transactions of the last days have cost.
        fees: Base units that clients paid for such transactions.
        canvases: Delivered in these days.
        canvas_tokens: Of one canvas.
    """
    if canvases < ENOUGH_CANVASES or canvas_tokens < 1:
        few = f"fewer than {ENOUGH_CANVASES} canvases in the last days: no gas is counted"
        return CostPart(None, few)
    left = max(0, gas - fees)
    units = -(-left * MILLION // (canvases * canvas_tokens))
    source = f"gas of the last days less fees, over {canvases:,} canvases"
    return CostPart(min(units, MAX_UNITS), source)
