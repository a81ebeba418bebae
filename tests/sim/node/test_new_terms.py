"""A worker whose owner changes prices: new offers have them, and what runs keeps its own."""

from __future__ import annotations

from dataclasses import replace

from piecework_node.jobs.offers import OfferBoard, refresh_due
from piecework_protocol.types import Amount
from tests.support.node.fake_engine import FACTS
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    TERMS,
    Client,
    WorkerHarness,
    address_with,
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
    assert not board.is_due(address, 0)  # there is none yet to replace
    first = await board.issue(FACTS, address, active=0)
    assert not board.is_due(address, 0)
    board.change(TERMS)
    assert board.is_due(address, 0)
    second = await board.issue(FACTS, address, active=0)
    assert second.offer.sequence == first.offer.sequence + 1
    prices = [o.offer.models[0].price_per_thousand_steps for o in (first, second)]
    assert prices == [DEARER.price_per_thousand_steps, TERMS.price_per_thousand_steps]
    assert not board.is_due(address, 0)
    assert not refresh_due(second.offer, second.offer.issued_at, 3, address)
