"""Philox4x32-10 in plain integers (clause 7.3): what each random id of a canvas is.

The key is the job's seed: word 0 is its low 32 bits, word 1 its high 32 bits. The counter is
(canvas, step, position, purpose), and word 0 of the output is the draw x. An id below V is
(x * V) >> 32.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_MASK: Final = 2**32 - 1


class IdPurpose(enum.IntEnum):
    """What a random id is for. Number 1 draws no id, it samples a token."""

    INITIAL = 0
    RENOISE = 2


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> int:
    """Compute word 0 of ten rounds. All words are uint32."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * x0, _MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (
            (second >> 32) ^ x1 ^ k0,
            second & _MASK,
            (first >> 32) ^ x3 ^ k1,
            first & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return x0


@dataclass(frozen=True, slots=True)
class RandomIds:
    """The random ids of one canvas for one purpose. step: 0 for the initial canvas."""

    seed: int
    canvas: int
    step: int
    purpose: IdPurpose
    vocab_size: int

    def at(self, position: int) -> int:
        """Compute the id of a position."""
        key = (self.seed & _MASK, self.seed >> 32)
        draw = philox4x32((self.canvas, self.step, position, self.purpose), key)
        return draw * self.vocab_size >> 32
