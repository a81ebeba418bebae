"""What the committed entropies say, and how exactly.

The worker decides on entropies in float32 and commits to them in float16. So each committed value
stands for an interval, and a decision is judged only where the whole interval agrees:

- Rounding to the nearest float16 moves a value by at most half a unit in its last place: 2^-11 of
  the value, or 2^-25 for values below 2^-14.
- The worker's float32 sums of C entropies are off by at most C * 2^-24 of the sum, in whatever
  order they are taken, and again as much by taking a value off the sum. `_SUM_SLACK` is twice that.

There is no other tolerance in `accepted` and `confident`. `plausible` compares numbers that a
kernel computed each for itself, and allows what float16 and a fused sampler move.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Final

_RELATIVE: Final = 2.0**-11
_ABSOLUTE: Final = 2.0**-25
_SUM_SLACK: Final = 2.0**-22
"""Of a sum and for each of its terms."""
_FINGERPRINT_SLACK: Final = 2.0**-8
"""Float16 moves a number by 2^-11 of it. The engine allows a fused sampler 10^-3 nats."""


def interval(committed: float) -> tuple[float, float]:
    """Give the least and the largest float32 that a worker may have committed to as this."""
    margin = _RELATIVE * abs(committed) * (1 + _RELATIVE) + _ABSOLUTE
    return committed - margin, committed + margin


def accepted(
    entropies: Sequence[float], pinned: Mapping[int, int], bound: float
) -> tuple[bool | None, ...]:
    """Say for each position whether a step accepts it, or None where rounding decides.

    Positions are taken in order of entropy, as long as the entropies before them sum to at most the
    bound. A pinned position is accepted and adds nothing.

    Args:
        entropies: As committed, finite.
        pinned: The pinned positions.
        bound: In nats, at least 0.
    """
    size = len(entropies)
    free = sorted((interval(value) for place, value in enumerate(entropies) if place not in pinned))
    lows, highs = [low for low, _ in free], [high for _, high in free]
    low_sums = [0.0, *itertools.accumulate(lows)]
    high_sums = [0.0, *itertools.accumulate(highs)]

    def decide(value: float) -> bool | None:
        low, high = interval(value)
        before = bisect.bisect_left(highs, low)  # all that certainly come first
        reached = bisect.bisect_right(lows, high)  # all that may come first, and itself
        if reached == 1:
            return True  # nothing is before it
        least = _less(low_sums[before], high, size)
        most = _more(high_sums[reached] - high, high, size)
        return False if least > bound else True if most < bound else None

    return tuple(
        True if place in pinned else decide(value) for place, value in enumerate(entropies)
    )


def confident(
    entropies: Sequence[float], pinned: Mapping[int, int], threshold: float
) -> bool | None:
    """Say whether the mean entropy of the free positions is below a threshold, or None if rounding
    decides.

    Args:
        entropies: As committed, finite.
        pinned: The pinned positions.
        threshold: In nats. At 0 nothing is.
    """
    free = [interval(value) for place, value in enumerate(entropies) if place not in pinned]
    if threshold <= 0:
        return False
    limit, size = threshold * len(free), len(entropies)
    least, most = sum(low for low, _ in free), sum(high for _, high in free)
    if _more(most, 0.0, size) < limit:
        return True
    return False if _less(least, 0.0, size) > limit else None


def plausible(
    entropy: float, log_probability: float, gap: float, *, likeliest: bool | None, vocab_size: int
) -> bool:
    """Say whether three committed numbers can be those of one distribution over a vocabulary.

    The likeliest token has a probability p. Its logit is `gap` above every other. So an id that is
    not the likeliest has at most p / e^gap, and p is at most 1 / (1 + e^-gap). No distribution has
    more entropy than the logarithm of the vocabulary's size, or less than -log p.

    Args:
        likeliest: Whether the sampled id is the likeliest one, or None if it is not known.
    """
    numbers = (entropy, log_probability, gap)
    if not all(map(math.isfinite, numbers)):
        return False
    slack = _FINGERPRINT_SLACK * (1 + max(map(abs, numbers)))
    if min(entropy, gap, -log_probability) < -slack or entropy > math.log(vocab_size) + slack:
        return False
    most = -math.log1p(math.exp(-gap))  # of the likeliest: log p at most
    if likeliest is None:
        return log_probability <= most + slack
    if not likeliest:
        return log_probability <= most - gap + slack
    least = -math.log1p((vocab_size - 1) * math.exp(-gap))
    inside = least - slack <= log_probability <= most + slack
    return inside and entropy >= -log_probability - slack


def _less(total: float, value: float, size: int) -> float:
    """Return the least sum that a worker may have had where this one is exact."""
    return total - _SUM_SLACK * size * (abs(total) + value) - _ABSOLUTE * size


def _more(total: float, value: float, size: int) -> float:
    return total + _SUM_SLACK * size * (abs(total) + value) + _ABSOLUTE * size
