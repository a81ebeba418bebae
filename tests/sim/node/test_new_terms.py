"""A worker whose owner changes prices: new offers have them, and what runs keeps its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from piecework_node import logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.card_pumps import CardPumps
from piecework_node.daemon.engines import Engines, KeptCard
from piecework_node.daemon.reconfiguring import check_terms, judge_again
from piecework_node.engine.link import EngineEvent, EngineReady
from piecework_node.errors import ConfigError
from piecework_node.jobs.offers import OfferBoard, refresh_due
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.runtime.cards import EngineCard
from piecework_protocol.credit import CreditTerms
from piecework_protocol.types import Amount
from tests.support.node.fake_engine import FACTS, FakeEngine
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    TERMS,
    Client,
    WorkerHarness,
    address_with,
    entry,
)

DEARER = replace(
    TERMS,
    price_per_million_output_tokens=Amount(10 * TERMS.price_per_million_output_tokens),
    price_per_thousand_steps=Amount(10 * TERMS.price_per_thousand_steps),
)


async def test_a_job_that_runs_is_charged_at_its_own_price_and_the_next_one_at_the_new() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    running = client.job(1)
    await client.submit(running)
    await harness.engine_step(harness.engine.runnable()[0])
    harness.terms = harness.worker.terms = DEARER
    await harness.issue_offer()
    await client.finish(running)
    cheap = client.book.cumulative
    assert cheap > 0

    after = client.job(1, prompt="another fox")
    await client.submit(after)
    await client.finish(after)
    assert client.book.cumulative - cheap > 5 * cheap


async def test_a_job_may_name_the_old_offer_until_it_expires() -> None:
    harness = WorkerHarness()
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    late = client.job(2)
    harness.terms = harness.worker.terms = DEARER
    await harness.issue_offer()
    await client.submit(late)
    await client.finish(late)
    assert client.book.cumulative > 0


async def test_changed_terms_make_a_new_offer_due_at_once_and_only_once() -> None:
    harness = WorkerHarness()
    await harness.boot()
    key = harness.keyring.current
    assert key is not None
    address = address_with(key)
    board = OfferBoard(harness.journal, TERMS, domain=DOMAIN, signer=OPERATOR, clock=harness.clock)
    board.change(DEARER)
    assert not board.is_due(address, [entry()])  # there is none yet to replace
    first = await board.issue([entry()], address)
    assert not board.is_due(address, [entry()])
    board.change(TERMS)
    assert board.is_due(address, [entry()])
    second = await board.issue([entry()], address)
    assert second.offer.sequence == first.offer.sequence + 1
    prices = [o.offer.models[0].price_per_thousand_steps for o in (first, second)]
    assert prices == [DEARER.price_per_thousand_steps, TERMS.price_per_thousand_steps]
    assert not board.is_due(address, [entry()])
    assert not refresh_due(second.offer, second.offer.issued_at, [entry()], address)


def crediting(first: int) -> OperatorTerms:
    credit = CreditTerms(Amount(first), Amount(20_000), Amount(100_000), Amount(20_000))
    return replace(TERMS, credit=credit)


FAIR = crediting(7_000)


def card(name: str, max_steps: int) -> tuple[EngineCard, FakeEngine]:
    """A card with a model whose first canvas costs more the more steps it may take."""
    engine = FakeEngine()
    engine.known = replace(FACTS, max_steps=max_steps)
    return EngineCard(name, engine, slots=1, queue=1), engine


def test_terms_at_which_nobody_could_begin_on_a_card_are_refused_with_its_name() -> None:
    (small, _), (large, engine) = card("a", 1), card("b", 10_000)
    check_terms([small], FAIR)
    with pytest.raises(ConfigError, match=r"^card b: credit_first is "):
        check_terms([small, large], FAIR)
    with pytest.raises(ConfigError, match=r"^credit_first is "):
        check_terms([large], FAIR)
    engine.lose()
    check_terms([small, large], FAIR)


def test_a_card_on_which_nobody_could_begin_takes_jobs_at_terms_that_let_them() -> None:
    (small, _), (large, slow), (broken, _) = card("a", 1), card("b", 10_000), card("c", 1)
    large.failed = FAIR.credit_fault(slow.known) or ""
    assert large.failed
    broken.failed = "the engine ended"
    check_terms([small, large, broken], FAIR)
    generous = crediting(20_000)
    judge_again([small, large, broken], FAIR, generous)
    assert [c.failed for c in (small, large, broken)] == ["", "", "the engine ended"]
    judge_again([small, large], generous, FAIR)
    assert small.failed == "" and large.failed.startswith("credit_first is ")


class LateEngine(FakeEngine):
    """A backend that tells what it runs, and nothing more."""

    losses = 0
    pid = None

    def give_up(self) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def events(self) -> AsyncIterator[EngineEvent]:
        yield EngineReady(self.known)


async def test_a_card_that_comes_late_is_judged_by_the_owners_prices_not_by_automatic_ones() -> (
    None
):
    """Automatic prices may rise to the owner's. Then nobody new could begin, and no fault said it.

    And a fault at other prices than the owner's would stay when the owner has done what it says.
    """
    harness = WorkerHarness()
    await harness.boot()
    (one,) = harness.worker.cards
    harness.engine.known = replace(FACTS, max_steps=10_000)
    fault = FAIR.credit_fault(harness.engine.known)
    harness.worker.terms = replace(FAIR, price_per_thousand_steps=Amount(0))
    assert fault and harness.worker.terms.credit_fault(harness.engine.known) is None
    backend = LateEngine()
    backend.known = harness.engine.known
    kept = KeptCard(one, backend, WorkerConfig.model_validate({"payout": "0x" + "22" * 20}))
    engines = Engines([kept], logs.silent())
    pumps = CardPumps(engines, harness.worker, harness.faults, own=lambda: FAIR)
    await pumps.pump_of(kept)()
    assert one.failed == fault
    judge_again([one], FAIR, crediting(20_000))
    assert one.failed == ""
