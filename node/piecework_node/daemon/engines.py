"""The engines of the worker's cards: made from the settings, kept running, and given up alone."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from piecework.base.clock import Clock
from piecework_node.config import WorkerConfig
from piecework_node.engine.environment import child_environment
from piecework_node.engine.link import EngineBackend, EngineGone
from piecework_node.engine.supervisor import EngineCommandLine, EngineSupervisor, engine_arguments
from piecework_node.errors import ConfigError, EngineStartError
from piecework_node.home import Home
from piecework_node.models.store import ModelStore, checkpoint_folder
from piecework_node.owner.nvml import card_uuid
from piecework_node.runtime.cards import EngineCard, EngineCards

if TYPE_CHECKING:
    from piecework_node.vllm.link import VllmSettings

FIRST_RETRY_S: Final = 60.0
"""Before the engine of a card that could not be started is tried again."""
MAX_RETRY_S: Final = 1800.0


@dataclass(frozen=True, slots=True)
class KeptCard:
    """A card, what keeps its engine, and its own settings."""

    card: EngineCard
    backend: EngineBackend
    config: WorkerConfig


class Engines:
    """Keeps the engines of all cards, until `run` is cancelled."""

    def __init__(
        self,
        kept: Sequence[KeptCard],
        log: Any,
        *,
        first_retry_s: float = FIRST_RETRY_S,
        max_retry_s: float = MAX_RETRY_S,
    ) -> None:
        self.kept, self._log = tuple(kept), log
        self._first_retry_s, self._max_retry_s = first_retry_s, max_retry_s
        self.cards = EngineCards([one.card for one in kept])
        self.gone: asyncio.Queue[tuple[EngineCard, EngineGone]] = asyncio.Queue()
        """Cards that were given up. At most one of each between two tries."""

    def __iter__(self) -> Iterator[KeptCard]:
        return iter(self.kept)

    @property
    def pids(self) -> frozenset[int]:
        """The engines' processes, as far as they are children of ours."""
        return frozenset(one.backend.pid for one in self.kept if one.backend.pid is not None)

    @property
    def losses(self) -> int:
        """How often all jobs of a card were lost."""
        return sum(one.backend.losses for one in self.kept)

    async def run(self) -> None:
        """Keep every engine running.

        Raises:
            EngineStartError: the engine of a worker's only card cannot be started.
        """
        if len(self.kept) == 1:
            await self.kept[0].backend.run()
            return
        async with asyncio.TaskGroup() as group:
            for one in self.kept:
                group.create_task(self._keep(one), name=f"card {one.card.name}")

    async def _keep(self, one: KeptCard) -> None:
        """Keep one engine of several. Its end is not that of the others."""
        pause_s = self._first_retry_s
        while True:
            losses = one.backend.losses
            try:
                await one.backend.run()
                why = "the engine ended"
            except (EngineStartError, OSError) as error:
                why = str(error)
            if one.backend.losses > losses:
                pause_s = self._first_retry_s
            one.card.failed = why
            self._log.error("card failed", card=one.card.name, error=why, seconds=pause_s)
            self.gone.put_nowait((one.card, EngineGone(why)))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._max_retry_s)


def make_engines(
    config: WorkerConfig, home: Home, clock: Clock, log: Any, command: EngineCommandLine | None
) -> Engines:
    """Build the engines that the settings name. `command` starts another one than ours.

    Raises:
        ConfigError: vLLM is not told what it serves.
        ModelNotPulled: a checkpoint is not in the store. The text says what to run.
    """
    kept = []
    for name, own in config.of_cards:
        card_log = log if not config.cards else log.bind(card=name)
        backend = _backend(own, home, clock, card_log, command, several=bool(config.cards))
        card = EngineCard(
            name,
            backend,
            slots=own.slots,
            queue=own.queue,
            frees_memory=own.pause_frees_memory,
        )
        kept.append(KeptCard(card, backend, own))
    return Engines(kept, log)


def checkpoint_of(config: WorkerConfig) -> Path | None:
    """Return the folder that the setting `model` means. None: the bundled checkpoint.

    Raises:
        ModelNotPulled: the model is not in the store. The text says what to run.
    """
    if not config.model:
        return None
    store = ModelStore(Path(config.model_store) if config.model_store else None)
    return checkpoint_folder(config.model, store)


def _backend(
    own: WorkerConfig,
    home: Home,
    clock: Clock,
    log: Any,
    command: EngineCommandLine | None,
    *,
    several: bool,
) -> EngineBackend:
    if command is not None:
        return EngineSupervisor(command, clock, log)
    if own.backend == "diffusion":
        return EngineSupervisor(engine_command(own, home, several=several), clock, log)
    from piecework_node.vllm.link import VllmLink

    return VllmLink(vllm_settings(own), clock, log)


def vllm_settings(config: WorkerConfig) -> VllmSettings:
    """Return what the settings say of vLLM.

    Raises:
        ConfigError: no model is set.
        ModelNotPulled: the checkpoint is not in the store. The text says what to run.
    """
    from piecework_node.vllm.link import VllmSettings

    folder = checkpoint_of(config)
    if folder is None:
        raise ConfigError("backend vllm needs model: the checkpoint that the servers serve")
    return VllmSettings(
        urls=config.vllm_endpoints,
        key=config.vllm_api_key,
        model=config.vllm_model,
        checkpoint=folder,
        slots=config.slots,
        benchmark_s=config.benchmark_s,
    )


def engine_command(own: WorkerConfig, home: Home, *, several: bool) -> EngineCommandLine:
    """Return how to start our own engine on a card. One of several cards sees no other."""
    device, seen = (own.device, dict[str, str]()) if not several else device_of(own)
    arguments = engine_arguments(
        sys.executable,
        model=str(checkpoint_of(own) or ""),
        device=device,
        precision=own.precision,
        planned_context=own.planned_context,
        slots=own.slots,
        queue=own.queue,
        threads=own.threads,
        benchmark_s=own.benchmark_s,
        digests=str(home.digests),
    )
    return EngineCommandLine(tuple(arguments), {**child_environment(os.environ), **seen})


def device_of(own: WorkerConfig) -> tuple[str, dict[str, str]]:
    """Return the device of one of several cards, and the variables that hide all others.

    Numbers shift when a card falls off the bus, and UUIDs do not. A card that NVML shows is a CUDA
    device from then on: its engine must not come back on the CPU.
    """
    if own.device == "cpu":
        return "cpu", {"CUDA_VISIBLE_DEVICES": ""}
    uuid = card_uuid(own.gpu_number)
    if uuid is not None:
        return "cuda", {"CUDA_VISIBLE_DEVICES": uuid}
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(own.gpu_number)}
    return own.device, order
