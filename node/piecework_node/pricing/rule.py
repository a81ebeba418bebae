"""The rule of automatic prices (docs/owners/prices.md). Pure.

The owner's own prices are the most that is asked. What a million tokens cost the owner, and a share
of the own prices, are the least. Between the two the worker follows the median of what others ask.
All prices here are blended: base units for a million output tokens and the denoising steps that
they take at the mean. The three prices of an offer follow in the owner's own proportions.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from piecework_node.pricing.costs import Floor

HOUR_S: Final = 3600
DEAD_BAND_PERCENT: Final = 3
"""A market that is so near leaves the prices alone. So an offer does not change for nothing."""
ENOUGH_OPERATORS: Final = 3
"""Fewer others are not a market: one of them alone would set our price."""
_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class OwnPrices:
    """What the owner has set, in base units.

    prompt, output: for a million tokens. steps: for a thousand denoising steps.
    steps_per_million: steps of a million output tokens at the mean.
    """

    prompt: int
    output: int
    steps: int
    steps_per_million: int

    @property
    def blended(self) -> int:
        """Base units for a million output tokens and their steps."""
        return self.output + self.steps_per_million * self.steps // 1000

    def at(self, blended: int) -> OwnPrices:
        """Return prices in the same proportions. Each is rounded up, and none goes up."""
        whole = self.blended
        if blended >= whole:
            return self
        prompt, output, steps = (
            -(-one * max(0, blended) // whole) for one in (self.prompt, self.output, self.steps)
        )
        return OwnPrices(prompt, output, steps, self.steps_per_million)


@dataclass(frozen=True, slots=True)
class PriceRules:
    """What the owner has set. Percent of the own prices, and of a price in an hour."""

    least_percent: int
    step_percent: int


@dataclass(frozen=True, slots=True)
class AskedPrice:
    """The blended price that is asked, and when the market last moved it, in Unix seconds."""

    blended: int
    moved_at: int = 0


class PriceOutcome(enum.Enum):
    """What the rule made of a look at the market."""

    MOVED = "moved"
    """One step towards the market."""
    NEAR = "near"
    """The market is so near that nothing changes."""
    AT_LEAST = "at-least"
    """The market asks less than the least."""
    AT_MOST = "at-most"
    """The market asks more than the own prices."""
    TOO_FEW = "too-few"
    """Too few others offer the model."""
    UNKNOWN = "unknown"
    """Nobody says what others ask."""
    TOO_SOON = "too-soon"
    """The last move is less than an hour ago."""


@dataclass(frozen=True, slots=True)
class PriceDecision:
    """What is asked from now on, and why.

    Attributes:
        asked: The price, and when it last moved.
        least: Nothing below it is asked. Never above `most`.
        most: The owner's own prices.
        floor: What a million tokens cost the owner, as far as that is known.
        market: The median of the others. None: nobody says, or they are too few.
        operators: How many others were counted, each once.
        outcome: What the rule made of it.
    """

    asked: AskedPrice
    least: int
    most: int
    floor: Floor
    market: int | None
    operators: int
    outcome: PriceOutcome


def decide(
    asked: AskedPrice | None,
    own: OwnPrices,
    rules: PriceRules,
    floor: Floor,
    *,
    others: Sequence[int] | None,
    now: int,
) -> PriceDecision:
    """Apply the rule to one look at the market.

    Args:
        asked: What was asked until now. None: the own prices.
        own: The most that is asked.
        rules: How far and how fast prices may move.
        floor: What a million tokens cost.
        others: The blended price of each other operator. None: nobody says.
        now: Unix seconds.

    A clock that was set back counts as a move: the next one is an hour away.
    """
    most = own.blended
    least = min(most, max(-(-most * rules.least_percent // _PERCENT), floor.units or 0))
    asked = AskedPrice(most) if asked is None else asked
    asked = AskedPrice(min(most, max(least, asked.blended)), min(asked.moved_at, now))
    operators = 0 if others is None else len(others)
    made = PriceDecision(asked, least, most, floor, None, operators, PriceOutcome.UNKNOWN)
    if others is None:
        return made
    if operators < ENOUGH_OPERATORS:
        return replace(made, outcome=PriceOutcome.TOO_FEW)
    made = replace(made, market=median(others))
    if now - asked.moved_at < HOUR_S:
        return replace(made, outcome=PriceOutcome.TOO_SOON)
    return _towards(made, median(others), rules, now)


def _towards(made: PriceDecision, market: int, rules: PriceRules, now: int) -> PriceDecision:
    """Go half of the way to the market, at most a step.

    Half of the way, because two workers that follow each other would otherwise change places with
    every step.
    """
    price = made.asked.blended
    gap = min(made.most, max(made.least, market)) - price
    move = min(abs(gap) // 2, max(1, price * rules.step_percent // _PERCENT))
    if not move or abs(gap) * _PERCENT < price * DEAD_BAND_PERCENT:
        near = PriceOutcome.NEAR
        if market < made.least:
            near = PriceOutcome.AT_LEAST
        elif market > made.most:
            near = PriceOutcome.AT_MOST
        return replace(made, outcome=near)
    moved = AskedPrice(price + (move if gap > 0 else -move), now)
    return replace(made, asked=moved, outcome=PriceOutcome.MOVED)


def median(prices: Sequence[int]) -> int:
    """Return the price in the middle, or between the two in the middle."""
    ordered = sorted(prices)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[-middle - 1]) // 2
