"""When canvases that look wrong are a verdict on their worker. Pure.

A forced audit holds a canvas to a model by a statistic (docs/audits.md). Other weights are in every
canvas of a worker, and an honest canvas looks wrong now and then. So one that looks wrong is held
beside others of the same worker. The verdict is a failure if the first of them looks wrong too, or
if three of six do.

If one honest canvas in 100 looks wrong, an honest worker fails one audit in 9,400. If it is one in
200, one audit in 39,000. These shares take canvases to be independent. Those of one prompt are not:
how far off a canvas is depends on its prompt. So an auditor makes the canvas itself as a control
(`piecework_model.audit.job`), and other jobs are of other prompts.
"""

from __future__ import annotations

from math import comb
from typing import Final

MOST_CANVASES: Final = 6
"""That are judged in one audit."""
MOST_TRIES: Final = 10
"""Canvases of one audit, with those that are not opened or have no verdict."""
_OF_TWO: Final = 2
_OF_MORE: Final = 3


def is_verdict(wrong: int, seen: int) -> bool:
    """Whether an audit fails that has seen so many canvases, the last of which looks wrong."""
    return wrong >= (_OF_TWO if seen <= _OF_TWO else _OF_MORE)


def chance_of_verdict(share: float) -> float:
    """Compute how often an audit fails a worker of whose canvases this share looks wrong.

    It is p (p + (1 - p) P(at least two of four)): the first canvas has to look wrong. Then the
    second one has to, or two of the four that follow.
    """
    rest = MOST_CANVASES - _OF_TWO
    needed = _OF_MORE - 1
    later = sum(
        comb(rest, count) * share**count * (1 - share) ** (rest - count)
        for count in range(needed, rest + 1)
    )
    return share * (share + (1 - share) * later)
