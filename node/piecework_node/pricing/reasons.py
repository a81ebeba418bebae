"""What the rule decided, in words for the owner. Pure."""

from __future__ import annotations

from typing import Final

from piecework.base.amounts import Token
from piecework_node.pricing.rule import (
    DEAD_BAND_PERCENT,
    ENOUGH_OPERATORS,
    Decision,
    Outcome,
    PriceRules,
)

PER: Final = "million output tokens with their steps"
_OUTCOMES: Final = {
    Outcome.MOVED: "moved one step towards the market",
    Outcome.NEAR: f"the market is less than {DEAD_BAND_PERCENT} % away: nothing changes",
    Outcome.AT_LEAST: "the market asks less than the least",
    Outcome.AT_MOST: "the market asks more than your own prices: raise them if you want more",
    Outcome.TOO_FEW: f"fewer than {ENOUGH_OPERATORS} other operators offer the model: no market",
    Outcome.TOO_SOON: "the last move is less than an hour ago",
}


def reasons(made: Decision, rules: PriceRules, token: Token, unknown: str) -> tuple[str, ...]:
    """Say what is asked and why, a line for each fact. unknown: why nobody says what others ask."""
    power, gas = made.floor.power, made.floor.gas
    lines = [_OUTCOMES.get(made.outcome, unknown)]
    if made.market is not None:
        market = token.format_price(made.market, PER)
        lines.append(f"{made.operators} other operators ask {market} at the median")
    share = f"{rules.least_percent} % of your own prices"
    floor = made.floor.units
    if floor is None:
        lines.append(f"at least {token.format(made.least)}: {share}. What it costs is not known")
    else:
        above = " and more than your own prices" if floor > made.most else ""
        cost = f"what it costs, {token.format(floor)}{above}"
        lines.append(f"at least {token.format(made.least)}: the larger of {share} and {cost}")
    for name, part in (("power", power), ("gas", gas)):
        amount = "not counted" if part.units is None else token.format(part.units)
        lines.append(f"{name}: {amount} ({part.source})")
    lines.append(f"at most {token.format(made.most)}: your own prices")
    return tuple(lines)
