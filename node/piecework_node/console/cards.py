"""Cards that people own, for an estimate without one. Every figure is its maker's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GIB: Final = 2**30
GIGA: Final = 10**9


@dataclass(frozen=True, slots=True)
class Card:
    """A card as its maker describes it.

    gigabytes: of memory, as sold. bandwidth: gigabytes a second. watts: of the whole board.
    """

    name: str
    gigabytes: int
    bandwidth: int
    watts: int
    source: str

    @property
    def memory_bytes(self) -> int:
        """What it is sold with."""
        return self.gigabytes * GIB


_GEFORCE: Final = "NVIDIA, specifications of the GeForce RTX {} series"
_DATA: Final = "NVIDIA, data sheet of the {}"
CARDS: Final = (
    Card("RTX 3060 12 GB", 12, 360, 170, _GEFORCE.format(30)),
    Card("RTX 3090", 24, 936, 350, _GEFORCE.format(30)),
    Card("RTX 4060 Ti 16 GB", 16, 288, 165, _GEFORCE.format(40)),
    Card("RTX 4070 Ti SUPER", 16, 672, 285, _GEFORCE.format(40)),
    Card("RTX 4080", 16, 717, 320, _GEFORCE.format(40)),
    Card("RTX 4090", 24, 1008, 450, _GEFORCE.format(40)),
    Card("RTX 5070 Ti", 16, 896, 300, _GEFORCE.format(50)),
    Card("RTX 5080", 16, 960, 360, _GEFORCE.format(50)),
    Card("RTX 5090", 32, 1792, 575, _GEFORCE.format(50)),
    Card("L4", 24, 300, 72, _DATA.format("L4")),
    Card("L40S", 48, 864, 350, _DATA.format("L40S")),
    Card("A100 80 GB SXM", 80, 2039, 400, _DATA.format("A100")),
    Card("H100 SXM", 80, 3350, 700, _DATA.format("H100")),
)
