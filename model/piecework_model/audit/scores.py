"""Four scores of a forced canvas: what docs/audits.md found to tell honest canvases from others.

| score | of | finds |
|---|---|---|
| logits | the gap between the two largest logits | other weights, precision, temperature, prompt |
| soft | the soft embeddings | numbers that are recomputed beside another model's state |
| argmax | logits of the positions' argmax | edited tokens |
| sampling | uniforms of accepted tokens | tokens that the seed does not give |

The gap is the best witness of all. It is a difference of logits, so its error is the same at sure
and at unsure positions, and every position counts. Entropies and log-probabilities of a sure
position are nearly zero whatever the weights were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from piecework_model.audit.forced import CanvasFigures

LOGIT_CAP: Final = 0.3
"""A difference of logits counts for at most this. So a few positions, such as those where a mixture
of experts takes another expert, do not decide for all."""


@dataclass(frozen=True, slots=True)
class CanvasScores:
    """A canvas in four numbers. The larger one is, the less it is the auditor's.

    logits: mean difference of the gaps, before the temperature, each at most LOGIT_CAP.
    soft: the distance of the soft embeddings over what is usual at such entropies. None if no soft
        embedding of a step that was computed is opened, or no position is free.
    argmax: the largest deficit of an argmax before the temperature. None if no position is free.
    sampling: the largest distance of a uniform. None if no sampled token is known.
    steps: how many were computed.
    """

    logits: float
    soft: float | None
    argmax: float | None
    sampling: float | None
    steps: int


def scores(figures: CanvasFigures) -> CanvasScores:
    """Reduce a canvas's figures to its scores."""
    heat, free = figures.temperature[:, None], figures.free
    opened = free & np.isfinite(figures.soft)
    known = np.isfinite(figures.distance)
    return CanvasScores(
        logits=float(np.minimum(np.abs(figures.gap) * heat, LOGIT_CAP).mean()),
        soft=_ratio(figures.soft[opened], _usual(figures.level[opened])),
        argmax=float((figures.deficit * heat)[free].max()) if free.any() else None,
        sampling=float(figures.distance[known].max()) if known.any() else None,
        steps=figures.steps,
    )


def _usual(level: npt.NDArray[np.float32]) -> npt.NDArray[np.floating[Any]]:
    """Say how the distance of soft embeddings grows with entropy in nats, up to a factor.

    It is least where one token has all the mass, and largest between one and two nats.
    """
    return 0.12 + level / (1 + level**2 / 2)


def _ratio(
    part: npt.NDArray[np.floating[Any]], whole: npt.NDArray[np.floating[Any]]
) -> float | None:
    return float(part.sum() / whole.sum()) if len(part) else None
