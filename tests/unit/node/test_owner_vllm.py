"""The owner's rules where vLLM works: its servers are ours, and a group has several GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.base.errors import SettingsError
from piecework_node import config
from piecework_node.daemon.owners import owner_rules
from piecework_node.errors import ConfigError
from piecework_node.owner.causes import MIB, OwnerRules, describe_heat
from piecework_node.owner.readings import GpuProcess, GpuReading, Readings
from piecework_node.owner.watch import check_rules
from tests.support.node.fake_senses import FakeSenses
from tests.unit.node.test_owner import DESKTOP, GAME, Owned, found

SERVED = {
    "payout": "0x" + "11" * 20,
    "backend": "vllm",
    "model": "owner/model",
    "vllm_endpoints": ("http://127.0.0.1:8000",),
}
BUSY = GpuProcess(900, "VLLM::EngineCor", 70_000 * MIB, 95)
IDLE = GpuProcess(900, "VLLM::EngineCor", 70_000 * MIB, 0)
RENAMED = GpuProcess(900, "llm-server", 70_000 * MIB, 95)


def rules_of(**values: object) -> OwnerRules:
    return owner_rules(config.check({**SERVED, **values}))


async def seen(owned: Owned, *processes: GpuProcess) -> tuple[str, ...]:
    """The causes when the card shows these programs."""
    owned.senses.show(*processes)
    await owned.watch.look()
    return owned.texts


@pytest.mark.parametrize(
    "setting", [{"pause_gpu_share": 25}, {"pause_gpu_memory_mib": 1000}], ids=str
)
async def test_the_work_of_the_vllm_server_is_no_cause_and_a_game_beside_it_is(
    tmp_path: Path, setting: dict[str, int]
) -> None:
    owned = Owned(tmp_path, rules_of(**setting))
    await owned.learn(DESKTOP)
    assert await seen(owned, DESKTOP, BUSY) == ()
    (text,) = await seen(owned, DESKTOP, BUSY, GAME)
    assert "60 % of the card, game most" in text or "3000 MiB of the card, game most" in text


async def test_a_server_of_another_name_is_asked_for_and_counts_as_ours_once_it_is_named(
    tmp_path: Path,
) -> None:
    """Its own work would pause it, again and again. So the worker takes no job at all."""
    owned = Owned(tmp_path, rules_of(pause_gpu_share=25))
    await owned.learn(DESKTOP)
    said = "no program on GPU 0 is called VLLM::…: which one is the vLLM server?"
    assert said in await seen(owned, DESKTOP, RENAMED)
    with pytest.raises(ConfigError, match="which one is the vLLM server"):
        check_rules(owned.rules, FakeSenses(), owned.senses.shown)
    owned.rules = rules_of(pause_gpu_share=25, vllm_programs=("llm-server",))
    owned.brakes.resume()
    owned.start()
    assert await seen(owned, DESKTOP, RENAMED) == ()
    check_rules(owned.rules, FakeSenses(), owned.senses.shown)


async def test_jobs_go_on_as_soon_as_the_server_is_seen(tmp_path: Path) -> None:
    owned = Owned(tmp_path, rules_of(pause_gpu_share=25))
    await owned.learn(DESKTOP)
    assert await seen(owned, DESKTOP)
    assert not await seen(owned, DESKTOP, IDLE)
    owned.rules = rules_of(pause_temperature_c=80)
    owned.start()
    assert not await seen(owned, DESKTOP), "no rule needs to know the server"


async def test_the_servers_of_other_cards_are_ours_too(tmp_path: Path) -> None:
    """A card with an engine of ours does not take them for the owner's."""
    alone = Owned(tmp_path, OwnerRules(gpu_share=25))
    await alone.learn(DESKTOP)
    assert await seen(alone, DESKTOP, BUSY)
    beside = Owned(tmp_path, OwnerRules(gpu_share=25, ours=("VLLM::",)))
    assert await seen(beside, DESKTOP, BUSY) == ()


def two(second: GpuReading) -> tuple[GpuReading, GpuReading]:
    return GpuReading("a", 40, 90.0, processes=(DESKTOP, BUSY)), second


