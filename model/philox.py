"""Counter-based randomness: every draw is a function of (seed, canvas, step, position, purpose), and of
nothing else.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11). The key
is the job's seed (word 0 its low 32 bits, word 1 its high 32 bits); the counter is (canvas, step, position,
purpose); word 0 of the output is the draw x. A uniform is (x + 0.5) / 2**32 in float64; a random id below V
is (x * V) >> 32, whose bias is at most V / 2**32 (none at all when V is a power of two, as for the released
vocabulary). Integers only, no torch: anyone can replay it.
"""

import enum

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

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


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32: counters [..., 4] and two 32-bit key words to outputs [..., 4]."""
    x0, x1, x2, x3 = (counter[..., word].astype(np.uint64) for word in range(4))
    for round_ in range(_ROUNDS):
        k0 = np.uint64((key[0] + round_ * _WEYL[0]) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + round_ * _WEYL[1]) & 0xFFFFFFFF)
        first, second = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (second >> _SHIFT) ^ x1 ^ k0,
            second & _MASK,
            (first >> _SHIFT) ^ x3 ^ k1,
            first & _MASK,
        )
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def draws(seed: int, canvas: int, step: int, positions: int, purpose: Purpose) -> Words:
    """The 32-bit draws [positions] of one purpose in one step of one canvas."""
    counter = np.empty((positions, 4), dtype=np.uint32)
    counter[:, 0] = canvas
    counter[:, 1] = step
    counter[:, 2] = np.arange(positions)
    counter[:, 3] = int(purpose)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[:, 0]


def uniforms(seed: int, canvas: int, step: int, positions: int) -> npt.NDArray[np.float64]:
    """The uniforms [positions] in (0, 1) that sample the tokens of one step."""
    words = draws(seed, canvas, step, positions, Purpose.SAMPLE)
    return (words.astype(np.float64) + 0.5) / 2.0**32


def initial_ids(seed: int, canvas: int, positions: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """The random ids [positions] that a canvas starts from."""
    return _ids(draws(seed, canvas, 0, positions, Purpose.INITIAL), vocab_size)


def renoise_ids(seed: int, canvas: int, step: int, positions: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """The random ids [positions] for what a step does not accept."""
    return _ids(draws(seed, canvas, step, positions, Purpose.RENOISE), vocab_size)


def _ids(words: Words, vocab_size: int) -> npt.NDArray[np.int64]:
    return ((words.astype(np.uint64) * np.uint64(vocab_size)) >> _SHIFT).astype(np.int64)
