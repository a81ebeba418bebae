"""Watch every card for its owner: made from the settings, one watch for each card."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from piecework.base.clock import Clock
from piecework_node.card_settings import FIRST_CARD
from piecework_node.config import WorkerConfig
from piecework_node.daemon.engines import Engines, KeptCard
from piecework_node.home import Home
from piecework_node.owner.causes import MIB, Cause, OwnerRules
from piecework_node.owner.nvml import MachineSenses
from piecework_node.owner.readings import Senses
from piecework_node.owner.watch import Brakes, OwnerWatch, inherit_pauses
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.schedule import Window


async def watch_cards(
    engines: Engines,
    brakes: Mapping[str, Brakes],
    faults: FaultBoard,
    home: Home,
    *,
    several: bool,
    senses: Callable[[WorkerConfig], Senses] | None = None,
    clock: Clock,
    log: Any,
) -> dict[str, OwnerWatch]:
    """Watch each card. Our own programs do not count on any card.

    Args:
        engines: The cards.
        brakes: What stops each, by its name.
        faults: Gets the heat of each card.
        home: Keeps commands and baselines.
        several: Whether the settings have tables of cards.
        senses: Opens what a card's settings name. None: NVML and psutil.
        clock: For pauses.
        log: For what is found.

    Returns:
        The watches, by the name of the card.

    Raises:
        ConfigError: a file of the home cannot be read, or a rule needs a card that is not seen.
    """
    names = tuple(one.card.name if several else "" for one in engines)
    for name in inherit_pauses(home.root, names, clock.wall()):
        log.warning("pause inherited", card=name or FIRST_CARD)
    rules = {one.card.name: owner_rules(one.config) for one in engines}
    ours = tuple(dict.fromkeys(name for one in rules.values() for name in one.server))
    watches = {}
    for one in engines:
        card = one.card.name
        watches[card] = OwnerWatch(
            replace(rules[card], ours=ours),
            await asyncio.to_thread(senses or machine_senses, one.config),
            brakes[card],
            home.root,
            card=card if several else "",
            own=lambda: engines.pids,
            on_gpu=_on_gpu(one, rules[card], alone=not several),
            told=_heat_teller(card, faults),
            lost=one.backend.give_up,
            clock=clock,
            log=log.bind(card=card) if several else log,
        )
    return watches


def machine_senses(config: WorkerConfig) -> MachineSenses:
    """Open the GPUs that a card's settings name."""
    return MachineSenses(*config.watched_gpus)


def _on_gpu(one: KeptCard, rules: OwnerRules, *, alone: bool) -> Callable[[], bool]:
    """Say whether jobs of a card run on the GPUs that are read.

    alone: whether it is the worker's only card. Several have to name the GPUs of a vLLM server:
    number 0 may be another card's.
    """
    if one.config.backend == "vllm":
        return lambda: rules.gpu_named or alone

    def runs_there() -> bool:
        facts = one.card.facts
        return one.config.device != "cpu" and (facts is None or facts.device != "cpu")

    return runs_there


def _heat_teller(card: str, faults: FaultBoard) -> Callable[[Sequence[Cause]], None]:
    """Return what brings the heat of a card before the owner. A pause alone is not an alarm."""
    check = f"heat of card {card}"

    def tell(found: Sequence[Cause]) -> None:
        heat = [cause.text for cause in found if cause.hot is not None]
        if heat:
            faults.failed(check, Code.CARD_HOT, f"card {card} pauses: {'; '.join(heat)}")
        elif faults.is_failing(check):
            faults.passed(check)

    return tell


def owner_rules(config: WorkerConfig) -> OwnerRules:
    """Return what the settings say of when the owner needs the machine."""
    server = config.vllm_programs if config.backend == "vllm" else ()
    return OwnerRules(
        schedule=tuple(map(Window.parse, config.pause_schedule)),
        gpu_share=config.pause_gpu_share,
        gpu_memory=config.pause_gpu_memory_mib * MIB,
        temperature_c=config.pause_temperature_c,
        power_w=config.pause_power_w,
        on_battery=config.pause_on_battery,
        quiet_s=config.pause_quiet_s,
        server=server,
        ours=server,
        gpu_named=config.backend != "vllm" or config.names_gpus,
    )
