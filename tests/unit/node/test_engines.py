"""The engines of several cards: settings, devices, and a card that cannot be started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.base.clock import SystemClock
from piecework.base.errors import SettingsError
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_node import config, logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.console_feed import gpus_at_work
from piecework_node.daemon.engines import Engines, KeptCard, device_of, engine_command, make_engines
from piecework_node.engine.link import EngineLost, EngineReady
from piecework_node.engine.supervisor import EngineSupervisor
from piecework_node.errors import EngineStartError
from piecework_node.home import Home
from piecework_node.runtime.cards import EngineCard, EngineCards, EngineEntry
from piecework_protocol.objects import Service
from piecework_protocol.types import to_hex
from tests.support.model.vllm_server import servers
from tests.support.node.fake_engine import FACTS, FakeEngine
from tests.support.waiting import until

PAYOUT = to_hex(b"\x22" * 20)
TWO = f"""
payout = "{PAYOUT}"
price_per_thousand_steps = "0.001"
slots = 3
pause_temperature_c = 80

[[cards]]
name = "big"
gpu_number = 1
precision = "fp8"
slots = 8

[[cards]]
device = "cpu"
threads = 2
pause_temperature_c = 0
"""


def loaded(home: Path, text: str) -> WorkerConfig:
    (home / "config.toml").write_text(text)
    return config.load(home, {}, {})


# --- settings


def test_a_table_has_what_differs_from_the_settings_above_it(tmp_path: Path) -> None:
    made = loaded(tmp_path, TWO)
    (big, first), (second, last) = made.of_cards
    assert (big, second) == ("big", "1")
    assert (first.slots, first.precision, first.pause_temperature_c) == (8, "fp8", 80)
    assert (last.slots, last.device, last.threads, last.pause_temperature_c) == (3, "cpu", 2, 0)
    assert not first.cards and first.payout == made.payout


def test_a_flag_or_a_variable_that_a_table_would_override_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(TWO)
    said = r"^slots: a flag or a variable sets it, and table 1 of \[\[cards\]\] \(card big\) of"
    with pytest.raises(SettingsError, match=said):
        config.load(tmp_path, {"slots": 4}, {})
    with pytest.raises(SettingsError, match=said):
        config.load(tmp_path, {}, {"PIECEWORK_WORKER_SLOTS": "4"})
    with pytest.raises(SettingsError, match=r"^device: .* table 2 of \[\[cards\]\] \(card 1\)"):
        config.load(tmp_path, {"device": "cpu"}, {})
    made = config.load(tmp_path, {"queue": 9}, {})
    assert [own.queue for _, own in made.of_cards] == [9, 9]


def test_a_worker_without_tables_has_one_card_with_its_own_settings(tmp_path: Path) -> None:
    made = loaded(tmp_path, f'payout = "{PAYOUT}"\n')
    assert made.of_cards == (("0", made),)


def test_tables_are_written_as_they_are_read(tmp_path: Path) -> None:
    made = loaded(tmp_path, TWO)
    text = config.to_toml({"cards": made.cards, "payout": made.payout, "slots": made.slots})
    again = loaded(tmp_path, text)
    assert again.cards == made.cards and again.slots == 3


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ("cards = 3", "cards is a list of tables, each begun by"),
        ("[[cards]]\nslotz = 1", "cards 1: there is no setting slotz. Did you mean slots?"),
        (
            "[[cards]]\ndevice = 'cpu'\n[[cards]]\nslots = 0",
            "cards 2: slots must be",
        ),
        ("[[cards]]\nname = 'My card'\ndevice = 'cpu'", "small letters, digits and dashes"),
        ("[[cards]]\nprice_per_thousand_steps = 1", "there is no setting price_per_thousand_steps"),
        ("[[cards]]\nname = 'a'\ndevice = 'cpu'\n" * 2, "two cards are called a"),
        ("[[cards]]\ngpu_number = 1\n" * 2, "two cards have gpu_number 1"),
        ("[[cards]]\ndevice = 'cuda'", "card 0 needs gpu_number"),
        ("[[cards]]\nbackend = 'vllm'", "card 0: backend vllm needs vllm_endpoints"),
        ("[[cards]]\ndevice = 'cpu'\n" * 17, "cards must be"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, tables: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem.replace("(", r"\(")):
        loaded(tmp_path, f'payout = "{PAYOUT}"\n{tables}\n')


def test_the_environment_has_no_tables(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'payout = "{PAYOUT}"\n')
    with pytest.raises(SettingsError, match="there is no variable PIECEWORK_WORKER_CARDS"):
        config.load(tmp_path, {}, {"PIECEWORK_WORKER_CARDS": "2"})


# --- devices


def test_an_engine_of_several_sees_its_own_card_alone(tmp_path: Path) -> None:
    (_, gpu), (_, cpu) = loaded(tmp_path, TWO).of_cards
    # This machine has no NVML, so the number stands for the card.
    assert device_of(gpu) == (
        "auto",
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"},
    )
    assert device_of(cpu) == ("cpu", {"CUDA_VISIBLE_DEVICES": ""})
    command = engine_command(gpu, Home(tmp_path), several=True)
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "--slots=8" in command.arguments and "--precision=fp8" in command.arguments
    alone = engine_command(gpu, Home(tmp_path), several=False)
    assert "CUDA_DEVICE_ORDER" not in alone.environment


def test_every_card_has_an_engine_with_its_own_places(tmp_path: Path) -> None:
    made = make_engines(
        loaded(tmp_path, TWO), Home(tmp_path), SystemClock(), logs.silent(), command=None
    )
    assert [(card.name, card.slots, card.queue) for card in made.cards] == [
        ("big", 8, 4),
        ("1", 3, 4),
    ]
    assert all(isinstance(one.backend, EngineSupervisor) for one in made)
    assert (made.cards.slots, made.cards.queue) == (11, 8)


def test_a_job_goes_to_a_card_with_room_and_then_to_the_one_with_most_free_slots() -> None:
    wide = EngineCard("wide", FakeEngine(), slots=3, queue=0)
    long = EngineCard("long", FakeEngine(), slots=1, queue=9)
    cards, load = EngineCards([wide, long]), dict[str, int]()
    placed = []
    for _ in range(8):
        card = cards.choose(EngineEntry(FACTS.digest, FACTS.profile), load)
        assert card is not None
        load[card.name] = load.get(card.name, 0) + 1
        placed.append(card.name)
    assert placed == ["wide"] * 3 + ["long"] * 5
    assert cards.choose(EngineEntry(FACTS.digest, "another"), load) is None


# --- life


class FailingEngine(FakeEngine):
    """A backend that cannot be started a few times, and then runs."""

    losses = 0
    pid = None

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures, self.starts = failures, 0
        self.is_ready = False

    def give_up(self) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        self.starts += 1
        if self.starts <= self.failures:
            raise EngineStartError("it fell off the bus")
        self.is_ready = True
        await asyncio.Event().wait()


def kept(name: str, engine: FailingEngine, own: WorkerConfig) -> KeptCard:
    return KeptCard(EngineCard(name, engine, slots=1, queue=0), engine, own)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Engines, FailingEngine, FailingEngine]]:
    """Two cards, of which the first cannot be started twice."""
    own = loaded(tmp_path, f'payout = "{PAYOUT}"\n')
    bad, good = FailingEngine(2), FailingEngine()
    engines = Engines(
        [kept("bad", bad, own), kept("good", good, own)],
        logs.silent(),
        first_retry_s=0.01,
        max_retry_s=0.02,
    )
    life = asyncio.create_task(engines.run())
    yield engines, bad, good
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_a_card_that_cannot_be_started_is_given_up_alone_and_tried_again(
    running: tuple[Engines, FailingEngine, FailingEngine],
) -> None:
    engines, bad, good = running
    for _ in range(2):
        card, gone = await engines.gone.get()
        assert (card.name, gone.message) == ("bad", "it fell off the bus")
        assert card.failed == gone.message and not card.ready
    await until(lambda: bad.starts == 3 and bad.is_ready)
    assert good.starts == 1 and next(c for c in engines.cards if c.name == "good").ready


async def test_the_only_card_that_cannot_be_started_ends_the_worker(tmp_path: Path) -> None:
    own = loaded(tmp_path, f'payout = "{PAYOUT}"\n')
    engines = Engines([kept("0", FailingEngine(1), own)], logs.silent())
    with pytest.raises(EngineStartError, match="fell off"):
        await engines.run()


async def test_a_group_of_gpus_behind_one_vllm_server_is_one_card(tmp_path: Path) -> None:
    async with servers() as (server,):
        text = f"""
