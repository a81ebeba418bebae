"""What a worker would earn: speed times prices times utilisation, less power and gas. Pure.

Every figure has its source. What is not known is None, and a sum with it is None too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median_low
from typing import Any, Final, Protocol

from piecework_node.console.cards import GIGA, Card
from piecework_node.console.model import ShownMoney

DAY_S: Final = 24 * 3600
MONTH_DAYS: Final = 30
MEAN_STEPS: Final = 27
"""Denoising steps of a canvas on real prompts (docs/model.md)."""
ASSUMED_UTILIZATION: Final = 0.1
"""Where no index tells how busy the market is."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from. None: not known, and the source says why."""

    value: float | None
    source: str


@dataclass(frozen=True, slots=True)
class WorkerSpeed:
    """Charged tokens and denoising steps a second, of all jobs at once."""

    tokens: float
    steps: float
    source: str


@dataclass(frozen=True, slots=True)
class AskedPrices:
    """Base units for a million output tokens and for a thousand steps."""

    output: int
    steps: int
    source: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a day would bring. Amounts are base units. Prompt tokens and fees are left out."""

    speed: WorkerSpeed
    prices: AskedPrices
    utilization: Figure
    watts: Figure
    gross: int
    power: Figure
    gas: Figure

    @property
    def net(self) -> int | None:
        """What is left of a day. None: power or gas is not known."""
        if self.power.value is None or self.gas.value is None:
            return None
        return int(self.gross - self.power.value - self.gas.value)


def planned_speed(card: Card, weights_bytes: int, *, canvas_size: int) -> WorkerSpeed:
    """Bound the speed of a card that nobody has measured: one job at a time, by its memory.

    A step reads every weight once. No card is faster than that, and most are slower.
    """
    bandwidth = card.bandwidth
    steps = bandwidth.value * GIGA / weights_bytes
    tokens = steps * canvas_size / MEAN_STEPS
    return WorkerSpeed(
        tokens,
        steps,
        f"at most, one job at a time: {bandwidth.value} GB/s ({bandwidth.source}) over "
        f"{weights_bytes / GIGA:.1f} GB of weights, {MEAN_STEPS} steps a canvas",
    )


class WorkerAsk(Protocol):
    """What one worker asks for a model (`pricing.market.OperatorAsk`)."""

    @property
    def output(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def slots(self) -> int: ...

    @property
    def slots_free(self) -> int: ...


def market(asks: Sequence[WorkerAsk]) -> tuple[AskedPrices | None, Figure]:
    """Return the median price of other workers, each once, and how busy they are.

    asks: of one model at one service in one token, verified. Each worker has the same weight in the
    utilisation: a stake buys one voice, however many slots somebody claims.
    """
    if not asks:
        return None, Figure(None, "no other worker offers the model")
    count = f"{len(asks)} other worker{'' if len(asks) == 1 else 's'}"
    prices = AskedPrices(
        median_low(ask.output for ask in asks),
        median_low(ask.steps for ask in asks),
        f"the median of what {count} with a stake ask{'s' if len(asks) == 1 else ''} now",
    )
    busy = [1 - min(ask.slots_free, ask.slots) / ask.slots for ask in asks if ask.slots]
    if not busy:
        return prices, Figure(None, "these workers state no slots")
    return prices, Figure(fmean(busy), "the mean share of these workers' slots that is busy now")


def estimate(
    speed: WorkerSpeed,
    prices: AskedPrices,
    utilization: Figure,
    *,
    watts: Figure,
    money: ShownMoney,
    gas_a_day: Figure,
) -> Estimate:
    """Put it together for a day. utilization: the busy share of the time, from 0 to 1.

    watts: that the card draws while it is busy.
    """
    share = utilization.value if utilization.value is not None else ASSUMED_UTILIZATION
    if utilization.value is None:
        utilization = Figure(share, f"assumed, because {utilization.source}")
    busy_s = share * DAY_S
    gross = (
        speed.tokens * busy_s * prices.output / 10**6 + speed.steps * busy_s * prices.steps / 1000
    )
    return Estimate(
        speed,
        prices,
        utilization,
        watts,
        int(gross),
        _power(watts, busy_s, money),
        gas_a_day,
    )


def _power(watts: Figure, busy_s: float, money: ShownMoney) -> Figure:
    if watts.value is None:
        return Figure(None, watts.source)
    if money.usd_per_kwh is None or money.usd_per_token is None:
        return Figure(None, "set usd_per_kwh and usd_per_token, or give them as options")
    kwh = watts.value * busy_s / 3_600_000
    usd = kwh * money.usd_per_kwh
    units = usd / money.usd_per_token * 10**money.decimals
    return Figure(units, f"{kwh:.2f} kWh a day at ${money.usd_per_kwh}, while busy")


def best_line(lines: Sequence[Mapping[str, Any]], slots: int) -> WorkerSpeed | None:
    """Take the speed at the worker's number of slots from a table of `piecework bench`."""
    fitting = [line for line in lines if isinstance(line.get("rows"), int | float)]
    fitting = [line for line in fitting if line["rows"] <= slots] or fitting[:1]
    if not fitting:
        return None
    best = max(fitting, key=lambda line: float(line["rows"]))
    try:
        tokens, steps = float(best["tokens_per_second"]), float(best["steps_per_second"])
    except (KeyError, TypeError, ValueError):
        return None
    return WorkerSpeed(
        tokens, steps, f"measured here by piecework bench, {best['rows']:.0f} jobs at once"
    )
