"""When the owner needs the machine: hours, other programs, heat, power, battery, and a command."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from piecework.base.errors import PieceworkError
from piecework_node import config, logs
from piecework_node.daemon.owners import owner_rules
from piecework_node.errors import ConfigError
from piecework_node.owner.causes import (
    MAX_PROGRAMS,
    MIB,
    Baseline,
    Cause,
    OwnerRules,
    OwnersWord,
    causes,
)
from piecework_node.owner.nvml import MachineSenses
from piecework_node.owner.readings import GpuProcess, GpuReading, Readings
from piecework_node.owner.watch import LEARN_S, OwnerWatch, check_rules, inherit_pauses
from piecework_node.runtime.pause import LONGEST_RETRY_S, Pause
from piecework_node.schedule import Window
from piecework_protocol.types import Timestamp
from tests.support.clock import FakeClock
from tests.support.node.fake_senses import FakeSenses

MONDAY = datetime(2026, 11, 30)
GAME = GpuProcess(77, "game", 3000 * MIB, 60)
DESKTOP = GpuProcess(5, "Xorg", 400 * MIB, 8)


class FakeBrakes:
    """Implements `Brakes`: an engine that stops and goes on at once."""

    def __init__(self) -> None:
        self.now: Pause | None = None

    def pause(self, causes: tuple[str, ...], ends_at: Timestamp | None) -> None:
        self.now = Pause(0.0, causes, Timestamp(0), ends_at)

    def resume(self) -> None:
        self.now = None


class Owned:
    """A watch over a machine in memory."""

    def __init__(self, home: Path, rules: OwnerRules) -> None:
        self.home, self.rules = home, rules
        self.senses, self.brakes, self.clock = FakeSenses(), FakeBrakes(), FakeClock()
        self.watch = self.start()

    def start(self, card: str = "") -> OwnerWatch:
        """The watch of another life of the daemon."""
        self.watch = OwnerWatch(
            self.rules,
            self.senses,
            self.brakes,
            self.home,
            card=card,
            own=lambda: frozenset({4242}),
            clock=self.clock,
            log=logs.silent(),
        )
        return self.watch

    async def learn(self, *processes: GpuProcess) -> None:
        """Let the first start see these programs for as long as it learns."""
        self.senses.show(*processes)
        await self.learn_as_shown()

    async def learn_as_shown(self) -> None:
        """Let the first start see what is shown for as long as it learns."""
        await self.watch.look()
        self.clock.advance(LEARN_S)
        await self.watch.look()

    @property
    def texts(self) -> tuple[str, ...]:
        return self.brakes.now.causes if self.brakes.now is not None else ()


def files(home: Path) -> list[str]:
    return sorted(file.name for file in home.iterdir())


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY.replace(hour=hour, minute=minute) + (
        datetime(2026, 1, 1 + day) - datetime(2026, 1, 1)
    )


def found(rules: OwnerRules, readings: Readings, **more: object) -> list[Cause]:
    values: dict[str, object] = {
        "baseline": Baseline(), "wall": 0.0, "local": MONDAY, "word": None, "paused": False
    }  # fmt: skip
    return causes(rules, readings=readings, **{**values, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "open_at", "end", "shut_at"),
    [
        ("mon-fri 18:00-23:30", at(0, 18), at(0, 23, 30), at(5, 19)),
        ("18:00-06:00", at(1, 2), at(1, 6), at(1, 6)),
        ("sun 22:00-06:00", at(7, 5, 59), at(7, 6), at(1, 5)),
        ("sat-mon", at(0, 23, 59), at(1, 0), at(1, 0)),
        ("fri", at(4, 0), at(5, 0), at(3, 23, 59)),
        ("Mon 00:00-24:00", at(0, 12), at(1, 0), at(1, 0)),
    ],
)
def test_hours_are_open_from_their_start_up_to_their_end(
    text: str, open_at: datetime, end: datetime, shut_at: datetime
) -> None:
    window = Window.parse(text)
    assert window.ends(open_at) == end
    assert window.ends(shut_at) is None


@pytest.mark.parametrize(
    "text", ["", "18:00", "mon-", "mun 18:00-19:00", "25:00-26:00", "18:00-19:60", "24:30-01:00"]
)
def test_other_hours_are_refused_by_name_in_the_settings(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"form|day"):
        Window.parse(text)
    with pytest.raises(PieceworkError, match="pause_schedule"):
        config.check({"payout": "0x" + "11" * 20, "pause_schedule": (text,)})


def test_the_settings_become_the_rules() -> None:
    chosen = config.check(
        {
            "payout": "0x" + "11" * 20,
            "pause_schedule": ("mon 08:00-09:00",),
            "pause_gpu_share": 20,
            "pause_gpu_memory_mib": 512,
        }
    )
    rules = owner_rules(chosen)
    assert rules == OwnerRules((Window.parse("mon 08:00-09:00"),), 20, 512 * MIB)
    assert rules.describe() == (
        "the command, the schedule, 20 % of the card's time, 512 MiB of its memory"
    )


async def test_each_of_several_cards_is_paused_by_its_own_command_over_a_restart(
    tmp_path: Path,
) -> None:
    desk, other = Owned(tmp_path, OwnerRules()), Owned(tmp_path, OwnerRules())
    desk.start("desk").command(None)
    await other.start("big").look()
    assert desk.brakes.now is not None and other.brakes.now is None
    assert files(tmp_path) == ["pause-desk.json"]
    await desk.start("desk").look()
    assert desk.texts == ("piecework worker pause",)
    desk.watch.lift()
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [((), ("desk", "big")), (("desk", "big"), ()), (("desk", "big"), ("office", "big"))],
)
async def test_a_pause_holds_when_the_cards_get_other_names(
    tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    """An owner who changes the settings has not said that the card is free."""
    owned = Owned(tmp_path, OwnerRules())
    owned.start(*before[:1]).command(None)
    named = inherit_pauses(tmp_path, after or ("",), owned.clock.wall())
    assert named == (after or ("",))
    for card in after or ("",):
        await owned.start(card).look()
        assert owned.texts == ("piecework worker pause",)
        owned.watch.lift()
    assert not files(tmp_path) and inherit_pauses(tmp_path, after or ("",), 0.0) == ()


def test_of_two_pauses_the_longer_one_holds_and_one_that_is_over_does_not(tmp_path: Path) -> None:
    owned = Owned(tmp_path, OwnerRules())
    owned.start("old").command(3600)
    owned.start("desk").command(60)
    owned.start("big").command(7200)
    assert inherit_pauses(tmp_path, ("desk", "big"), owned.clock.wall()) == ("desk",)
    ends = {card: owned.start(card).decide()[0].ends_at for card in ("desk", "big")}
    now = int(owned.clock.wall())
    assert ends == {"desk": now + 3600, "big": now + 7200}
    owned.start("old").command(5)
    owned.clock.advance(6)
    assert inherit_pauses(tmp_path, ("desk", "big"), owned.clock.wall()) == ()
    assert files(tmp_path) == ["pause-big.json", "pause-desk.json"]


@pytest.mark.parametrize(
    ("rules", "readings"),
    [
        (OwnerRules(gpu_share=50), Readings(GpuReading("card", processes=(GAME,)))),
        (OwnerRules(gpu_memory=2000 * MIB), Readings(GpuReading("card", processes=(GAME,)))),
        (OwnerRules(temperature_c=80), Readings(GpuReading("card", temperature_c=80))),
        (OwnerRules(power_w=300), Readings(GpuReading("card", power_w=300.5))),
        (OwnerRules(on_battery=True), Readings(on_battery=True)),
    ],
)
def test_each_rule_has_its_cause_and_none_counts_that_is_not_set(
    rules: OwnerRules, readings: Readings
) -> None:
    (cause,) = found(rules, readings)
    assert cause.measured and cause.ends_at is None
    assert not found(OwnerRules(), readings)
    assert not found(rules, Readings(GpuReading("card", 40, 90.0), False))


@pytest.mark.parametrize(
    ("rules", "gpu", "setting"),
    [
        (OwnerRules(temperature_c=83), GpuReading("card", None, 90.0), "pause_temperature_c"),
        (OwnerRules(power_w=400), GpuReading("card", 40, None), "pause_power_w"),
        (
            OwnerRules(gpu_share=25),
            GpuReading("card", processes=(GpuProcess(7, "game", 9, None),)),
            "pause_gpu_share",
        ),
        (
            OwnerRules(gpu_memory=MIB),
            GpuReading("card", processes=(GpuProcess(7, "game", None, 9),)),
            "pause_gpu_memory_mib",
        ),
    ],
)
def test_a_rule_whose_reading_is_gone_pauses_and_is_named(
    rules: OwnerRules, gpu: GpuReading, setting: str
) -> None:
    (cause,) = found(rules, Readings(gpu))
    assert cause == Cause(f"the card does not tell any more what {setting} needs", measured=True)
    assert found(OwnerRules(), Readings(gpu)) == []
    assert found(rules, Readings()) == [], "nothing was read yet"
    if rules.watches_processes:
        assert found(rules, Readings(gpu), baseline=None) == [], "it is being learned"


def test_small_programs_count_together_and_the_largest_is_named() -> None:
    small = [GpuProcess(i, f"p{i}", (100 + i) * MIB, 9) for i in range(6)]
    (cause,) = found(OwnerRules(gpu_share=50), Readings(GpuReading("c", processes=tuple(small))))
    assert "54 %" in cause.text
    (cause,) = found(
        OwnerRules(gpu_memory=600 * MIB), Readings(GpuReading("c", processes=tuple(small)))
    )
    assert "615 MiB" in cause.text and "p5 most" in cause.text


def test_a_hot_card_has_to_cool_down_before_it_counts_as_cool() -> None:
    rules, warm = OwnerRules(temperature_c=80), Readings(GpuReading("card", temperature_c=77))
    assert not found(rules, warm)
    assert found(rules, warm, paused=True)
    assert not found(rules, Readings(GpuReading("card", temperature_c=74)), paused=True)


def test_a_schedule_and_a_command_know_their_end() -> None:
    rules = OwnerRules(schedule=(Window.parse("mon 18:00-23:00"),))
    word = OwnersWord(Timestamp(1060))
    some = found(rules, Readings(), wall=1000.0, local=at(0, 22, 50), word=word)
    assert [cause.ends_at for cause in some] == [1060, 1600]
    assert not found(OwnerRules(), Readings(), wall=1060.0, word=word)


def test_a_baseline_has_a_bound() -> None:
    baseline = Baseline()
    baseline.learn(GpuProcess(i, f"program {i}", 1, 1) for i in range(MAX_PROGRAMS + 9))
    assert len(baseline.programs) == MAX_PROGRAMS


async def test_what_the_card_was_used_for_at_first_is_no_cause_and_more_of_it_is(
    tmp_path: Path,
) -> None:
    owned = Owned(tmp_path, OwnerRules(gpu_memory=1000 * MIB))
    await owned.learn(DESKTOP, GAME)
    assert not owned.texts and not owned.watch.learning
    await owned.watch.look()
    assert not owned.texts
    owned.senses.show(DESKTOP, GpuProcess(77, "game", 4100 * MIB, 60))
    await owned.watch.look()
    assert "1100 MiB" in owned.texts[0]
    owned.brakes.resume()
    owned.senses.show(DESKTOP, GAME)
    again = owned.start()
    await again.look()
    assert not owned.texts and not again.learning, "the baseline outlives a restart"


async def test_other_programs_are_no_cause_while_their_usual_use_is_being_learned(
    tmp_path: Path,
) -> None:
    owned = Owned(tmp_path, OwnerRules(gpu_share=10))
    owned.senses.show(GAME)
    await owned.watch.look()
    assert owned.watch.learning and not owned.texts


async def test_our_own_processes_are_told_apart(tmp_path: Path) -> None:
    owned = Owned(tmp_path, OwnerRules())
    await owned.watch.look()
    assert 4242 in owned.senses.own and len(owned.senses.own) == 2


async def test_jobs_go_on_once_a_measured_cause_has_been_gone_for_long_enough(
    tmp_path: Path,
) -> None:
    owned = Owned(tmp_path, OwnerRules(gpu_share=10, quiet_s=30))
    await owned.learn(DESKTOP)
    owned.senses.show(DESKTOP, GAME)
    await owned.watch.look()
    owned.senses.show(DESKTOP)
    for seconds, pauses in ((29, True), (2, False)):
        owned.clock.advance(seconds)
        await owned.watch.look()
        assert (owned.brakes.now is not None) is pauses


async def test_a_command_pauses_at_once_outlives_a_restart_and_is_lifted(tmp_path: Path) -> None:
    owned = Owned(tmp_path, OwnerRules())
    owned.watch.command(None)
    assert owned.texts == ("piecework worker pause",)
    assert owned.brakes.now is not None and owned.brakes.now.ends_at is None
    owned.brakes.resume()
    await owned.start().look()
    assert owned.texts
    assert owned.watch.lift() == () and not owned.texts
    await owned.start().look()
    assert not owned.texts


async def test_a_command_with_an_end_ends_then(tmp_path: Path) -> None:
    owned = Owned(tmp_path, OwnerRules())
    owned.watch.command(90)
    assert owned.brakes.now is not None and owned.brakes.now.ends_at == owned.clock.now() + 90
    owned.clock.advance(91)
    await owned.watch.look()
    assert not owned.texts


async def test_lifting_a_command_names_the_causes_that_are_left(tmp_path: Path) -> None:
    owned = Owned(tmp_path, OwnerRules(on_battery=True))
    owned.senses.shown = Readings(on_battery=True)
    owned.watch.command(None)
    await owned.watch.look()
    assert owned.watch.lift() == ("the machine runs on its battery",)
    assert owned.texts


@pytest.mark.parametrize("name", ["pause.json", "gpu-baseline.json"])
@pytest.mark.parametrize("text", ["", "[]", '{"until": "soon", "programs": {"x": 1}}'])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=name):
        Owned(tmp_path, OwnerRules(gpu_share=1))


def test_a_rule_for_a_card_that_is_not_there_is_refused() -> None:
    senses = FakeSenses("no driver")
    with pytest.raises(ConfigError, match="no driver"):
        check_rules(OwnerRules(power_w=1), senses)
    check_rules(OwnerRules(on_battery=True), senses)


@pytest.mark.parametrize(
    ("rules", "setting"),
    [
        (OwnerRules(power_w=1), "pause_power_w"),
        (OwnerRules(temperature_c=1), "pause_temperature_c"),
        (OwnerRules(gpu_share=1), "pause_gpu_share"),
        (OwnerRules(gpu_memory=1), "pause_gpu_memory_mib"),
    ],
)
def test_a_rule_for_what_the_card_does_not_tell_is_refused(rules: OwnerRules, setting: str) -> None:
    silent = Readings(GpuReading("card", processes=(GpuProcess(1, "x", None, None),)))
    with pytest.raises(ConfigError, match=setting):
        check_rules(rules, FakeSenses(), silent)


def test_a_machine_without_a_card_says_so_and_still_knows_its_battery() -> None:
    senses = MachineSenses(63)
    assert "NVML" in senses.missing
    readings = senses.read(frozenset())
    assert readings.gpu is None and readings.on_battery in (None, True, False)


def test_a_client_is_told_a_bounded_time_to_ask_again() -> None:
    pause = Pause(0.0, (), Timestamp(300), Timestamp(10_000))
    assert pause.until == 300
    assert pause.retry_after_s(0) == LONGEST_RETRY_S
    assert pause.retry_after_s(9_999) == pause.retry_after_s(20_000) == 1
