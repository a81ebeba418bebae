"""Readings through NVML and psutil. Whatever a card or a driver does not support is None."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, Final, TypeVar

import psutil
import pynvml

from piecework_node.owner.readings import GpuProcess, GpuReading, Readings

T = TypeVar("T")
SAMPLE_US: Final = 2_000_000
"""How far back the shares of processes are asked for."""
_THROTTLES: Final = (
    ("nvmlClocksEventReasonHwThermalSlowdown", "too hot"),
    ("nvmlClocksEventReasonSwThermalSlowdown", "warm"),
    ("nvmlClocksEventReasonHwPowerBrakeSlowdown", "power brake"),
    ("nvmlClocksEventReasonHwSlowdown", "hardware slowdown"),
    ("nvmlClocksEventReasonSwPowerCap", "power limit"),
)


class MachineSenses:
    """Implements `readings.Senses` for one card of this machine."""

    def __init__(self, index: int) -> None:
        """Open the card of this number, as `nvidia-smi -L` counts them."""
        self._handle: Any = None
        self.missing = ""
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            self.missing = f"NVML does not show card {index}: {error}"

    def read(self, own: frozenset[int]) -> Readings:
        """Read card and battery once."""
        battery = psutil.sensors_battery()
        gpu = None
        if self._handle is not None:
            gpu = self._card(with_children(own))
        return Readings(gpu, None if battery is None else not battery.power_plugged)

    def _card(self, own: frozenset[int]) -> GpuReading:
        handle = self._handle
        memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle))
        rates = _told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle))
        watts = _told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        joules = _told(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        return GpuReading(
            name=_text(_told(lambda: pynvml.nvmlDeviceGetName(handle)) or "GPU"),
            temperature_c=_told(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, sensor))),
            power_w=watts,
            energy_j=joules,
            utilization=None if rates is None else int(rates.gpu),
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            throttled=self._throttled(),
            processes=self._processes(own),
        )

    def _throttled(self) -> tuple[str, ...] | None:
        bits = _told(lambda: int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle)))
        if bits is None:
            return None
        return tuple(text for name, text in _THROTTLES if bits & getattr(pynvml, name))

    def _processes(self, own: frozenset[int]) -> tuple[GpuProcess, ...]:
        memory: dict[int, int | None] = {}
        for ask in (
            pynvml.nvmlDeviceGetComputeRunningProcesses,
            pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        ):
            for process in _told(lambda ask=ask: ask(self._handle)) or ():  # type: ignore[misc]
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
            samples = pynvml.nvmlDeviceGetProcessUtilization(self._handle, since)
        except pynvml.NVMLError_NotFound:
            return {}  # no process has used the card since
        except pynvml.NVMLError:
            return None
        shares: dict[int, int] = {}
        for sample in samples:
            shares[int(sample.pid)] = max(shares.get(int(sample.pid), 0), int(sample.smUtil))
        return shares


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
