"""NVML as tests need it: GPUs with programs, heat and limits, and calls that fail with a code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

from piecework_node.owner.causes import MIB

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
LOST = pynvml.NVML_ERROR_GPU_IS_LOST
EVERY_CALL = (
    "memory", "rates", "power", "energy", "name", "temperature", "threshold", "margin", "fields",
    "reasons", "compute", "graphics", "shares",
)  # fmt: skip


@dataclass
class FakeNvml:
    """Implements `NvmlLibrary`. It is GPU 0 itself, and `others` are the other GPUs.

    compute, graphics: bytes by process. slowdown: the temperature at which its hardware slows it
    down. margin, offset: what newer cards tell instead.
    """

    compute: dict[int, int] = field(default_factory=dict)
    graphics: dict[int, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    temperature: int = 40
    slowdown: int | None = None
    margin: int | None = None
    offset: int | None = None
    reasons: int = 0
    others: dict[int, FakeNvml] = field(default_factory=dict)

    def fall_off(self) -> None:
        """Fall off the bus: every call says so from now on."""
        self.failing = dict.fromkeys(EVERY_CALL, LOST)

    def _of(self, name: str, value: Any) -> Any:
        if name in self.failing:
            raise pynvml.NVMLError(self.failing[name])
        if value is None:
            raise pynvml.NVMLError(NOT_SUPPORTED)
        return value

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        self._of("init", 0)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return self._of("handle", self if index == 0 else self.others.get(index))

    def nvmlDeviceGetMemoryInfo(self, handle: FakeNvml) -> Any:  # noqa: N802
        return handle._of("memory", SimpleNamespace(used=MIB, total=8 * MIB))

    def nvmlDeviceGetUtilizationRates(self, handle: FakeNvml) -> Any:  # noqa: N802
        return handle._of("rates", SimpleNamespace(gpu=50))

    def nvmlDeviceGetPowerUsage(self, handle: FakeNvml) -> int:  # noqa: N802
        return int(handle._of("power", 90_000))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: FakeNvml) -> int:  # noqa: N802
        return int(handle._of("energy", 1_000_000))

    def nvmlDeviceGetName(self, handle: FakeNvml) -> str:  # noqa: N802
        return str(handle._of("name", "card"))

    def nvmlDeviceGetTemperature(self, handle: FakeNvml, sensor: int) -> int:  # noqa: N802
        return int(handle._of("temperature", handle.temperature))

    def nvmlDeviceGetTemperatureThreshold(self, handle: FakeNvml, threshold: int) -> int:  # noqa: N802
        assert threshold == pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return int(handle._of("threshold", handle.slowdown))

    def nvmlDeviceGetMarginTemperature(self, handle: FakeNvml) -> int:  # noqa: N802
        return int(handle._of("margin", handle.margin))

    def nvmlDeviceGetFieldValues(self, handle: FakeNvml, ids: list[int]) -> Sequence[Any]:  # noqa: N802
        assert ids == [pynvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT]
        told = handle._of("fields", True) and handle.offset is not None
        return [
            SimpleNamespace(
                nvmlReturn=pynvml.NVML_SUCCESS if told else NOT_SUPPORTED,
                valueType=pynvml.NVML_VALUE_TYPE_SIGNED_INT,
                value=SimpleNamespace(siVal=handle.offset or 0),
            )
        ]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: FakeNvml) -> int:  # noqa: N802
        return int(handle._of("reasons", handle.reasons))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeNvml) -> list[Any]:  # noqa: N802
        return list(handle._of("compute", _processes(handle.compute)))

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: FakeNvml) -> list[Any]:  # noqa: N802
        return list(handle._of("graphics", _processes(handle.graphics)))

    def nvmlDeviceGetProcessUtilization(self, handle: FakeNvml, since: int) -> list[Any]:  # noqa: N802
        pids = {**handle.compute, **handle.graphics}
        return list(handle._of("shares", [SimpleNamespace(pid=pid, smUtil=60) for pid in pids]))


def _processes(used: dict[int, int]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in used.items()]
