"""Four scores of a forced canvas: what docs/audits.md found to tell honest canvases from others.

| score | of | finds |
|---|---|---|
| logits | the gap between the two largest logits | other weights, precision, temperature, prompt |
| soft | the soft embeddings | numbers that are recomputed beside another model's state |
| argmax | logits of the positions' argmax | edited tokens |
| sampling | uniforms of accepted tokens | tokens that the seed does not give |

The gap is the best witness of all. It is a difference of logits, so its error is nearly the same at
sure and at unsure positions, and every position counts. Entropies and log-probabilities of a sure
position are nearly zero whatever the weights were.

Differences count by what is usual at the position's entropy. So canvases of sure and of unsure
positions have like scores, and one threshold serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from piecework_model.audit.forced import CanvasFigures

LOGIT_CAP: Final = 5.0
"""A difference of logits counts for at most so many times the usual. So a few positions, such as
those where a mixture of experts takes another expert, do not decide for all."""
SOFT_CAP: Final = 4.0
"""The same of a distance of soft embeddings."""

ENTROPIES: Final = (0, 0.005, 0.02, 0.06, 0.15, 0.3, 0.55, 0.85, 1.25, 1.75, 2.25, 2.75, 3.4, 4.5)
"""In nats. Beyond the last one, its values hold."""
USUAL_GAPS: Final = np.array(
    (308, 308, 309, 298, 281, 268, 256, 243, 228, 223, 215, 193, 171, 154)
) / 10_000  # fmt: skip
USUAL_SOFTS: Final = np.array(
    (400, 411, 528, 551, 600, 811, 1403, 1815, 1936, 1880, 1699, 1381, 1093, 706)
) / 100_000  # fmt: skip
"""Means of 866 honest canvases of the bundled model at these entropies: a worker in bfloat16, an
auditor in float32 (docs/LOG.md). Other models have other scales, and thresholds of their own."""
_FEW_STEPS: Final = (1, 2, 4, 7, 12)
_FEW_WEIGHTS: Final = (0.3, 0.35, 0.47, 0.68, 1.0)
"""How much the logarithm of the logits' score counts over so many steps: inverse to its deviation
among the same canvases."""


@dataclass(frozen=True, slots=True)
class CanvasScores:
    """A canvas in four numbers. The larger one is, the less it is the auditor's.

    logits: mean difference of the gaps, before the temperature, over what is usual. 1 is usual, and
        few steps bring it nearer to 1.
    soft: mean distance of the soft embeddings, over what is usual. None if no soft embedding of a
        step that was computed is opened, or no position is free.
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
    logits = _mean_ratio(np.abs(figures.gap) * heat, figures.level, USUAL_GAPS, LOGIT_CAP)
    soft, level = figures.soft[opened], figures.level[opened]
    return CanvasScores(
        logits=logits ** float(np.interp(figures.steps, _FEW_STEPS, _FEW_WEIGHTS)),
        soft=_mean_ratio(soft, level, USUAL_SOFTS, SOFT_CAP) if len(soft) else None,
        argmax=float((figures.deficit * heat)[free].max()) if free.any() else None,
        sampling=float(figures.distance[known].max()) if known.any() else None,
        steps=figures.steps,
    )


def _mean_ratio(
    differences: npt.NDArray[np.floating[Any]],
    entropies: npt.NDArray[np.float32],
    usual: npt.NDArray[np.floating[Any]],
    cap: float,
) -> float:
    """Average differences over what is usual at their entropies, each at most `cap`."""
    ratios = differences / np.interp(entropies, ENTROPIES, usual)
    return float(np.minimum(ratios, cap).mean())
