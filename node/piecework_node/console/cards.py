"""Cards that people own, for an estimate without one. Each figure names the page it was read from.

They are what makers publish of their reference boards, as those pages repeat it. A card without
such a page is not in the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GIB: Final = 2**30
GIGA: Final = 10**9
READ_ON: Final = "2026-11-29"
"""When the pages were read."""


@dataclass(frozen=True, slots=True)
class CardFigure:
    """A whole number and the address of the page that says so."""

    value: int
    source: str


@dataclass(frozen=True, slots=True)
class Card:
    """A card as its maker describes it.

    gigabytes: of memory, as sold. bandwidth: gigabytes a second. watts: of the whole board.
    """

    name: str
    gigabytes: CardFigure
    bandwidth: CardFigure
    watts: CardFigure

    @property
    def memory_bytes(self) -> int:
        """What it is sold with."""
        return self.gigabytes.value * GIB


_COMPARED: Final = "https://cpu-gpu.alldbin.com/graphics-card-comparison/"
_RTX_3060: Final = _COMPARED + "GeForce-RTX-3060-and-GRID-M40-comparison.html"
_RTX_3090: Final = _COMPARED + "GeForce-RTX-3090-and-GeForce-RTX-3050-6GB-mobile-comparison.html"
_RTX_4060_TI: Final = (
    _COMPARED + "GeForce-RTX-4060-Ti-16-GB-and-GeForce-RTX-2060-Max-Q-Refresh-comparison.html"
)
_RTX_4080: Final = "https://www.tomshardware.com/reviews/nvidia-geforce-rtx-4080-review"
_RTX_4080_WATTS: Final = (
    "https://www.sportskeeda.com/gaming-tech/how-nvidia-rtx-4080-compare-rtx-4090"
)
_RTX_4090: Final = _COMPARED + "GeForce-RTX-4090-and-GeForce-RTX-3060-12-GB-GA104-comparison.html"
_RTX_50: Final = (
    "https://www.tweaktown.com/news/102469/"
    "nvidia-geforce-rtx-50-series-specs-pricing-and-performance-plan-that-upgrade-today/index.html"
)
_RTX_50_WATTS: Final = "https://playeatsleep.fun/en/rtx-5000-specs"
_L4: Final = "https://inferenceengineering.tech/cheat-sheets/hardware"
_CENTERS: Final = (
    "http://llmbook.apartsin.com/appendices/appendix-g-hardware-compute/section-g.1.html"
)
_A100: Final = "https://glennklockwood.com/garden/processors/A100"


def _card(name: str, figures: tuple[int, int, int], page: str, of_watts: str = "") -> Card:
    """Gigabytes, bandwidth and watts of one page, or the watts of another."""
    gigabytes, bandwidth, watts = figures
    power = CardFigure(watts, of_watts or page)
    return Card(name, CardFigure(gigabytes, page), CardFigure(bandwidth, page), power)


CARDS: Final = (
    _card("RTX 3060 12 GB", (12, 360, 170), _RTX_3060),
    _card("RTX 3090", (24, 936, 350), _RTX_3090),
    _card("RTX 4060 Ti 16 GB", (16, 288, 165), _RTX_4060_TI),
    _card("RTX 4080", (16, 717, 320), _RTX_4080, _RTX_4080_WATTS),
    _card("RTX 4090", (24, 1008, 450), _RTX_4090),
    _card("RTX 5070 Ti", (16, 896, 300), _RTX_50, _RTX_50_WATTS),
    _card("RTX 5080", (16, 960, 360), _RTX_50, _RTX_50_WATTS),
    _card("RTX 5090", (32, 1792, 575), _RTX_50, _RTX_50_WATTS),
    _card("L4", (24, 300, 72), _L4),
    _card("L40S", (48, 864, 350), _CENTERS),
    _card("A100 80 GB SXM", (80, 2039, 400), _A100),
    _card("H100 SXM", (80, 3350, 700), _CENTERS),
)