payout = "{PAYOUT}"
model = "{bundled_checkpoint_path()}"
benchmark_s = 0.1
[[cards]]
name = "pair"
backend = "vllm"
vllm_endpoints = ["{server.url}"]
slots = 5
[[cards]]
name = "cpu"
device = "cpu"
"""
        own = loaded(tmp_path, text)
        made = make_engines(own, Home(tmp_path), SystemClock(), logs.silent(), command=None)
        pair = made.kept[0]
        life = asyncio.create_task(pair.backend.run())
        events = pair.backend.events()
        try:
            assert isinstance(await anext(events), EngineReady)
            assert pair.card.serves and pair.backend.pid is None
            ((entry, served),) = made.cards.entries(serving=True).items()
            assert (served.facts.service, served.slots) == (Service.BEST_EFFORT, 5)
            assert made.cards.of(entry) == (pair.card,)
            await server.stop()
            assert isinstance(await anext(events), EngineLost)
            assert not made.cards.entries(serving=True), "the group left as one"
            assert list(made.cards.entries(serving=False)) == [entry]
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)


# --- energy


@pytest.mark.parametrize(
    ("devices", "ours", "told"),
    [
        (("cuda",), {"1"}, True),
        (("cpu",), set(), False),
        (("cuda", "cpu"), {"1"}, False),
        (("vllm",), {"1"}, False),
    ],
)
def test_energy_is_known_where_gpus_of_known_numbers_do_all_of_the_work(
    tmp_path: Path, devices: tuple[str, ...], ours: set[str], told: bool
) -> None:
    """A card on the CPU has a number too, and it is that of somebody else's GPU."""
    ((_, own), (_, on_cpu)) = loaded(tmp_path, TWO).of_cards
    cards = []
    for place, device in enumerate(devices):
        engine = FailingEngine(0)
        engine.known, engine.is_ready = replace(FACTS, device=device), True
        cards.append(kept(str(place), engine, on_cpu if device == "cpu" else own))
    assert gpus_at_work(cards) == (ours, told)
    for one in cards:
        one.card.failed = "it fell off the bus"
    assert gpus_at_work(cards) == (set(), True)
