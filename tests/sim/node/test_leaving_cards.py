"""Several cards whose GPUs grow hot, are lost, or are needed: each leaves and comes back alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from piecework_node import config, logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.engines import Engines, KeptCard
from piecework_node.daemon.offered import offered, show_card
from piecework_node.daemon.owners import machine_senses, watch_cards
from piecework_node.home import Home
from piecework_node.jobs.offers import refresh_due
from piecework_node.owner.nvml import MachineSenses
from piecework_node.owner.readings import GpuProcess, GpuReading, Readings, Senses
from piecework_node.owner.watch import OwnerWatch
from piecework_node.runtime.faults import Code
from piecework_protocol.types import Timestamp
from tests.support.node.fake_engine import FACTS, FakeEngine
from tests.support.node.fake_nvml import FakeNvml
from tests.support.node.fake_senses import FakeSenses
from tests.support.node.harness import TERMS, Client, JobStream, WorkerHarness, address_with

FAST, EXACT, THIRD = FACTS.profile, "fake-cpu/float32", "fake-cpu/int4"
QUIET_S = 60
SLOW = 92
"""Where the hardware of every card slows it down."""


class KeptEngine(FakeEngine):
    """Implements `EngineBackend`, as far as a watch uses it."""

    losses = 0
    pid = None
    given_up = 0

    def give_up(self) -> None:
        self.given_up += 1

    async def run(self) -> None:
        raise NotImplementedError


class Machine:
    """A worker with a card for each profile, its GPUs, and who watches them."""

    def __init__(self, home: Path, *cards: dict[str, Any]) -> None:
        """cards: what differs in the table of each. Every one is a GPU with its place's number."""
        profiles = (FAST, EXACT, THIRD)[: len(cards)]
        terms = replace(TERMS, slots=1, queue=1)
        self.harness = WorkerHarness(terms=terms, make_engine=KeptEngine, profiles=profiles)
        tables = [{"gpu_number": n, **card} for n, card in enumerate(cards)]
        self.config = config.check({"payout": "0x" + "11" * 20, "cards": tables})
        self.home = Home(home)
        self.gpus = [FakeNvml(slowdown=SLOW) for _ in cards]
        self.gpus[0].others = dict(enumerate(self.gpus[1:], start=1))
        self.owners: dict[str, OwnerWatch] = {}

    async def boot(self, senses: Callable[[WorkerConfig], Senses] | None = None) -> Client:
        """Start it. Engines whose settings do not say cpu run on CUDA."""
        harness = self.harness
        await harness.boot()
        owns = [own for _, own in self.config.of_cards]
        for engine, own in zip(harness.engines, owns, strict=True):
            device = "cpu" if own.device == "cpu" else "cuda"
            engine.known = replace(engine.known, device=device)
        kept = [
            KeptCard(card, engine, own)
            for card, engine, own in zip(harness.cards, self.engines, owns, strict=True)
        ]
        self.owners = await watch_cards(
            Engines(kept, logs.silent()),
            harness.worker.pausing,
            harness.faults,
            self.home,
            several=True,
            senses=senses or self.senses,
            clock=harness.clock,
            log=logs.silent(),
        )
        client = Client(harness, deposit=10_000_000)
        client.open_on_chain()
        return client

    def senses(self, own: WorkerConfig) -> Senses:
        return MachineSenses(*own.watched_gpus, library=self.gpus[0])

    @property
    def engines(self) -> list[KeptEngine]:
        return [engine for engine in self.harness.engines if isinstance(engine, KeptEngine)]

    async def look(self) -> None:
        """Every watch looks, and every engine's own events come to the worker."""
        for owner in self.owners.values():
            await owner.look()
        for place, engine in enumerate(self.engines):
            while not engine.queue.empty():
                await self.harness.engine_event(engine.queue.get_nowait(), place)

    @property
    def offers(self) -> list[str]:
        return [one.facts.profile for one in offered(self.harness.worker, takes_jobs=True)]

    @property
    def is_offer_due(self) -> bool:
        """Whether the daemon would replace its offer now."""
        key = self.harness.keyring.current
        assert key is not None
        now = Timestamp(int(self.harness.clock.wall()))
        entries = offered(self.harness.worker, takes_jobs=True)
        return refresh_due(self.harness.offer.offer, now, entries, address_with(key))

    @property
    def causes(self) -> list[Sequence[str]]:
        cards = self.harness.cards
        return [() if card.pause is None else card.pause.causes for card in cards]