async def test_every_gpu_of_a_group_is_watched_with_a_baseline_of_its_own(tmp_path: Path) -> None:
    owned = Owned(tmp_path, rules_of(pause_gpu_share=25, gpu_numbers=(0, 3)))
    quiet = GpuReading("b", 40, 90.0, processes=(BUSY,), number=3)
    owned.senses.show_group(*two(quiet))
    await owned.learn_as_shown()
    for watch in (owned.watch, owned.start()):
        await watch.look()
        assert not watch.learning and owned.texts == ()
    desktop_there = GpuProcess(5, "Xorg", MIB, 30)
    busy = GpuReading("b", 40, 90.0, processes=(BUSY, desktop_there), number=3)
    owned.senses.show_group(*two(busy))
    await owned.watch.look()
    assert owned.texts == ("other programs use 30 % of GPU 3, Xorg most",)


async def test_a_group_that_gets_another_gpu_is_learned_again(tmp_path: Path) -> None:
    owned = Owned(tmp_path, rules_of(pause_gpu_share=25))
    await owned.learn(DESKTOP, IDLE)
    assert not owned.start().learning
    game_there = GpuReading("b", 40, 90.0, processes=(IDLE, GAME), number=3)
    owned.senses.show_group(*two(game_there))
    await owned.watch.look()
    assert owned.watch.learning and not owned.texts


async def test_heat_and_power_of_any_gpu_of_a_group_are_causes(tmp_path: Path) -> None:
    owned = Owned(tmp_path, rules_of(pause_temperature_c=80, gpu_numbers=(0, 3)))
    owned.senses.show_group(*two(GpuReading("b", 81, 90.0, number=3)))
    await owned.watch.look()
    assert owned.texts == ("GPU 3 has 81 °C, the bound is 80",)


@pytest.mark.parametrize(
    ("values", "programs", "counts"),
    [
        ({}, (DESKTOP, IDLE), True),
        ({}, (DESKTOP,), False),
        ({"gpu_number": 0}, (DESKTOP,), True),
    ],
)
def test_heat_counts_where_the_settings_or_the_card_show_that_the_server_works_there(
    values: dict[str, object], programs: tuple[GpuProcess, ...], counts: bool
) -> None:
    """Without either, the hot card may be one on which the owner plays."""
    hot = GpuReading("card", 90, slows_at_c=92, processes=programs)
    assert bool(found(rules_of(**values), Readings(hot), on_gpu=True)) is counts


def test_the_owner_reads_when_each_gpu_is_too_hot_and_what_nobody_has_named() -> None:
    group = Readings(GpuReading("a", 40, slows_at_c=92), more=(GpuReading("b", 40, number=3),))
    told = "GPU 0 is too hot from 89 °C on, GPU 3 does not tell when it is too hot"
    assert describe_heat(rules_of(gpu_numbers=(0, 3)), group) == told
    assert describe_heat(rules_of(), group).startswith(told + ", no setting says which GPUs")
    assert describe_heat(OwnerRules(), Readings()) == ""


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"gpu_numbers": (1, 1)}, "a GPU is named twice"),
        ({"vllm_programs": ("",)}, "an empty name"),
        ({"gpu_numbers": (64,)}, "gpu_numbers"),
        ({"backend": "diffusion", "vllm_endpoints": (), "gpu_numbers": (1, 2)}, "uses gpu_number"),
    ],
)
def test_a_group_that_cannot_be_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        config.check({**SERVED, **values})


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        (({"pause_temperature_c": 80},), "card a has pause rules for GPUs and needs gpu_numbers"),
        (({"gpu_numbers": (0, 1)}, {"gpu_numbers": (1, 2)}), "two cards have gpu_number 1"),
        (({"gpu_numbers": (0, 1)}, {"backend": "diffusion", "gpu_number": 1}), "two cards have"),
    ],
)
def test_of_several_cards_each_names_its_own_gpus(
    tables: tuple[dict[str, object], ...], problem: str
) -> None:
    """Number 0, which is watched otherwise, may be another card's."""
    outside = {"payout": SERVED["payout"], "model": "owner/model"}
    served = {"backend": "vllm", "vllm_endpoints": SERVED["vllm_endpoints"]}
    cards = [
        {**({} if "backend" in table else served), **table, "name": name}
        for name, table in zip("ab", tables, strict=False)
    ]
    with pytest.raises(SettingsError, match=problem):
        config.check({**outside, "cards": cards})


def test_the_programs_that_hide_nothing_are_asked_of_others_alone() -> None:
    """vLLM's own processes may keep to themselves what they hold. That breaks no rule."""
    silent = GpuProcess(900, "VLLM::EngineCor", None, None)
    readings = Readings(GpuReading("card", processes=(silent, DESKTOP)))
    check_rules(rules_of(pause_gpu_share=25), FakeSenses(), readings)
