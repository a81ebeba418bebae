"""Look at a card once a second, and pause or resume its jobs as the owner's rules say."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.files import write_private
from piecework.base.jsons import loads
from piecework_node.errors import ConfigError
from piecework_node.owner.causes import (
    Baseline,
    Cause,
    OwnerRules,
    OwnersWord,
    Usual,
    causes,
    others,
    server_missing,
    untold,
)
from piecework_node.owner.readings import GpuReading, Readings, Senses
from piecework_node.runtime.pause import Pause
from piecework_protocol.types import Timestamp

LOOK_S: Final = 1.0
LEARN_S: Final = 60.0
"""How long the first start looks at the card before other programs count."""
BASELINE_FILE: Final = "gpu-baseline.json"
PAUSE_FILE: Final = "pause.json"
MAX_FILE_BYTES: Final = 2**20


class Brakes(Protocol):
    """What stops all jobs of a card (`jobs.pausing.Pausing`)."""

    @property
    def now(self) -> Pause | None: ...

    def pause(self, causes: tuple[str, ...], ends_at: Timestamp | None) -> None: ...

    def resume(self) -> None: ...


class OwnerWatch:
    """Decides when jobs pause. The owner's command is durable, and so is the baseline."""

    def __init__(
        self,
        rules: OwnerRules,
        senses: Senses,
        brakes: Brakes,
        home: Path,
        *,
        card: str = "",
        own: Callable[[], frozenset[int]],
        on_gpu: Callable[[], bool] = lambda: False,
        told: Callable[[Sequence[Cause]], None] = lambda _: None,
        lost: Callable[[], None] = lambda: None,
        clock: Clock,
        log: Any,
    ) -> None:
        """Read what the home holds. `own` names our processes.

        card: the name of the card among several. Its files in the home have it too. on_gpu: whether
        its jobs run on the GPUs that the senses read. told: gets what each look finds. lost: called
        once when NVML says that such a GPU fell off the bus.

        Raises:
            ConfigError: a file of the home cannot be read, or a rule needs a card that is not seen.
        """
        check_rules(rules, senses)
        self._rules, self._senses, self._brakes = rules, senses, brakes
        self._own, self._clock, self._log = own, clock, log
        self._on_gpu, self._told, self._on_loss = on_gpu, told, lost
        self._hot: frozenset[int] = frozenset()
        """The GPUs that were too hot at the last look."""
        self._lost = False
        self._baseline_file = home / _of_card(BASELINE_FILE, card)
        self._pause_file = home / _of_card(PAUSE_FILE, card)
        self._baseline = _read_baseline(self._baseline_file)
        self._learned = Baseline()
        self._learns_until: float | None = None
        self._word = _read_word(self._pause_file)
        self._measured_at: float | None = None
        """Monotonic time at which a measured cause was last seen in this pause."""
        self.readings = Readings()
        """The last ones."""

    @property
    def learning(self) -> bool:
        """Whether other programs do not count yet, because their usual use is being learned."""
        return self._rules.watches_processes and self._baseline is None

    @property
    def gpus(self) -> tuple[GpuReading, ...]:
        """The last reading of each GPU, with the programs of others alone."""
        return tuple(
            gpu if not gpu.processes else _of_others(self._rules, gpu) for gpu in self.readings.gpus
        )

    @property
    def missing(self) -> str:
        """Why there are no readings of a card. Empty: there are."""
        return self._senses.missing

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Read the machine once, and act on it."""
        own = self._own() | {os.getpid()}
        self.readings = await asyncio.to_thread(self._senses.read, own)
        if self._baseline is not None and not self._baseline.knows(self.readings):
            self._baseline = None  # the group has another GPU than when it was learned
        if self.learning:
            self._learn()
        self.decide()
        gone = self._on_gpu() and any(gpu.lost for gpu in self.readings.gpus)
        if gone and not self._lost:
            self._log.error("card lost", reason="NVML says that the GPU is lost")
            self._on_loss()
        self._lost = gone

    def command(self, seconds: float | None) -> None:
        """Pause by the owner's command, for so many seconds or until it is lifted."""
        until = None if seconds is None else Timestamp(int(self._clock.wall() + seconds))
        self._word = OwnersWord(until)
        _write_word(self._pause_file, until)
        self.decide()

    def lift(self) -> tuple[str, ...]:
        """Lift the command. Return the causes that are left."""
        self._word = None
        self._pause_file.unlink(missing_ok=True)
        return tuple(cause.text for cause in self.decide())

    def decide(self) -> list[Cause]:
        """Pause or resume. Returns why jobs pause."""
        wall, moment = self._clock.wall(), self._clock.monotonic()
        paused = self._brakes.now is not None
        found = causes(
            self._rules,
            self._baseline,
            self.readings,
            wall=wall,
            local=datetime.fromtimestamp(wall),
            word=self._word,
            paused=paused,
            hot=self._hot,
            on_gpu=self._on_gpu(),
        )
        self._hot = frozenset(cause.hot for cause in found if cause.hot is not None)
        self._told(found)
        if any(cause.measured for cause in found):
            self._measured_at = moment
        if found:
            ends = [cause.ends_at for cause in found]
            known = [end for end in ends if end is not None]
            texts = tuple(cause.text for cause in found)
            self._brakes.pause(texts, max(known) if len(known) == len(ends) else None)
        elif paused and self._quiet(moment):
            self._measured_at = None
            self._brakes.resume()
        return found

    def _quiet(self, moment: float) -> bool:
        """Whether measured causes have been gone for long enough."""
        return self._measured_at is None or moment - self._measured_at >= self._rules.quiet_s

    def _learn(self) -> None:
        moment = self._clock.monotonic()
        if self._learns_until is None:
            self._learns_until = moment + LEARN_S
        for place, gpu in enumerate(self.readings.gpus):
            self._learned.learn(others(self._rules, gpu), gpu.number if place else None)
        if moment < self._learns_until:
            return
        self._baseline = self._learned
        body: dict[str, Any] = {"programs": _listed(self._learned.programs)}
        if self._learned.more:
            more = self._learned.more.items()
            body["more"] = {str(number): _listed(programs) for number, programs in more}
        data = json.dumps(body, indent=1).encode()
        write_private(self._baseline_file, data, replace=True)
        self._log.info("baseline learned", count=len(self._learned.programs))


