"""The rule of automatic prices, for every market, every cost and every clock."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from piecework.base.amounts import Token
from piecework_node.pricing.costs import CostPart, Floor, PowerFacts, power_cost
from piecework_node.pricing.rule import (
    DEAD_BAND_PERCENT,
    ENOUGH_OPERATORS,
    HOUR_S,
    AskedPrice,
    OwnPrices,
    PriceOutcome,
    PriceRules,
    decide,
    median,
)
from piecework_protocol.usual import mean_steps

NO_FLOOR = Floor(CostPart(None, "none"), CostPart(None, "none"))
amounts = st.integers(0, 2**64)
costs = st.builds(
    lambda power, gas: Floor(CostPart(power, "power"), CostPart(gas, "gas")),
    st.none() | amounts,
    st.none() | amounts,
)
owns = st.builds(OwnPrices, amounts, amounts, amounts, st.integers(0, 48_000_000))
rules = st.builds(PriceRules, st.integers(1, 100), st.integers(1, 25))
markets = st.none() | st.lists(amounts, max_size=12)
times = st.integers(0, 2**40)
asked_prices = st.none() | st.builds(AskedPrice, amounts, times)


@given(asked_prices, owns, rules, costs, st.tuples(markets, times))
def test_a_price_is_never_below_the_floor_and_never_above_the_owners_own(
    asked: AskedPrice | None,
    own: OwnPrices,
    rule: PriceRules,
    floor: Floor,
    look: tuple[list[int] | None, int],
) -> None:
    others, now = look
    made = decide(asked, own, rule, floor, others=others, now=now)
    assert made.least <= made.asked.blended <= made.most == own.blended
    assert made.asked.blended >= min(own.blended, floor.units or 0)
    assert made.asked.blended * 100 >= own.blended * rule.least_percent


@given(owns, st.integers(0, 2**64))
def test_the_three_prices_cost_no_less_than_the_blended_one_and_none_goes_up(
    own: OwnPrices, blended: int
) -> None:
    prices = own.at(blended)
    assert prices.blended >= min(blended, own.blended)
    assert prices.prompt <= own.prompt
    assert prices.output <= own.output
    assert prices.steps <= own.steps


@given(
    owns,
    rules,
    costs,
    st.lists(st.tuples(st.integers(0, 2 * HOUR_S), markets), max_size=40),
)
def test_a_market_moves_a_price_by_no_more_than_the_step_in_any_hour(
    own: OwnPrices, rule: PriceRules, floor: Floor, looks: list[tuple[int, list[int] | None]]
) -> None:
    asked, now, moves = decide(None, own, rule, floor, others=None, now=10**9).asked, 10**9, []
    for pause, others in looks:
        now += pause
        after = decide(asked, own, rule, floor, others=others, now=now).asked
        step = max(1, asked.blended * rule.step_percent // 100)
        assert abs(after.blended - asked.blended) <= step
        if after.blended != asked.blended:
            moves.append(now)
        asked = after
    assert all(later - earlier >= HOUR_S for earlier, later in pairwise(moves))


@given(st.builds(AskedPrice, amounts, times), owns, rules, costs, times)
def test_a_market_that_is_away_or_too_small_changes_nothing_within_the_bounds(
    asked: AskedPrice, own: OwnPrices, rule: PriceRules, floor: Floor, now: int
) -> None:
    for others in (None, [], [0] * (ENOUGH_OPERATORS - 1)):
        made = decide(asked, own, rule, floor, others=others, now=now)
        kept = min(made.most, max(made.least, asked.blended))
        assert made.asked.blended == kept and made.market is None


@given(
    st.lists(st.integers(1, 10**9), min_size=3, max_size=9),
    st.lists(st.integers(0, 2**80), max_size=9),
)
def test_fewer_than_half_of_the_operators_cannot_bring_the_median_out_of_the_others(
    honest: list[int], invented: list[int]
) -> None:
    few = invented[: (len(honest) - 1) // 2]
    assert min(honest) <= median([*honest, *few]) <= max(honest)


@given(
    st.lists(st.integers(10**3, 10**9), min_size=2, max_size=5),
    st.lists(st.integers(10**3, 10**9), max_size=4),
    st.integers(1, 25),
)
def test_workers_that_follow_each_other_come_to_rest_within_what_they_asked(
    prices: list[int], fixed: list[int], step: int
) -> None:
    """All of them look at the same moment, which is the worst: nobody sees what the others do."""
    own, rule = OwnPrices(0, 10**9, 0, 0), PriceRules(1, step)
    wall = [*fixed, *[max(10**9 // 100, price) for price in prices]]
    lowest, highest = min(wall), max(wall)
    asked = [AskedPrice(max(10**9 // 100, price)) for price in prices]
    differences: list[list[int]] = []
    for hour in range(1, 1_000):
        now = hour * HOUR_S
        before = [one.blended for one in asked]
        # Enough operators, whatever the number of workers: what others ask counts three times.
        asked = [
            decide(
                one,
                own,
                rule,
                NO_FLOOR,
                others=(fixed + before[:place] + before[place + 1 :]) * ENOUGH_OPERATORS,
                now=now,
            ).asked
            for place, one in enumerate(asked)
        ]
        after = [one.blended for one in asked]
        assert all(min(lowest, 10**7) <= price <= max(highest, 10**7) for price in after)
        differences.append([b - a for b, a in zip(after, before, strict=True)])
        if not any(differences[-1]):
            break
    assert not any(differences[-1]), "they never rest"


@given(st.integers(10**4, 10**9), st.integers(10**4, 10**9), st.integers(1, 25))
def test_two_automatic_workers_never_change_places(one: int, two: int, step: int) -> None:
    own, rule = OwnPrices(0, 10**9, 0, 0), PriceRules(1, step)
    a, b = (AskedPrice(max(10**7, price)) for price in (one, two))
    ahead = a.blended >= b.blended
    for hour in range(1, 600):
        now, seen = hour * HOUR_S, (a.blended, b.blended)
        a = decide(a, own, rule, NO_FLOOR, others=[seen[1]] * 3, now=now).asked
        b = decide(b, own, rule, NO_FLOOR, others=[seen[0]] * 3, now=now).asked
        assert (a.blended >= b.blended) is ahead or a.blended == b.blended
        if (a.blended, b.blended) == seen:
            break
    gap = abs(a.blended - b.blended)
    assert gap * 100 <= max(a.blended, b.blended) * DEAD_BAND_PERCENT


@given(owns, rules, costs, st.lists(amounts, min_size=3, max_size=9))
def test_a_market_that_stands_still_is_followed_once_and_then_left_alone(
    own: OwnPrices, rule: PriceRules, floor: Floor, others: list[int]
) -> None:
    asked, directions = None, []
    for hour in range(1, 2_000):
        made = decide(asked, own, rule, floor, others=others, now=hour * HOUR_S)
        if asked is not None and made.asked.blended != asked.blended:
            directions.append(made.asked.blended > asked.blended)
        asked = made.asked
        if made.outcome is not PriceOutcome.MOVED:
            break
    assert len(set(directions)) <= 1, "it went back"


def test_the_example_of_the_owners_page_is_what_the_rule_does() -> None:
    page = (Path(__file__).parents[3] / "docs/owners/prices.md").read_text()
    own = OwnPrices(50_000, 200_000, 1_000, mean_steps(48, 256))
    power = power_cost(PowerFacts(0.9 * 20_000, 20_000, 0, 0), 0.30, 1.0, 6)
    floor = Floor(power, CostPart(17_579, "gas"))
    usdc, asked = Token(b"\x33" * 20, "USDC", 6), None
    shown = [usdc.format(own.blended), usdc.format(floor.units or 0)]
    for hour in range(1, 10):
        others = [120_000, 190_000, 210_000, 230_000, 240_000]
        made = decide(asked, own, PriceRules(50, 5), floor, others=others, now=hour * HOUR_S)
        asked = made.asked
        if f"| {hour} hour" in page:
            shown.append(f"hour{'s' * (hour > 1)} | {usdc.format(asked.blended)} |")
    shown += [usdc.format(made.least), usdc.format(made.market or 0)]
    assert len(shown) == 10
    assert [text for text in shown if text not in page] == []
