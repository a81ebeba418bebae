"""Senses that show what a test says."""

from __future__ import annotations

from piecework_node.owner.readings import GpuProcess, GpuReading, Readings


class FakeSenses:
    """Implements `Senses`: a card that shows what a test says."""

    def __init__(self, missing: str = "") -> None:
        self.missing = missing
        self.shown = Readings(GpuReading("card", 40, 90.0))
        self.own: frozenset[int] = frozenset()

    def read(self, own: frozenset[int]) -> Readings:
        self.own = own
        return self.shown

    def show(self, *processes: GpuProcess) -> None:
        self.shown = Readings(GpuReading("card", 40, 90.0, processes=processes))

    def show_group(self, *gpus: GpuReading) -> None:
        """A card that is a group of GPUs."""
        self.shown = Readings(gpus[0], more=gpus[1:])
