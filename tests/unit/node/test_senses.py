"""What a card and a battery tell, and what they keep to themselves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from piecework_node.errors import ConfigError
from piecework_node.owner.causes import MIB, Baseline, OwnerRules, causes
from piecework_node.owner.nvml import MachineSenses, NvmlLibrary, runs_on_battery
from piecework_node.owner.readings import GpuReading, Readings
from piecework_node.owner.watch import check_rules
from tests.support.node.fake_nvml import NO_PERMISSION, NOT_SUPPORTED, FakeNvml
from tests.support.node.fake_senses import FakeSenses
from tests.unit.node.test_owner import MONDAY

WATCHING = (OwnerRules(gpu_share=25), OwnerRules(gpu_memory=MIB))


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


@pytest.mark.parametrize(
    ("card", "at"),
    [
        (FakeNvml(temperature=70, slowdown=92), 92),
        # An H100 tells a margin, and that its slowdown is at -2 of it.
        (FakeNvml(temperature=70, slowdown=99, margin=17, offset=-2), 89),
        (FakeNvml(temperature=70, slowdown=92, margin=17), 92),
        (FakeNvml(temperature=70, margin=17), None),
        (FakeNvml(temperature=70, slowdown=0), None),
        (FakeNvml(temperature=70), None),
        (FakeNvml(slowdown=92, failing={"temperature": NO_PERMISSION}), None),
    ],
)
def test_a_card_tells_where_its_hardware_slows_it_down_or_does_not(
    card: FakeNvml, at: int | None
) -> None:
    assert seen(card).slows_at_c == at


def test_a_group_is_read_gpu_by_gpu_and_one_that_is_not_there_is_named() -> None:
    others = {2: FakeNvml({2**22: MIB}, temperature=66)}
    library: NvmlLibrary = FakeNvml(temperature=50, others=others)
    readings = MachineSenses(0, 2, library=library).read(frozenset())
    assert [(gpu.number, gpu.temperature_c) for gpu in readings.gpus] == [(0, 50), (2, 66)]
    assert [len(gpu.processes or ()) for gpu in readings.gpus] == [0, 1]
    assert "does not show card 1" in MachineSenses(0, 1, library=library).missing


def test_a_card_that_fell_off_the_bus_is_told_from_one_that_keeps_things_to_itself() -> None:
    card = FakeNvml()
    assert not seen(card).lost and not seen(FakeNvml(failing={"memory": NOT_SUPPORTED})).lost
    card.fall_off()
    gone = seen(card)
    assert gone.lost and gone.temperature_c is None and gone.processes is None


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
