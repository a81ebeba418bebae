"""Small charts as SVG inside the page. Pure. The figures also stand in words for who sees none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

_WIDTH: Final = 300
_HEIGHT: Final = 60
_LEAST_BARS: Final = 14
"""Fewer bars do not become wider than this many would be."""


def line(title: str, points: Sequence[tuple[int, int]], show: Callable[[int], str]) -> str:
    """Return a figure with a line.

    Args:
        title: What the values are, as text.
        points: Times and values, oldest first.
        show: A value as text.
    """
    if not points:
        return _figure(title, "", "nothing recorded yet")
    if len(points) == 1:  # a line from one side to the other: so it has been as long as is known
        points = (points[0], (points[0][0] + 1, points[0][1]))
    first, last = points[0][0], points[-1][0]
    top = max(value for _, value in points) or 1
    # From zero: a price that hardly moves is a flat line, and not a mountain range.
    span = max(1, last - first)
    drawn = " ".join(
        f"{(at - first) * _WIDTH / span:.1f},{_HEIGHT - value * (_HEIGHT - 4) / top - 2:.1f}"
        for at, value in points
    )
    low = min(value for _, value in points)
    words = f"now {show(points[-1][1])}, from {show(low)} to {show(top)}"
    return _figure(title, f'<polyline points="{drawn}"/>', words)


def bars(title: str, values: Sequence[int], show: Callable[[int], str], words: str) -> str:
    """Return a figure with a bar for each value. `words` say what matters of them."""
    if not values:
        return _figure(title, "", "nothing recorded yet")
    top, width = max(values) or 1, _WIDTH / max(len(values), _LEAST_BARS)
    drawn = "".join(
        f'<rect x="{i * width:.1f}" y="{_HEIGHT - value * _HEIGHT / top:.1f}"'
        f' width="{max(width - 1, 0.5):.1f}" height="{value * _HEIGHT / top:.1f}"/>'
        for i, value in enumerate(values)
    )
    return _figure(title, drawn, f"{words}, at most {show(top)}")


def _figure(title: str, drawn: str, words: str) -> str:
    label = escape(f"{title}: {words}")
    picture = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{label}">{drawn}</svg>'
    )
    caption = f"<figcaption><b>{escape(title)}</b><br>{escape(words)}</figcaption>"
    return f"<figure>{caption}{picture if drawn else ''}</figure>"
