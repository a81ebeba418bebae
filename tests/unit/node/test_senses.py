"""What a card and a battery tell, and what they keep to themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from piecework_node.errors import ConfigError
from piecework_node.owner.causes import MIB, Baseline, OwnerRules, causes
from piecework_node.owner.nvml import MachineSenses, NvmlLibrary, runs_on_battery
from piecework_node.owner.readings import GpuReading, Readings
from piecework_node.owner.watch import check_rules
from tests.unit.node.test_owner import MONDAY, FakeSenses

NOT_SUPPORTED = 3
NO_PERMISSION = 4
WATCHING = (OwnerRules(gpu_share=25), OwnerRules(gpu_memory=MIB))


@dataclass
class FakeNvml:
    """Implements `NvmlLibrary`: one card with programs on it, and calls that fail with a code."""

    compute: dict[int, int] = field(default_factory=dict)
    graphics: dict[int, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)

    def _of(self, name: str, value: Any) -> Any:
        if name in self.failing:
            raise pynvml.NVMLError(self.failing[name])
        return value

    def nvmlInit(self) -> None:  # noqa: N802  NVML's names
        self._of("init", None)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        return self._of("handle", index)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:  # noqa: N802
        return self._of("memory", SimpleNamespace(used=MIB, total=8 * MIB))

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:  # noqa: N802
        return self._of("rates", SimpleNamespace(gpu=50))

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:  # noqa: N802
        return int(self._of("power", 90_000))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:  # noqa: N802
        return int(self._of("energy", 1_000_000))

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return str(self._of("name", "card"))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:  # noqa: N802
        return int(self._of("temperature", 40))

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:  # noqa: N802
        return int(self._of("reasons", 0))

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        return list(self._of("compute", _processes(self.compute)))

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> list[Any]:  # noqa: N802
        return list(self._of("graphics", _processes(self.graphics)))

    def nvmlDeviceGetProcessUtilization(self, handle: Any, since: int) -> list[Any]:  # noqa: N802
        pids = {**self.compute, **self.graphics}
        return list(self._of("shares", [SimpleNamespace(pid=pid, smUtil=60) for pid in pids]))


def _processes(used: dict[int, int]) -> list[Any]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in used.items()]


def seen(card: FakeNvml) -> GpuReading:
    library: NvmlLibrary = card
    gpu = MachineSenses(0, library=library).read(frozenset()).gpu
    assert gpu is not None
    return gpu


def texts(rules: OwnerRules, gpu: GpuReading) -> list[str]:
    found = causes(
        rules,
        Baseline(),
        Readings(gpu),
        wall=0.0,
        local=MONDAY,
        word=None,
        paused=False,
    )
    return [cause.text for cause in found]


def test_programs_of_both_lists_count_once() -> None:
    gpu = seen(FakeNvml(compute={2**22: MIB}, graphics={2**22: MIB, 2**22 + 1: 3 * MIB}))
    assert gpu.processes is not None
    assert [(p.memory_bytes, p.share) for p in gpu.processes] == [(MIB, 60), (3 * MIB, 60)]


@pytest.mark.parametrize("rules", WATCHING)
@pytest.mark.parametrize(
    "failing",
    [{"compute": NOT_SUPPORTED}, {"compute": NO_PERMISSION}, {"graphics": NO_PERMISSION}],
)
def test_a_card_that_hides_its_programs_does_not_count_as_free(
    rules: OwnerRules, failing: dict[str, int]
) -> None:
    """A game on it would never be seen, and the owner relies on the rule."""
    gpu = seen(FakeNvml(graphics={2**22: 3000 * MIB}, failing=failing))
    assert gpu.processes is None
    (text,) = texts(rules, gpu)
    assert "does not tell any more what pause_gpu_" in text
    with pytest.raises(ConfigError, match="pause_gpu_"):
        check_rules(rules, FakeSenses(), Readings(gpu))
    assert texts(OwnerRules(temperature_c=80), gpu) == []


@pytest.mark.parametrize("rules", WATCHING)
def test_a_card_without_graphics_tells_all_of_its_programs(rules: OwnerRules) -> None:
    """So answers a card that is cut into slices."""
    gpu = seen(FakeNvml(failing={"graphics": NOT_SUPPORTED}))
    assert gpu.processes == () and texts(rules, gpu) == []


def supply(folder: Path, name: str, kind: str, online: str = "") -> None:
    (folder / name).mkdir()
    (folder / name / "type").write_text(f"{kind}\n")
    if online:
        (folder / name / "online").write_text(f"{online}\n")


@pytest.mark.parametrize(("plugged", "on_battery"), [(True, False), (False, True)])
def test_a_battery_says_whether_the_machine_runs_on_it(
    tmp_path: Path, plugged: bool, on_battery: bool
) -> None:
    assert runs_on_battery(lambda: SimpleNamespace(power_plugged=plugged), tmp_path) is on_battery
    assert runs_on_battery(lambda: None, tmp_path) is None


def test_a_battery_at_its_charge_limit_is_not_one_that_the_machine_runs_on(tmp_path: Path) -> None:
    """It neither charges nor is full, and the adapter has a name that psutil does not know."""
    supply(tmp_path, "BAT0", "Battery")
    held = SimpleNamespace(power_plugged=None)
    assert runs_on_battery(lambda: held, tmp_path) is None
    supply(tmp_path, "ADP1", "Mains", online="1")
    assert runs_on_battery(lambda: held, tmp_path) is False
    (tmp_path / "ADP1" / "online").write_text("0\n")
    assert runs_on_battery(lambda: held, tmp_path) is True


def test_a_machine_that_shows_no_power_supplies_still_shows_its_card(tmp_path: Path) -> None:
    """Otherwise no look at it ends, and no pause ends either."""

    def gone() -> Any:
        raise FileNotFoundError(tmp_path)

    assert runs_on_battery(gone, tmp_path / "none") is None