async def submitted(client: Client, seed: int, entry: int) -> JobStream:
    line = client.job(seed, 64, entry=entry)
    await client.submit(line)
    while client.read(line) or await client.deliver(line):
        pass
    return line


async def test_a_card_that_overheats_leaves_alone_and_comes_back_when_it_is_cool(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, {}, {}, {})
    client, harness = await machine.boot(), machine.harness
    held, other = await submitted(client, 1, 1), await submitted(client, 2, 0)
    machine.gpus[1].temperature = SLOW - 4
    await machine.look()
    assert machine.offers == [FAST, EXACT, THIRD] and not harness.faults.faults
    machine.gpus[1].temperature = SLOW - 3
    await machine.look()
    assert machine.causes == [(), ("the card has 89 °C, and at 92 its hardware slows it down",), ()]
    assert machine.offers == [FAST, THIRD] and machine.is_offer_due
    await harness.issue_offer()
    (fault,) = harness.faults.faults
    assert fault.code is Code.CARD_HOT and "card 1 pauses: the card has 89 °C" in fault.detail
    await client.finish(other)
    assert machine.engines[1].rows and not machine.engines[1].runnable()
    machine.gpus[1].temperature = SLOW - 8
    harness.clock.advance(QUIET_S)
    await machine.look()
    assert machine.offers == [FAST, THIRD], "a little cooler is not cool"
    machine.gpus[1].temperature = SLOW - 9
    await machine.look()
    assert not harness.faults.faults and machine.offers == [FAST, THIRD]
    harness.clock.advance(QUIET_S)
    await machine.look()
    assert machine.offers == [FAST, EXACT, THIRD] and machine.is_offer_due
    await client.finish(held)
    assert held.finished and len(machine.engines[1].started) == 1, "it never left its canvas"


async def test_a_card_whose_hardware_holds_it_down_for_heat_leaves(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {}, {})
    await machine.boot()
    machine.gpus[1].reasons = pynvml.nvmlClocksEventReasonSwThermalSlowdown
    await machine.look()
    assert machine.causes == [(), ()], "only the driver makes it slower, as on a warm day"
    machine.gpus[1].reasons = pynvml.nvmlClocksEventReasonHwThermalSlowdown
    await machine.look()
    assert machine.causes == [(), ("the card is too hot, and its hardware slows it down",)]


async def test_nothing_is_made_up_where_a_card_tells_no_bound(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {}, {})
    await machine.boot()
    machine.gpus[1].slowdown, machine.gpus[1].temperature = None, 104
    await machine.look()
    assert machine.causes == [(), ()]


async def test_a_card_on_the_cpu_does_not_leave_for_the_heat_of_a_gpu(tmp_path: Path) -> None:
    """It has no GPU of its own: number 0 is another card's."""
    machine = Machine(tmp_path, {}, {"device": "cpu", "gpu_number": 0})
    await machine.boot()
    machine.gpus[0].temperature = SLOW
    await machine.look()
    assert machine.offers == [EXACT]
    machine.gpus[0].fall_off()
    await machine.look()
    assert [engine.given_up for engine in machine.engines] == [1, 0]


async def test_the_engine_of_a_card_that_fell_off_the_bus_is_given_up_once_and_alone(
    tmp_path: Path,
) -> None:
    """An idle engine would notice with its next job, and offer places until then."""
    machine = Machine(tmp_path, {}, {}, {})
    await machine.boot()
    await machine.look()
    assert [engine.given_up for engine in machine.engines] == [0, 0, 0]
    machine.gpus[1].fall_off()
    for _ in range(2):
        await machine.look()
    assert [engine.given_up for engine in machine.engines] == [0, 1, 0]
    await machine.harness.engine_event(machine.engines[1].lose(), 1)
    assert machine.offers == [FAST, THIRD] and machine.is_offer_due


