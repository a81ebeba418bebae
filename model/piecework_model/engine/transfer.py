"""From the device to the host: what a step decided, row by row, in plain arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from piecework_model.engine.sequence import Decision, Ids, SequenceState
from piecework_model.failures import NonFiniteError
from piecework_model.sampling import sampler
from piecework_model.sampling.sampler import SampleOutput


def decisions(
    states: Sequence[SequenceState], judgement: SampleOutput, soft: Tensor, renoise: Ids
) -> list[Decision]:
    """One decision a row, for a judgement over rows × C positions in the order of `states`.

    soft: [rows, C, H]. renoise: [rows, C]. Raises NonFiniteError for rows of which one is not
    finite; a caller with several rows finds out which by asking for each alone.
    """
    rows, size = renoise.shape
    device = judgement.entropy.device
    entropy = judgement.entropy.view(rows, size)
    request = [state.request for state in states]
    bounds = torch.tensor([r.entropy_bound for r in request], dtype=torch.float32, device=device)
    thresholds = torch.tensor(
        [r.confidence_threshold for r in request], dtype=torch.float32, device=device
    )
    accepted = sampler.accept(entropy, bounds)
    sampled = judgement.sampled.view(rows, size)
    after = torch.where(accepted, sampled, torch.from_numpy(renoise).to(device))
    sure = sampler.confident(entropy, thresholds).tolist()
    finite = torch.isfinite(entropy).all(-1) & torch.isfinite(
        soft.flatten(1).sum(-1, dtype=torch.float32)
    )
    if not bool(finite.all()):
        raise NonFiniteError
    fingerprint = judgement.fingerprint.view(rows, size, 3)
    host = [
        part.cpu().contiguous()
        for part in (after, judgement.argmax.view(rows, size), accepted, fingerprint)
    ]
    afters, argmaxes, flags, prints = (part.numpy() for part in host)
    softs = soft.contiguous().cpu().view(torch.uint8).numpy()  # [rows, C, H * bytes]
    return [
        Decision(
            before=_current(state),
            after=afters[row],
            argmax=argmaxes[row],
            accepted=flags[row].astype(np.bool_),
            fingerprint=prints[row],
            soft=memoryview(softs[row]).cast("B"),
            confident=sure[row],
        )
        for row, state in enumerate(states)
    ]


def _current(state: SequenceState) -> Ids:
    if state.current is None:
        raise ValueError("a row has no canvas before its first step")
    return state.current
