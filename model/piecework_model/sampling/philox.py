"""Counter-based randomness: a draw is a function of (seed, canvas, step, position, purpose) only.

The generator is Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
as 1, 2, 3" (SC'11). The key is the job's seed: word 0 is its low 32 bits, word 1 its high 32 bits.
The counter is (canvas, step, position, purpose). Word 0 of the output is the draw x.

A uniform is (x + 0.5) / 2**32 in float64. A random id below V is (x * V) >> 32. Its bias is at most
V / 2**32, and 0 if V is a power of two, as for the released vocabulary.

The module uses integers only and no torch, so anyone can replay it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Ids = npt.NDArray[np.int64]
Keys = np.uint64 | npt.NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key words after each round
_ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Purpose(enum.IntEnum):
    """What a draw is for: word 3 of the counter. The numbers are part of the definition."""

    INITIAL = 0  # ids of the canvas before step 0 (drawn with step = 0)
    SAMPLE = 1  # the uniform that picks a position's token in a step
    RENOISE = 2  # the id that replaces a position which the step did not accept


def philox4x32(counter: Words, key: tuple[Keys, Keys]) -> Words:
    """Compute ten rounds of Philox4x32: counters [..., 4] to outputs [..., 4].

    key: two 32-bit words, of one value or one for each counter.
    """
    x0, x1, x2, x3 = (counter[..., word].astype(np.uint64) for word in range(4))
    for round_ in range(_ROUNDS):
        k0 = (key[0] + np.uint64(round_ * _WEYL[0])) & _MASK
        k1 = (key[1] + np.uint64(round_ * _WEYL[1])) & _MASK
        first, second = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (second >> _SHIFT) ^ x1 ^ k0,
            second & _MASK,
            (first >> _SHIFT) ^ x3 ^ k1,
            first & _MASK,
        )
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


@dataclass(frozen=True, slots=True)
class Moment:
    """One step of one sequence: what its draws depend on."""

    seed: int
    canvas: int
    step: int


@dataclass(frozen=True, slots=True)
class StepDraws:
    """The draws of one step of each sequence.

    uniforms: float64 [sequences, positions] in (0, 1), which sample the tokens. renoise: int64
    [sequences, positions], the ids that replace tokens which are not accepted.
    """

    uniforms: npt.NDArray[np.float64]
    renoise: Ids


def draws(moments: Sequence[Moment], positions: int, *purposes: Purpose) -> Words:
    """Compute the 32-bit draws [purposes, moments, positions]."""
    counter = np.empty((len(purposes), len(moments), positions, 4), dtype=np.uint32)
    counter[..., 0] = np.array([moment.canvas for moment in moments], dtype=np.uint32)[:, None]
    counter[..., 1] = np.array([moment.step for moment in moments], dtype=np.uint32)[:, None]
    counter[..., 2] = np.arange(positions, dtype=np.uint32)
    counter[..., 3] = np.array(purposes, dtype=np.uint32)[:, None, None]
    seeds = np.array([moment.seed for moment in moments], dtype=np.uint64)[:, None]
    return philox4x32(counter, (seeds & _MASK, seeds >> _SHIFT))[..., 0]


def step_draws(moments: Sequence[Moment], positions: int, vocab_size: int) -> StepDraws:
    """Compute the draws of one step of each sequence."""
    sample, renoise = draws(moments, positions, Purpose.SAMPLE, Purpose.RENOISE)
    return StepDraws((sample.astype(np.float64) + 0.5) / 2.0**32, _ids(renoise, vocab_size))


def initial_ids(moments: Sequence[Moment], positions: int, vocab_size: int) -> Ids:
    """Compute the random ids [sequences, positions] that canvases start from (step 0)."""
    return _ids(draws(moments, positions, Purpose.INITIAL)[0], vocab_size)


def _ids(words: Words, vocab_size: int) -> Ids:
    return ((words.astype(np.uint64) * np.uint64(vocab_size)) >> _SHIFT).astype(np.int64)