async def test_a_schedule_and_a_command_take_their_own_card_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {}, {"pause_schedule": ("00:00-24:00",)}, {})
    client = await machine.boot()
    await machine.look()
    assert machine.offers == [FAST, THIRD] and machine.is_offer_due
    await machine.harness.issue_offer()
    machine.owners["2"].command(None)
    await machine.look()
    assert machine.offers == [FAST] and machine.is_offer_due
    assert machine.causes[0] == () and machine.causes[2] == ("piecework worker pause",)
    await client.finish(await submitted(client, 1, 0))
    machine.owners["2"].lift()
    await machine.look()
    assert machine.offers == [FAST, THIRD]
    assert not machine.harness.faults.faults, "a pause that the owner wants is not an alarm"


async def test_a_battery_takes_every_card_since_all_of_them_draw_from_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {}, {"device": "cpu"})
    machine.config = machine.config.model_copy(update={"pause_on_battery": True})
    senses = FakeSenses("no driver")
    await machine.boot(lambda _: senses)
    senses.shown = Readings(on_battery=True)
    await machine.look()
    assert machine.causes == [("the machine runs on its battery",)] * 2
    assert machine.harness.cards.pause is not None
    senses.shown = Readings(on_battery=False)
    machine.harness.clock.advance(QUIET_S)
    await machine.look()
    assert machine.offers == [FAST, EXACT]


SERVED = {"backend": "vllm", "vllm_endpoints": ("http://10.0.0.9:8000",), "model": "owner/model"}
SERVER = GpuProcess(900, "VLLM::EngineCor", None, None)


@pytest.mark.parametrize(
    ("numbers", "shown", "leaves"),
    [((1,), (), True), ((), (SERVER,), False), ((), (), False)],
)
async def test_of_several_cards_a_vllm_server_leaves_for_heat_if_its_gpus_are_named(
    tmp_path: Path, numbers: tuple[int, ...], shown: tuple[GpuProcess, ...], leaves: bool
) -> None:
    table = {**SERVED, "gpu_number": None, **({"gpu_numbers": numbers} if numbers else {})}
    machine = Machine(tmp_path, {"device": "cpu"}, table)
    senses = FakeSenses()
    senses.show_group(GpuReading("card", SLOW, number=1, slows_at_c=SLOW, processes=shown))
    await machine.boot(lambda own: senses if own.backend == "vllm" else FakeSenses())
    await machine.look()
    assert [bool(texts) for texts in machine.causes] == [False, leaves]


async def test_a_group_shows_its_warmest_gpu_all_of_its_power_and_the_programs_of_others(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, {**SERVED, "gpu_number": None, "gpu_numbers": (0, 1)})
    senses, game = FakeSenses(), GpuProcess(77, "game", 1, 60)
    first = GpuReading("a", 60, 200.0, processes=(SERVER, game))
    senses.show_group(first, GpuReading("b", 71, 250.0, number=1, processes=(SERVER,)))
    await machine.boot(lambda _: senses)
    await machine.look()
    owner, (card,) = machine.owners["0"], machine.harness.cards
    assert [gpu.processes for gpu in owner.gpus] == [(game,), ()]
    show_card(machine.harness.metrics, card, 0, owner)
    shown = machine.harness.metrics.render().decode()
    assert 'piecework_card_temperature_celsius{card="0"} 71.0' in shown
    assert 'piecework_card_power_watts{card="0"} 450.0' in shown


def test_the_senses_of_a_card_are_those_of_its_gpus() -> None:
    own = config.check({"payout": "0x" + "11" * 20, "gpu_number": 62})
    assert "NVML does not show card 62" in machine_senses(own).missing
