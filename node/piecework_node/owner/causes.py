"""When the owner needs the machine. A pure function of settings, baseline, readings and time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from piecework_node.owner.readings import TOO_HOT, GpuProcess, GpuReading, Readings
from piecework_node.schedule import Window
from piecework_protocol.types import Timestamp

MAX_PROGRAMS: Final = 256
"""In a baseline. A machine with more programs on its card is nobody's desktop."""
COOLER_C: Final = 5
"""So many degrees below its bound the card counts as cool again."""
TOO_NEAR_C: Final = 3
"""So many degrees below the temperature at which its hardware slows it down a card is too hot."""
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class OwnerRules:
    """What makes jobs pause. 0 or empty: that does not.

    gpu_share: percent of the card's time, and gpu_memory: bytes, that other programs use beyond
    the baseline. quiet_s: how long a measured cause must be gone. server: how the names of the
    programs begin that work for this card and are not our children (vLLM's). ours: the same of all
    cards. Such programs are nobody else's. gpu_named: whether the settings say which GPUs work.
    """

    schedule: tuple[Window, ...] = ()
    gpu_share: int = 0
    gpu_memory: int = 0
    temperature_c: int = 0
    power_w: int = 0
    on_battery: bool = False
    quiet_s: float = 60.0
    server: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    gpu_named: bool = True

    @property
    def watches_processes(self) -> bool:
        """Whether a baseline is needed."""
        return bool(self.gpu_share or self.gpu_memory)

    @property
    def needs_a_card(self) -> bool:
        """Whether a reading of the card is needed."""
        return self.watches_processes or bool(self.temperature_c or self.power_w)

    def describe(self) -> str:
        """Say in a line what makes jobs pause."""
        parts = [
            "the command",
            "the schedule" if self.schedule else "",
            f"{self.gpu_share} % of the card's time" if self.gpu_share else "",
            f"{self.gpu_memory // MIB} MiB of its memory" if self.gpu_memory else "",
            f"{self.temperature_c} °C" if self.temperature_c else "",
            f"{self.power_w} W" if self.power_w else "",
            "the battery" if self.on_battery else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Usual:
    """What a program uses of the card when nobody needs it."""

    memory_bytes: int
    share: int


@dataclass(slots=True)
class Baseline:
    """The most that each program used of the card while the baseline was learned.

    more: of the other GPUs of a group, by their numbers.
    """

    programs: dict[str, Usual] = field(default_factory=dict)
    more: dict[int, dict[str, Usual]] = field(default_factory=dict)

    def learn(self, processes: Iterable[GpuProcess], number: int | None = None) -> None:
        """Take one reading in. Beyond MAX_PROGRAMS no program is added.

        number: of another GPU of the group. None: the first one.
        """
        programs = self.programs if number is None else self.more.setdefault(number, {})
        for name, (memory, share) in used_by_program(processes).items():
            known = programs.get(name)
            if known is None and len(programs) >= MAX_PROGRAMS:
                continue
            usual = known or Usual(0, 0)
            programs[name] = Usual(max(usual.memory_bytes, memory), max(usual.share, share))

    def knows(self, readings: Readings) -> bool:
        """Whether every GPU of these readings was learned."""
        return all(gpu.number in self.more for gpu in readings.more)


@dataclass(frozen=True, slots=True)
class OwnersWord:
    """The owner's command to pause. until: Unix seconds. None: as long as it is not lifted."""

    until: Timestamp | None = None


@dataclass(frozen=True, slots=True)
class Cause:
    """Why jobs pause now, for the owner.

    ends_at: Unix seconds, if that is known. measured: it may be back in a moment. hot: the number
    of the GPU that its own hardware calls too hot.
    """

    text: str
    ends_at: Timestamp | None = None
    measured: bool = False
    hot: int | None = None


def used_by_program(processes: Iterable[GpuProcess]) -> dict[str, tuple[int, int]]:
    """Add up memory in bytes and percent of time by program."""
    used: dict[str, tuple[int, int]] = {}
    for process in processes:
        memory, share = used.get(process.name, (0, 0))
        used[process.name] = (
            memory + (process.memory_bytes or 0),
            min(100, share + (process.share or 0)),
        )
    return used


def others(rules: OwnerRules, gpu: GpuReading) -> list[GpuProcess]:
    """List the processes on a GPU that do not work for us."""
    return [one for one in gpu.processes or () if not one.name.startswith(rules.ours)]


def causes(
    rules: OwnerRules,
    baseline: Baseline | None,
    readings: Readings,
    *,
    wall: float,
    local: datetime,
    word: OwnersWord | None,
    paused: bool,
    hot: frozenset[int] = frozenset(),
    on_gpu: bool = False,
) -> list[Cause]:
    """List why jobs pause now. None of them: they run.

    baseline: None while it is being learned. Then other programs are not a cause. local: the wall
    time on the owner's clock. hot: the GPUs that were too hot a moment ago, by number.
    on_gpu: whether jobs of this card run on the GPUs that are read. Otherwise their heat is
    somebody else's.

    A rule whose reading the card does not give any more is a cause. Without it nobody would know
    whether the owner needs the card. Before the first reading no rule about the card is one.
    """
    found = [*_commanded(word, wall), *_scheduled(rules, wall, local)]
    for place, gpu in enumerate(readings.gpus):
        name = f"GPU {gpu.number}" if readings.more else "the card"
        found += _untold(rules, gpu, name, others=baseline is not None)
        if on_gpu and (rules.gpu_named or has_server(rules, gpu)):
            found += _overheats(gpu, name, hot)
        found += _heat(rules, gpu, name, paused)
        if baseline is not None:
            usual = baseline.programs if place == 0 else baseline.more.get(gpu.number, {})
            found += _others(rules, usual, gpu, name)
    if baseline is not None and (missing := server_missing(rules, readings)):
        found.append(Cause(missing))
    if rules.on_battery and readings.on_battery:
        found.append(Cause("the machine runs on its battery", measured=True))
    return found


def has_server(rules: OwnerRules, gpu: GpuReading) -> bool:
    """Whether a program on a GPU has a name by which the card's server is known."""
    processes = gpu.processes or ()
    return bool(rules.server) and any(one.name.startswith(rules.server) for one in processes)


def server_missing(rules: OwnerRules, readings: Readings) -> str:
    """Say that the card's server cannot be told from other programs. Empty: it can.

    It would count as one of them, and its own work would pause it.
    """
    told = [gpu for gpu in readings.gpus if gpu.processes is not None]
    watched = rules.watches_processes and rules.server and told
    if not watched or any(has_server(rules, gpu) for gpu in told):
        return ""
    numbers = " and ".join(str(gpu.number) for gpu in told)
    names = " or ".join(f"{name}…" for name in rules.server)
    return f"no program on GPU {numbers} is called {names}: which one is the vLLM server?"


def describe_heat(rules: OwnerRules, readings: Readings) -> str:
    """Say at which temperature each GPU is too hot, and whether other GPUs may be at work."""
    bounds = []
    for gpu in readings.gpus:
        if gpu.slows_at_c is None:
            bounds.append(f"GPU {gpu.number} does not tell when it is too hot")
        else:
            bounds.append(f"GPU {gpu.number} is too hot from {gpu.slows_at_c - TOO_NEAR_C} °C on")
    if not rules.gpu_named:
        bounds.append("no setting says which GPUs the server uses: see gpu_numbers")
    return ", ".join(bounds)


def untold(rules: OwnerRules, gpu: GpuReading) -> list[str]:
    """List the settings that need something which the card or its driver does not tell."""
    hidden = GpuProcess(0, "?", None, None)
    seen = [hidden] if gpu.processes is None else others(rules, gpu)
    needed = (
        ("pause_temperature_c", rules.temperature_c, gpu.temperature_c),
        ("pause_power_w", rules.power_w, gpu.power_w),
        ("pause_gpu_share", rules.gpu_share, _all_told(p.share for p in seen)),
        ("pause_gpu_memory_mib", rules.gpu_memory, _all_told(p.memory_bytes for p in seen)),
    )
    return [setting for setting, bound, value in needed if bound and value is None]


def _all_told(values: Iterable[int | None]) -> int | None:
    """0 if every process has a value, and None otherwise."""
    return None if any(value is None for value in values) else 0


def _untold(rules: OwnerRules, gpu: GpuReading, name: str, *, others: bool) -> Iterator[Cause]:
    """Give the rules that cannot be kept. others: whether other programs count already."""
    for setting in untold(rules, gpu):
        if others or not setting.startswith("pause_gpu_"):
            yield Cause(f"{name} does not tell any more what {setting} needs", measured=True)


def _commanded(word: OwnersWord | None, wall: float) -> Iterator[Cause]:
    if word is not None and (word.until is None or word.until > wall):
        yield Cause("piecework worker pause", word.until)


def _scheduled(rules: OwnerRules, wall: float, local: datetime) -> Iterator[Cause]:
    ends = [end for window in rules.schedule if (end := window.ends(local)) is not None]
    if ends:
        last = max(ends)
        left = (last - local).total_seconds()
        yield Cause(f"the schedule, until {last:%H:%M}", Timestamp(int(wall + left)))


def _overheats(gpu: GpuReading, name: str, hot: frozenset[int]) -> Iterator[Cause]:
    """Give the heat that the hardware itself tells of. It needs no setting."""
    slow, degrees = gpu.slows_at_c, gpu.temperature_c
    cooler = TOO_NEAR_C + COOLER_C * (gpu.number in hot)
    if slow is not None and degrees is not None and degrees >= slow - cooler:
        text = f"{name} has {degrees} °C, and at {slow} its hardware slows it down"
        yield Cause(text, measured=True, hot=gpu.number)
    elif TOO_HOT in (gpu.throttled or ()):
        text = f"{name} is too hot, and its hardware slows it down"
        yield Cause(text, measured=True, hot=gpu.number)


def _heat(rules: OwnerRules, gpu: GpuReading, name: str, paused: bool) -> Iterator[Cause]:
    bound, degrees = rules.temperature_c, gpu.temperature_c
    if bound and degrees is not None and degrees >= bound - COOLER_C * paused:
        yield Cause(f"{name} has {degrees} °C, the bound is {bound}", measured=True)
    if rules.power_w and gpu.power_w is not None and gpu.power_w >= rules.power_w:
        text = f"{name} draws {gpu.power_w:.0f} W, the bound is {rules.power_w}"
        yield Cause(text, measured=True)


def _others(
    rules: OwnerRules, usual: Mapping[str, Usual], gpu: GpuReading, where: str
) -> Iterator[Cause]:
    memory: dict[str, int] = {}
    share: dict[str, int] = {}
    for name, (used, busy) in used_by_program(others(rules, gpu)).items():
        known = usual.get(name, Usual(0, 0))
        memory[name] = max(0, used - known.memory_bytes)
        share[name] = max(0, busy - known.share)
    if rules.gpu_memory and sum(memory.values()) >= rules.gpu_memory:
        most, total = max(memory, key=memory.__getitem__), sum(memory.values()) // MIB
        yield Cause(f"other programs hold {total} MiB of {where}, {most} most", measured=True)
    if rules.gpu_share and sum(share.values()) >= rules.gpu_share:
        most, total = max(share, key=share.__getitem__), min(100, sum(share.values()))
        yield Cause(f"other programs use {total} % of {where}, {most} most", measured=True)
