"""The answer of a read: the softmax over the labels' tokens at the slot, in fixed point. No torch.

It is computed one number at a time in float64, so that its bits depend on the logits alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from piecework_protocol.kinds.read import ONE


def probabilities(logits: Sequence[float], cap: float | None) -> tuple[int, ...]:
    """Compute probabilities in 1/65536 that add up to one, at temperature 1.

    logits: finite outputs of the last layer, one a label. cap: tanh bounds them to it first. None:
    they are bounded already. Each probability is rounded down. What is missing then goes to the
    largest remainders, of equal ones to the first.
    """
    capped = [logit if cap is None else cap * math.tanh(logit / cap) for logit in logits]
    largest = max(capped)
    weights = [math.exp(value - largest) for value in capped]
    total = math.fsum(weights)
    exact = [ONE * weight / total for weight in weights]
    shares = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: ONE - sum(shares)]:
        shares[index] += 1
    return tuple(shares)