def inherit_pauses(home: Path, cards: Sequence[str], wall: float) -> tuple[str, ...]:
    """Let the owner's pauses hold when the cards get other names, or one becomes several.

    The pause of a card that the settings do not name any more goes to every card that they name:
    which of them is meant nobody knows, and the owner goes first. The longer one of two holds. It
    may be repeated after a kill.

    Args:
        home: The folder.
        cards: Their names, as `OwnerWatch` takes them.
        wall: Unix seconds.

    Returns:
        The cards that are paused for longer than before.

    Raises:
        ConfigError: a file cannot be read.
    """
    own = {_of_card(PAUSE_FILE, card): card for card in cards}
    stem, _, ending = PAUSE_FILE.partition(".")
    left = [
        file
        for file in sorted({home / PAUSE_FILE, *home.glob(f"{stem}-*.{ending}")})
        if file.name not in own and file.is_file()
    ]
    ends = [word.until for file in left if (word := _read_word(file)) is not None]
    longest = max((_lasts(end) for end in ends), default=0.0)
    paused = []
    for name, card in own.items():
        word = _read_word(home / name)
        if longest > max(wall, 0.0 if word is None else _lasts(word.until)):
            _write_word(home / name, None if math.isinf(longest) else Timestamp(int(longest)))
            paused.append(card)
    for file in left:
        file.unlink(missing_ok=True)
    return tuple(paused)


def _lasts(until: Timestamp | None) -> float:
    return math.inf if until is None else float(until)


def check_rules(rules: OwnerRules, senses: Senses, readings: Readings | None = None) -> None:
    """Hold the rules to what the machine tells.

    Raises:
        ConfigError: a rule needs something that it does not tell.
    """
    if rules.needs_a_card and senses.missing:
        raise ConfigError(f"the settings pause_… watch the GPU: {senses.missing}")
    if readings is None:
        return
    for gpu in readings.gpus:
        for setting in untold(rules, gpu):
            raise ConfigError(f"{setting} is set, and this card or its driver does not tell that")
    if missing := server_missing(rules, readings):
        raise ConfigError(missing)


def _of_others(rules: OwnerRules, gpu: GpuReading) -> GpuReading:
    return replace(gpu, processes=tuple(others(rules, gpu)))


def _of_card(file: str, card: str) -> str:
    stem, dot, ending = file.partition(".")
    return f"{stem}-{card}{dot}{ending}" if card else file


def _read_baseline(path: Path) -> Baseline | None:
    body = _read(path)
    if body is None:
        return None
    try:
        more = {int(number): _usual(listed) for number, listed in body.get("more", {}).items()}
        return Baseline(_usual(body["programs"]), more)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unreadable(path) from None


def _usual(listed: dict[str, Any]) -> dict[str, Usual]:
    return {str(n): Usual(int(memory), int(share)) for n, (memory, share) in listed.items()}


def _listed(programs: dict[str, Usual]) -> dict[str, list[int]]:
    return {name: [usual.memory_bytes, usual.share] for name, usual in programs.items()}


def _read_word(path: Path) -> OwnersWord | None:
    body = _read(path)
    if body is None:
        return None
    until = body.get("until")
    if until is not None and not isinstance(until, int):
        raise _unreadable(path)
    return OwnersWord(None if until is None else Timestamp(until))


def _write_word(path: Path, until: Timestamp | None) -> None:
    write_private(path, json.dumps({"until": until}).encode(), replace=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            body = loads(file.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise _unreadable(path) from None
    if not isinstance(body, dict):
        raise _unreadable(path)
    return body


def _unreadable(path: Path) -> ConfigError:
    return ConfigError(f"{path} cannot be read. Delete it if it is not needed")
