"""Automatic prices of a running worker: when it looks, what it asks, and what it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from piecework.base.amounts import Token
from piecework.chain.errors import RpcUnavailable
from piecework_node import logs
from piecework_node.daemon.price_watch import (
    LOOK_S,
    NO_INDEX,
    NOT_READY,
    RETRY_S,
    SEVERAL,
    PriceParts,
    PriceWatch,
    Spent,
)
from piecework_node.engine.link import EngineFacts
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.pricing.market import FollowedModel, MarketView
from piecework_protocol.types import Amount, Digest, Timestamp
from tests.support.clock import FakeClock
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import TERMS, Client, WorkerHarness

OWN = replace(
    TERMS,
    price_per_million_prompt_tokens=Amount(50_000),
    price_per_million_output_tokens=Amount(200_000),
    price_per_thousand_steps=Amount(0),
)
CHEAP = (100_000, 100_000, 100_000)


@dataclass
class Wishes:
    """Implements `PriceSettings`."""

    automatic_prices: bool = True
    automatic_least_percent: int = 10
    automatic_step_percent: int = 10
    busy_power_w: int = 0
    usd_per_token: float = 1.0
    usd_per_kwh: float = 0.36


class ScriptedMarket:
    """Implements `daemon.price_watch.MarketPort`."""

    def __init__(self, prices: Sequence[int] | None = CHEAP) -> None:
        self.prices: tuple[int, ...] | None = None if prices is None else tuple(prices)
        self.asked: list[FollowedModel] = []
        self.away: Exception | None = None
        self.looked = asyncio.Event()

    async def look(self, model: FollowedModel, now: Timestamp) -> MarketView:
        self.asked.append(model)
        self.looked.set()
        if self.away is not None:
            raise self.away
        if self.prices is None:
            return MarketView((), (), ("index.example: refused",))
        return MarketView(self.prices, ("index.example",), ())


class PriceStage:
    """A price watch, and what it asks."""

    def __init__(self, folder: Path, wishes: Wishes | None = None) -> None:
        self.clock, self.market = FakeClock(), ScriptedMarket()
        self.file, self.wishes = folder / "prices.json", wishes or Wishes()
        self.facts: list[EngineFacts] = [FACTS]
        self.spent = Spent(None, 0, 0, 0, 0)
        self.asked: list[OperatorTerms] = []
        self.watch = self.another_life()

    def another_life(self) -> PriceWatch:
        parts = PriceParts(
            self.file,
            Token(b"\x33" * 20, "USDC", 6),
            lambda: self.facts,
            lambda: self.spent,
            self.asked.append,
            self.clock,
            logs.silent(),
        )
        self.watch = PriceWatch(parts, self.wishes, OWN)
        self.watch.begin()
        return self.watch

    async def look(self, hours: float = 1.0) -> int:
        """Let time pass and look. Returns the output price that is asked."""
        self.clock.advance(hours * 3600)
        await self.watch.look(self.market)
        return self.output

    @property
    def why(self) -> str:
        return dict(self.watch.why)["why"]

    @property
    def output(self) -> int:
        return self.watch.terms.price_per_million_output_tokens


async def test_prices_go_down_to_the_market_step_by_step_in_the_owners_proportions(
    tmp_path: Path,
) -> None:
    stage = PriceStage(tmp_path)
    assert stage.output == 200_000, "it begins with the owner's own prices"
    assert await stage.look() == 180_000, "a tenth an hour"
    terms = stage.watch.terms
    assert terms.price_per_million_prompt_tokens == 45_000
    assert stage.asked == [terms] and stage.market.asked[0].digest == FACTS.digest
    assert await stage.look(0.5) == 180_000, "not twice in an hour"
    for _ in range(20):
        await stage.look()
    assert 100_000 <= stage.output <= 103_100
    rested = len(stage.asked)
    await stage.look()
    assert len(stage.asked) == rested, "no new offer for nothing"


async def test_a_restart_goes_on_where_it_was_and_moves_no_sooner(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    stage.another_life()
    assert stage.output == 180_000
    assert await stage.look(0.2) == 180_000
    assert await stage.look(0.9) == 162_000


async def test_a_damaged_file_begins_with_the_own_prices(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    stage.file.write_text("{")
    stage.another_life()
    assert stage.output == 200_000


async def test_an_index_a_registry_and_an_engine_that_are_away_change_nothing(
    tmp_path: Path,
) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    stage.market.prices = None
    assert await stage.look() == 180_000
    assert "index.example: refused" in stage.why
    due = stage.watch.next_look_at
    assert due is not None and RETRY_S <= due - stage.clock.wall() <= 1.1 * RETRY_S
    stage.market.away = RpcUnavailable("the node is away")
    assert await stage.look() == 180_000 and "registry" in stage.why
    stage.market.away, stage.market.prices = None, CHEAP
    stage.facts = [FACTS, replace(FACTS, digest=Digest(b"\x09" * 32))]
    looks = len(stage.market.asked)
    assert await stage.look() == 180_000 and stage.why == SEVERAL
    stage.facts = []
    await stage.look()
    assert len(stage.market.asked) == looks
    stage.facts = [FACTS]
    assert await stage.look() == 162_000
    due = stage.watch.next_look_at
    assert due is not None and LOOK_S <= due - stage.clock.wall() <= 1.1 * LOOK_S


async def test_without_an_index_the_own_prices_are_asked(tmp_path: Path) -> None:
    class Nobody(ScriptedMarket):
        async def look(self, model: FollowedModel, now: Timestamp) -> MarketView:
            return MarketView((), (), ())

    stage = PriceStage(tmp_path)
    stage.market = Nobody()
    assert await stage.look() == 200_000
    assert stage.why == NO_INDEX


async def test_a_measured_cost_is_the_floor_and_it_is_remembered(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    # 1.5 J a token are 0.417 kWh a million, $0.15 at $0.36.
    stage.spent = Spent(1.5 * 20_000, 20_000, 0, 0, 0)
    stage.market.prices = (1, 1, 1)
    for _ in range(40):
        await stage.look()
    assert 150_000 <= stage.output <= 155_000
    assert "NVML" in dict(stage.watch.why)["power"]
    stage.spent = Spent(None, 0, 0, 0, 0)
    stage.another_life()
    for _ in range(3):
        await stage.look()
    assert stage.output >= 150_000, "until it is measured once more"


async def test_own_prices_that_pay_no_cost_are_asked_and_it_says_so(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path, Wishes(busy_power_w=10**6))
    assert await stage.look() == 200_000
    assert "more than your own prices" in dict(stage.watch.why)["least"]


async def test_turning_it_off_asks_the_own_prices_at_once_and_forgets(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    off = replace(stage.wishes, automatic_prices=False)
    assert stage.watch.configure(off, OWN) == OWN
    assert not stage.file.exists() and stage.watch.status() == {"automatic": False}
    assert stage.watch.configure(stage.wishes, OWN) == OWN, "it begins with the own prices"


async def test_an_owner_who_raises_the_own_prices_moves_the_ceiling_alone(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    dear = replace(OWN, price_per_million_output_tokens=Amount(400_000))
    assert stage.watch.configure(stage.wishes, dear).price_per_million_output_tokens == 180_000
    low = replace(OWN, price_per_million_output_tokens=Amount(90_000))
    assert stage.watch.configure(stage.wishes, low).price_per_million_output_tokens == 90_000


async def test_the_status_says_what_is_asked_why_and_when_it_looks_next(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    await stage.look()
    shown = stage.watch.status()
    assert shown["asked"] == 180_000 and shown["market"] == 100_000 and shown["operators"] == 3
    assert shown["least"] == 20_000 and shown["most"] == 200_000 and shown["floor"] is None
    assert shown["outcome"] == "moved" and shown["next_look_at"] > stage.clock.wall()
    text = " ".join(shown["why"].values())
    for part in ("0.10 USDC", "3 other operators", "10 %", "busy_power_w", "not counted"):
        assert part in text


async def test_it_looks_at_once_and_goes_on_when_it_is_turned_on(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path, Wishes(automatic_prices=False))
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(stage.watch.run(stage.market))
        await asyncio.sleep(0)
        assert not stage.market.asked
        stage.watch.configure(Wishes(), OWN)
        await stage.market.looked.wait()
        running.cancel()


async def test_a_clock_that_was_years_ahead_stops_no_look(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    years_s = 10 * 365 * 24 * 3600.0
    stage.clock.advance(years_s)
    await stage.watch.look(stage.market)
    stage.market.looked.clear()
    stage.clock.advance(-years_s)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = group.create_task(stage.watch.run(stage.market))
        await stage.market.looked.wait()
        running.cancel()


async def test_before_an_engine_is_ready_the_own_prices_are_asked(tmp_path: Path) -> None:
    stage = PriceStage(tmp_path)
    stage.facts = []
    stage.another_life()
    await stage.look()
    assert stage.watch.terms == OWN and stage.watch.status() == {"automatic": True}
    stage.facts = [FACTS]
    await stage.watch.look(ScriptedMarket(None))
    assert stage.output == 200_000
    assert stage.why != NOT_READY


async def test_a_job_that_runs_keeps_its_offer_when_the_market_moves_the_prices(
    tmp_path: Path,
) -> None:
    """The first job is charged at the own prices, the next one at what the market left of them."""
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    stage = PriceStage(tmp_path)
    watch = PriceWatch(
        replace_ask(stage, harness), replace(stage.wishes, automatic_step_percent=25), TERMS
    )
    watch.begin()
    running = client.job(1)
    await client.submit(running)
    await harness.engine_step(harness.engine.runnable()[0])
    stage.market.prices = (1, 1, 1)
    for _ in range(12):
        stage.clock.advance(3600)
        await watch.look(stage.market)
    await harness.issue_offer()
    await client.finish(running)
    before = client.book.cumulative

    after = client.job(1, prompt="another fox")
    await client.submit(after)
    await client.finish(after)
    assert 0 < client.book.cumulative - before < before / 2


def replace_ask(stage: PriceStage, harness: WorkerHarness) -> PriceParts:
    """Let the watch change what a worker of the simulation asks."""

    def ask(terms: OperatorTerms) -> None:
        harness.terms = harness.worker.terms = terms

    return PriceParts(
        stage.file,
        Token(b"\x33" * 20, "USDC", 6),
        lambda: stage.facts,
        lambda: stage.spent,
        ask,
        stage.clock,
        logs.silent(),
    )
