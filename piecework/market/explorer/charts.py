"""Small charts as SVG inside the page. Pure. The figures also stand in words for who sees none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, TypeAlias

from piecework.market.history import FiveNumbers
from piecework.market.limits import SAMPLE_INTERVAL_S
from piecework_protocol.types import Timestamp

_WIDTH: Final = 300
_HEIGHT: Final = 60
_MARGIN: Final = 2
_LEAST_BARS: Final = 14
"""Fewer bars do not become wider than this many would be."""
_LONGEST_GAP_S: Final = 2 * SAMPLE_INTERVAL_S
"""Samples that lie further apart are not joined: nobody knows what was between them."""
_TALLEST: Final = 4
"""A drawing ends at so many upper quartiles. Else one absurd price would flatten all others."""
_NOTHING: Final = "nothing recorded yet"
_LOWEST, _LOWER, _MEDIAN, _UPPER, _HIGHEST = range(5)

_Run: TypeAlias = Sequence[tuple[Timestamp, Sequence[int]]]
"""Samples without a gap, each with the values that are drawn of it."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a drawing spans. It begins at zero: a price that hardly moves is a flat line."""

    first: Timestamp
    seconds: int
    top: int

    def points(self, run: _Run, member: int) -> list[str]:
        """Return the places of one value of each sample."""
        return [
            f"{(at - self.first) * _WIDTH / self.seconds:.1f},{self._height(values[member]):.1f}"
            for at, values in run
        ]

    def _height(self, value: int) -> float:
        share = min(value, self.top) / self.top
        return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)

    def line(self, run: _Run, kind: str = "") -> str:
        """Return a line through the first value of each sample."""
        points = " ".join(self.points(run, 0))
        name = f' class="{kind}"' if kind else ""
        return f'<polyline{name} points="{points}"/>'

    def area(self, run: _Run, kind: str) -> str:
        """Return the area between the two values of each sample."""
        points = " ".join([*self.points(run, 1), *reversed(self.points(run, 0))])
        return f'<polygon class="{kind}" points="{points}"/>'


def line(title: str, points: Sequence[tuple[Timestamp, int]], show: Callable[[int], str]) -> str:
    """Return a figure with a line.

    Args:
        title: What the values are, as text.
        points: Times and values, oldest first.
        show: A value as text.
    """
    if not points:
        return _figure(title, "", _NOTHING)
    low, top = (extreme(value for _, value in points) for extreme in (min, max))
    frame = _frame([at for at, _ in points], top)
    single = [(at, (value,)) for at, value in points]
    drawn = "".join(frame.line(run) for run in _runs(single, (0,)))
    words = f"now {show(points[-1][1])}, from {show(low)} to {show(top)}"
    return _figure(title, drawn, words)


def bands(
    title: str, points: Sequence[tuple[Timestamp, FiveNumbers]], show: Callable[[int], str]
) -> str:
    """Return a figure of how values are spread over time.

    A pale band has all values, a darker one the middle half, and a line is the median. Where a
    sample lacks one edge of a band, the other edge is a thin line.

    Args:
        title: What the values are, as text.
        points: Times and five numbers of each, oldest first.
        show: A value as text.
    """
    known = [value for _, five in points for value in five if value is not None]
    medians = [value for _, (_, _, value, _, _) in points if value is not None]
    if not known or not medians:
        return _figure(title, "", _NOTHING)
    usual = max(five[_UPPER] or five[_MEDIAN] or 0 for _, five in points)
    top = min(max(known), _TALLEST * usual or max(known))
    frame = _frame([at for at, _ in points], top)
    drawn = "".join(
        (
            _band(frame, points, (_LOWEST, _HIGHEST), "all"),
            _band(frame, points, (_LOWER, _UPPER), "half"),
            *(frame.line(run) for run in _runs(points, (_MEDIAN,))),
        )
    )
    words = [_spread_in_words(points[-1][1], show)]
    words.append(f"medians {show(min(medians))} to {show(max(medians))}")
    if top < max(known):
        words.append(f"the drawing ends at {show(top)}")
    return _figure(title, drawn, "; ".join(words))


def bars(title: str, values: Sequence[int], show: Callable[[int], str], words: str) -> str:
    """Return a figure with a bar for each value. `words` say what matters of them."""
    if not values:
        return _figure(title, "", _NOTHING)
    top, width = max(values) or 1, _WIDTH / max(len(values), _LEAST_BARS)
    drawn = "".join(
        f'<rect x="{i * width:.1f}" y="{_HEIGHT - value * _HEIGHT / top:.1f}"'
        f' width="{max(width - 1, 0.5):.1f}" height="{value * _HEIGHT / top:.1f}"/>'
        for i, value in enumerate(values)
    )
    return _figure(title, drawn, f"{words}, at most {show(top)}")


def _frame(times: Sequence[Timestamp], top: int) -> _Frame:
    return _Frame(times[0], times[-1] - times[0] + SAMPLE_INTERVAL_S, top or 1)


def _runs(
    points: Sequence[tuple[Timestamp, Sequence[int | None]]], members: Sequence[int]
) -> Iterator[_Run]:
    """Yield the samples that have all these values, in parts without a gap.

    A sample stands until the next one is due, so that a single one is seen too.
    """
    run: list[tuple[Timestamp, Sequence[int]]] = []
    for at, values in points:
        picked = [value for value in (values[member] for member in members) if value is not None]
        complete = len(picked) == len(members)
        if run and (not complete or at - run[-1][0] > _LONGEST_GAP_S):
            yield _until_next(run)
            run = []
        if complete:
            run.append((at, picked))
    if run:
        yield _until_next(run)


def _until_next(run: _Run) -> _Run:
    at, values = run[-1]
    return [*run, (Timestamp(at + SAMPLE_INTERVAL_S), values)]


def _band(
    frame: _Frame,
    points: Sequence[tuple[Timestamp, FiveNumbers]],
    edges: tuple[int, int],
    kind: str,
) -> str:
    drawn = [frame.area(run, kind) for run in _runs(points, edges)]
    for edge, other in (edges, edges[::-1]):
        alone = [(at, (None if five[other] is not None else five[edge],)) for at, five in points]
        drawn += [frame.line(run, "edge") for run in _runs(alone, (0,))]
    return "".join(drawn)


def _spread_in_words(five: FiveNumbers, show: Callable[[int], str]) -> str:
    lowest, lower, median, upper, highest = five
    if median is None:
        return "nothing is offered now"
    words = [f"now median {show(median)}"]
    if lower is not None and upper is not None:
        words.append(f"half {show(lower)} to {show(upper)}")
    if lowest is not None and highest is not None:
        words.append(f"all {show(lowest)} to {show(highest)}")
    return ", ".join(words)


def _figure(title: str, drawn: str, words: str) -> str:
    label = escape(f"{title}: {words}")
    picture = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}">{drawn}</svg>'
    )
    caption = f"<figcaption><b>{escape(title)}</b><br>{escape(words)}</figcaption>"
    return f"<figure>{caption}{picture if drawn else ''}</figure>"
