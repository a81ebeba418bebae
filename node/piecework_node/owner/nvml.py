"""Readings through NVML and psutil. Whatever a card or a driver does not support is None."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Final, Protocol, TypeVar, cast

import psutil
import pynvml

from piecework_node.owner.readings import GpuProcess, GpuReading, Readings

T = TypeVar("T")
SAMPLE_US: Final = 2_000_000
"""How far back the shares of processes are asked for."""
POWER_SUPPLIES: Final = Path("/sys/class/power_supply")
_THROTTLES: Final = (
    ("nvmlClocksEventReasonHwThermalSlowdown", "too hot"),
    ("nvmlClocksEventReasonSwThermalSlowdown", "warm"),
    ("nvmlClocksEventReasonHwPowerBrakeSlowdown", "power brake"),
    ("nvmlClocksEventReasonHwSlowdown", "hardware slowdown"),
    ("nvmlClocksEventReasonSwPowerCap", "power limit"),
)


class NvmlLibrary(Protocol):
    """What is asked of NVML, by its own names. Each call raises `NVMLError` if it is not told."""

    def nvmlInit(self) -> None: ...  # noqa: N802

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any: ...  # noqa: N802

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int: ...  # noqa: N802

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]: ...  # noqa: N802

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> list[Any]: ...  # noqa: N802

    def nvmlDeviceGetProcessUtilization(self, handle: Any, since: int) -> list[Any]: ...  # noqa: N802


class MachineSenses:
    """Implements `readings.Senses` for one card of this machine."""

    def __init__(self, index: int, *, library: NvmlLibrary | None = None) -> None:
        """Open the card of this number, as `nvidia-smi -L` counts them. library: NVML itself."""
        self._nvml = library or cast(NvmlLibrary, pynvml)
        self._handle: Any = None
        self.missing = ""
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            self.missing = f"NVML does not show card {index}: {error}"

    def read(self, own: frozenset[int]) -> Readings:
        """Read card and battery once."""
        gpu = None
        if self._handle is not None:
            gpu = self._card(with_children(own))
        return Readings(gpu, runs_on_battery())

    def _card(self, own: frozenset[int]) -> GpuReading:
        nvml, handle = self._nvml, self._handle
        memory = _told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        rates = _told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        watts = _told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        joules = _told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        return GpuReading(
            name=_text(_told(lambda: nvml.nvmlDeviceGetName(handle)) or "GPU"),
            temperature_c=_told(lambda: int(nvml.nvmlDeviceGetTemperature(handle, sensor))),
            power_w=watts,
            energy_j=joules,
            utilization=None if rates is None else int(rates.gpu),
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            throttled=self._throttled(),
            processes=self._processes(own),
        )

    def _throttled(self) -> tuple[str, ...] | None:
        bits = _told(lambda: int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)))
        if bits is None:
            return None
        return tuple(text for name, text in _THROTTLES if bits & getattr(pynvml, name))

    def _processes(self, own: frozenset[int]) -> tuple[GpuProcess, ...] | None:
        """The programs on the card. None: not told. That is not a card without programs."""
        nvml, handle = self._nvml, self._handle
        memory: dict[int, int | None] = {}
        try:
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            # A card in slices has compute programs alone.
            with contextlib.suppress(pynvml.NVMLError_NotSupported):
                found = [*found, *nvml.nvmlDeviceGetGraphicsRunningProcesses(handle)]
        except pynvml.NVMLError:
            return None
        for process in found:
            memory[int(process.pid)] = process.usedGpuMemory
        shares = self._shares()
        return tuple(
            GpuProcess(pid, program(pid), used, None if shares is None else shares.get(pid, 0))
            for pid, used in sorted(memory.items())
            if pid not in own
        )

    def _shares(self) -> dict[int, int] | None:
        """Percent of the card's time by process, of the last seconds. None: not told."""
        since = time.time_ns() // 1000 - SAMPLE_US
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, since)
        except pynvml.NVMLError_NotFound:
            return {}  # no process has used the card since
        except pynvml.NVMLError:
            return None
        shares: dict[int, int] = {}
        for sample in samples:
            shares[int(sample.pid)] = max(shares.get(int(sample.pid), 0), int(sample.smUtil))
        return shares


def runs_on_battery(
    ask: Callable[[], Any] = psutil.sensors_battery, supplies: Path = POWER_SUPPLIES
) -> bool | None:
    """Say whether the machine runs on its battery. None: it has none, or nothing tells.

    Args:
        ask: psutil's word. It knows a mains adapter by two names alone, and takes a battery that
            neither charges nor is full for unknown. So is one that is held at a charge limit.
        supplies: Where Linux lists every adapter.
    """
    try:
        battery = ask()
    except OSError:  # this kernel lists no power supplies
        return None
    if battery is None:
        return None
    if battery.power_plugged is not None:
        return not battery.power_plugged
    adapters = [kind.parent / "online" for kind in supplies.glob("*/type") if _says(kind, "Mains")]
    return not any(_says(online, "1") for online in adapters) if adapters else None


def _says(file: Path, word: str) -> bool:
    try:
        return file.read_text().strip() == word
    except (OSError, UnicodeError):
        return False


def card_uuid(index: int) -> str | None:
    """Return the name of a card that no other card ever has. None: NVML does not show it."""
    try:
        pynvml.nvmlInit()
        return _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)))
    except pynvml.NVMLError:
        return None


def power_limit(index: int) -> tuple[float | None, str]:
    """Return what a card may draw, in watts, or None and why that is not known."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000, ""
    except pynvml.NVMLError as error:
        return None, f"NVML does not tell what card {index} draws: {error}"


def with_children(pids: frozenset[int]) -> frozenset[int]:
    """Add the descendants of processes."""
    found = set(pids)
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
    return frozenset(found)


def program(pid: int) -> str:
    """Name the program of a process, without its folder."""
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        pass
    named = _told(lambda: pynvml.nvmlSystemGetProcessName(pid))
    return PurePath(_text(named)).name if named else "?"


def _told(ask: Callable[[], T]) -> T | None:
    """Ask NVML. None: this card or this driver does not tell."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
