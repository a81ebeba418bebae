"""Readings through NVML and psutil. Whatever a card or a driver does not support is None."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, Protocol, TypeVar, cast

import psutil
import pynvml

from piecework_node.owner.readings import TOO_HOT, GpuProcess, GpuReading, Readings

T = TypeVar("T")
SAMPLE_US: Final = 2_000_000
"""How far back the shares of processes are asked for."""
POWER_SUPPLIES: Final = Path("/sys/class/power_supply")
_THROTTLES: Final = (
    ("nvmlClocksEventReasonHwThermalSlowdown", TOO_HOT),
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

    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, threshold: int) -> int: ...  # noqa: N802

    def nvmlDeviceGetMarginTemperature(self, handle: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetFieldValues(self, handle: Any, ids: list[int]) -> Sequence[Any]: ...  # noqa: N802

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int: ...  # noqa: N802

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]: ...  # noqa: N802

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> list[Any]: ...  # noqa: N802

    def nvmlDeviceGetProcessUtilization(self, handle: Any, since: int) -> list[Any]: ...  # noqa: N802


class MachineSenses:
    """Implements `readings.Senses` for one card of this machine, or for a group of GPUs."""

    def __init__(self, *numbers: int, library: NvmlLibrary | None = None) -> None:
        """Open the GPUs of these numbers, as `nvidia-smi -L` counts them. library: NVML itself."""
        self._nvml = library or cast(NvmlLibrary, pynvml)
        self._handles: dict[int, Any] = {}
        self.missing = ""
        for number in numbers:
            try:
                self._nvml.nvmlInit()
                self._handles[number] = self._nvml.nvmlDeviceGetHandleByIndex(number)
            except pynvml.NVMLError as error:
                self.missing = self.missing or f"NVML does not show card {number}: {error}"

    def read(self, own: frozenset[int]) -> Readings:
        """Read every GPU and the battery once."""
        gpus = []
        if self._handles:
            family = with_children(own)
            gpus = [self._card(number, handle, family) for number, handle in self._handles.items()]
        return Readings(gpus[0] if gpus else None, runs_on_battery(), tuple(gpus[1:]))

    def _card(self, number: int, handle: Any, own: frozenset[int]) -> GpuReading:
        nvml, lost, memory = self._nvml, False, None
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            lost = error.value == pynvml.NVML_ERROR_GPU_IS_LOST
        rates = _told(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        watts = _told(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        joules = _told(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        degrees = _told(lambda: int(nvml.nvmlDeviceGetTemperature(handle, sensor)))
        return GpuReading(
            name=_text(_told(lambda: nvml.nvmlDeviceGetName(handle)) or "GPU"),
            temperature_c=degrees,
            power_w=watts,
            energy_j=joules,
            utilization=None if rates is None else int(rates.gpu),
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            throttled=self._throttled(handle),
            processes=self._processes(handle, own),
            number=number,
            slows_at_c=None if degrees is None else self._slows_at(handle, degrees),
            lost=lost,
        )

    def _slows_at(self, handle: Any, degrees: int) -> int | None:
        """The temperature at which the hardware slows the card down. None: not told.

        Cards since Ada count down instead: a margin is left, and the slowdown is at an offset of
        it, at -2 for instance. There NVML gives up the older way.
        """
        nvml, field = self._nvml, pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT
        margin = _told(lambda: int(nvml.nvmlDeviceGetMarginTemperature(handle)))
        if margin is not None:
            values = _told(lambda: nvml.nvmlDeviceGetFieldValues(handle, [field]))
            told = [
                int(one.value.siVal)
                for one in values or ()
                if one.nvmlReturn == pynvml.NVML_SUCCESS
                and one.valueType == pynvml.NVML_VALUE_TYPE_SIGNED_INT
            ]
            if told:
                return degrees + margin - told[0]
        kind = pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        # Some answer 0 where they have none.
        return _told(lambda: int(nvml.nvmlDeviceGetTemperatureThreshold(handle, kind))) or None

    def _throttled(self, handle: Any) -> tuple[str, ...] | None:
        bits = _told(lambda: int(self._nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
        if bits is None:
            return None
        return tuple(text for name, text in _THROTTLES if bits & getattr(pynvml, name))

    def _processes(self, handle: Any, own: frozenset[int]) -> tuple[GpuProcess, ...] | None:
        """The programs on the card. None: not told. That is not a card without programs."""
        nvml = self._nvml
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
        shares = self._shares(handle)
        return tuple(
            GpuProcess(pid, program(pid), used, None if shares is None else shares.get(pid, 0))
            for pid, used in sorted(memory.items())
            if pid not in own
        )

    def _shares(self, handle: Any) -> dict[int, int] | None:
        """Percent of the card's time by process, of the last seconds. None: not told."""
        since = time.time_ns() // 1000 - SAMPLE_US
        try:
            samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, since)
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
