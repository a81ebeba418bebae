"""Charts of the explorer: what they draw of samples, and what they do not make up."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from piecework.market.explorer import charts
from piecework.market.history import FiveNumbers
from piecework.market.limits import SAMPLE_INTERVAL_S
from piecework_protocol.types import Timestamp

START = 1_800_000_000
USUAL: FiveNumbers = (10, 20, 30, 40, 50)
OF_BEFORE: FiveNumbers = (10, None, 30, None, None)
NOTHING: FiveNumbers = (None, None, None, None, None)


def sampled(*spreads: FiveNumbers, start: int = START) -> list[tuple[Timestamp, FiveNumbers]]:
    """Samples that follow each other."""
    return [(Timestamp(start + at * SAMPLE_INTERVAL_S), five) for at, five in enumerate(spreads)]


class Picture:
    """The shapes of a figure, each a list of its points, and its words."""

    def __init__(self, figure: str) -> None:
        root = ElementTree.fromstring(figure.replace("<br>", "<br/>"))  # noqa: S314 - ours
        self.words = "".join(root.itertext())
        picture = root.find("svg")
        shapes = [] if picture is None else list(picture)
        self.label = "" if picture is None else picture.get("aria-label", "")
        self.all, self.half, self.edges, self.lines = (
            [points(one) for one in shapes if (one.tag, one.get("class")) == kind]
            for kind in (
                ("polygon", "all"), ("polygon", "half"), ("polyline", "edge"), ("polyline", None),
            )
        )  # fmt: skip


def points(shape: ElementTree.Element) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in shape.get("points", "").split())
    return [(float(x), float(y)) for x, y in pairs]


def height(shape: list[tuple[float, float]]) -> float:
    return max(y for _, y in shape) - min(y for _, y in shape)


def drawn(samples: list[tuple[Timestamp, FiveNumbers]]) -> Picture:
    return Picture(charts.bands("Price", samples, str))


def test_a_spread_is_a_band_of_all_a_band_of_the_middle_half_and_a_line() -> None:
    picture = drawn(sampled(USUAL, USUAL))
    ((whole,), (half,), (median,)) = picture.all, picture.half, picture.lines
    top, bottom = min(y for _, y in whole), max(y for _, y in whole)
    quarter = height(whole) / 4
    assert {y for _, y in half} == {round(bottom - quarter, 1), round(top + quarter, 1)}
    assert {y for _, y in median} == {round((top + bottom) / 2, 1)}
    assert {min(x for x, _ in whole), max(x for x, _ in whole)} == {0, 300}
    said = "now median 30, half 20 to 40, all 10 to 50; medians 30 to 30"
    assert said in picture.words and picture.label == f"Price: {said}"


def test_a_sample_of_before_is_drawn_with_what_it_has() -> None:
    picture = drawn(sampled(OF_BEFORE, OF_BEFORE, USUAL, USUAL))
    (whole,), (half,), (edge,), (median,) = (
        picture.all, picture.half, picture.edges, picture.lines,
    )  # fmt: skip
    assert min(x for x, _ in whole) == min(x for x, _ in half) == 150
    assert (edge[0][0], edge[-1][0]) == (0, 150)
    assert {y for _, y in edge} == {max(y for _, y in whole)}
    assert (median[0][0], median[-1][0]) == (0, 300)
    alone = drawn(sampled(OF_BEFORE))
    assert not alone.all and not alone.half
    assert "now median 30; medians 30 to 30" in alone.words


@pytest.mark.parametrize("between", [[NOTHING, NOTHING], []])
def test_what_nobody_saw_is_not_joined(between: list[FiveNumbers]) -> None:
    later = START + 6 * SAMPLE_INTERVAL_S
    samples = [*sampled(USUAL, USUAL, *between), *sampled(USUAL, start=later)]
    picture = drawn(samples)
    for shapes in (picture.all, picture.half, picture.lines):
        before, after = shapes
        assert max(x for x, _ in before) < 150 < min(x for x, _ in after)
    slots = Picture(charts.line("Slots", [(at, 1) for at, _ in sampled(USUAL)], str))
    assert len(slots.lines) == 1
    parted = [(at, 1) for at, five in samples if five != NOTHING]
    assert len(Picture(charts.line("Slots", parted, str)).lines) == 2


def test_one_absurd_price_does_not_flatten_the_others_and_is_named() -> None:
    absurd = (10, 20, 30, 40, 10**18)
    picture = drawn(sampled(USUAL, absurd))
    (half,) = picture.half
    assert height(half) > 5
    assert f"all 10 to {10**18}; medians 30 to 30; the drawing ends at 160" in picture.words
    assert all(0 <= y <= 60 for _, y in picture.all[0])


def test_a_market_without_an_offer_says_so() -> None:
    assert "nothing recorded yet" in drawn([]).words
    assert "nothing recorded yet" in drawn(sampled(NOTHING)).words
    assert "nothing is offered now; medians 30 to 30" in drawn(sampled(USUAL, NOTHING)).words
    assert drawn(sampled((0, 0, 0, 0, 0))).lines
