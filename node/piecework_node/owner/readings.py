"""What the machine shows of itself and of its other users. What it does not tell is None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute or graphics process on the card that is not ours.

    name: of its program, without a folder. share: percent of the card's time.
    """

    pid: int
    name: str
    memory_bytes: int | None
    share: int | None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One card now.

    utilization: percent of the time. energy_j: since the driver was loaded, in joules.
    throttled: why its clocks are held down, empty when they are not.
    processes: those of others. None: it does not tell, and anything may run there.
    number: as `nvidia-smi -L` counts it. slows_at_c: where its hardware slows it down to save
    itself. lost: NVML says that it fell off the bus.
    """

    name: str
    temperature_c: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    utilization: int | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    throttled: tuple[str, ...] | None = None
    processes: tuple[GpuProcess, ...] | None = ()
    number: int = 0
    slows_at_c: int | None = None
    lost: bool = False


TOO_HOT: Final = "too hot"
"""In `GpuReading.throttled`: the hardware holds the clocks down, because of heat."""


@dataclass(frozen=True, slots=True)
class Readings:
    """The machine now. on_battery: None without a battery, or if nothing tells.

    more: the other GPUs of a group.
    """

    gpu: GpuReading | None = None
    on_battery: bool | None = None
    more: tuple[GpuReading, ...] = ()

    @property
    def gpus(self) -> tuple[GpuReading, ...]:
        """Every GPU of the card. A group has several."""
        return self.more if self.gpu is None else (self.gpu, *self.more)


class Senses(Protocol):
    """Where readings come from (`nvml.MachineSenses`)."""

    @property
    def missing(self) -> str:
        """Why there are no readings of a card. Empty: there are."""
        ...

    def read(self, own: frozenset[int]) -> Readings:
        """Read everything once. It may take some milliseconds.

        own: processes that are ours, and whose children are.
        """
        ...
