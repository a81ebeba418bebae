"""What the rule decided, in words for the owner. Pure."""

from __future__ import annotations

from typing import Final

from piecework.base.amounts import Token
from piecework_node.pricing.rule import (
    DEAD_BAND_PERCENT,
    ENOUGH_OPERATORS,
    PriceDecision,
    PriceOutcome,
    PriceRules,
)

PER: Final = "million output tokens with their steps"
_OUTCOMES: Final = {
    PriceOutcome.MOVED: "moved one step towards the market",
    PriceOutcome.NEAR: f"the market is less than {DEAD_BAND_PERCENT} % away: nothing changes",
    PriceOutcome.AT_LEAST: "the market asks less than the least",
    PriceOutcome.AT_MOST: "the market asks more than your own prices: raise them if you want more",
    PriceOutcome.TOO_FEW: f"fewer than {ENOUGH_OPERATORS} other operators offer the model",
    PriceOutcome.TOO_SOON: "the last move is less than an hour ago",
}


def reasons(
    made: PriceDecision, rules: PriceRules, token: Token, unknown: str
) -> tuple[tuple[str, str], ...]:
    """Say why a price is asked: what each line is about, and the line.

    unknown: why nobody says what others ask.
    """
    lines = [
        ("asked", token.format_price(made.asked.blended, PER)),
        ("why", _OUTCOMES.get(made.outcome, unknown)),
    ]
    if made.market is not None:
        market = f"{token.format(made.market)}, the median of {made.operators} other operators"
        lines.append(("market", market))
    share, floor = f"{rules.least_percent} % of your own prices", made.floor.units
    if floor is None:
        least = f"{share}. What it costs is not known"
    else:
        above = ", more than your own prices" if floor > made.most else ""
        least = f"the larger of {share} and its cost, {token.format(floor)}{above}"
    lines += [
        ("most", f"{token.format(made.most)}, your own prices"),
        ("least", f"{token.format(made.least)}, {least}"),
    ]
    for name, part in (("power", made.floor.power), ("gas", made.floor.gas)):
        amount = "not counted" if part.units is None else token.format(part.units)
        lines.append((name, f"{amount}: {part.source}"))
    return tuple(lines)
