"""One story of each kind that a client has with a worker, over every way to that worker.

The worker is a process of its own: one that clients dial, one behind a relay, and one behind a
relay in a network that nobody can dial (skipped by name where the system does not allow that). What
differs between the ways is below the protocol. So each kind of story is here once, and its variants
are elsewhere, with a worker in the test's own process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import pytest_asyncio

from piecework.client.audits.openings import buy_steps
from piecework.client.orders import ClosingState
from piecework.client.sdk import PieceworkClient
from piecework_protocol.kinds.read import Label, Question
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.trace import leaf_of
from piecework_protocol.types import Timestamp
from tests.support.chain.chains import FAR
from tests.support.client.client_side import (
    CanvasText,
    DraftText,
    JobResuming,
    ask,
    collect,
    last,
    text_of,
)
from tests.support.client.gateways import KEY, serving
from tests.support.market.ways import (
    POOL,
    ReachedMarket,
    Way,
    market_by,
    require_namespace,
)
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SEED = 3
LONG_SEED = 29
"""The stand-in engine tells 26 canvases with this seed, and 6 with the other one."""
STORY: Any = [{"role": "user", "content": "Tell me a story."}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
QUESTIONS = (
    Question("Is it a fox?", (Label("yes"), Label("no"))),
    Question("Which?", (Label("a"), Label("b"), Label("c"))),
)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=list(Way), ids=lambda way: way.name.lower()
)
async def reached(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ReachedMarket]:
    """Two workers that are reached in this way. They serve all stories."""
    way: Way = request.param
    if way is Way.BEHIND_A_ROUTER:
        require_namespace()
    async with market_by(way, tmp_path_factory.mktemp(way.name.lower())) as market:
        yield market


async def paid_by(client: PieceworkClient) -> int:
    """What a client has promised: to the unit what its proven receipts say, and all confirmed."""
    total = 0
    for row in client.store.channels():
        found, receipts = await client.receipts(row.id)
        assert not [one.trouble for one in receipts if one.trouble]
        amount = sum(one.row.receipt.amount for one in receipts)
        assert (found.book.cumulative, found.book.acknowledged) == (amount, len(receipts))
        total += amount
    assert total > 0
    return total


@asynccontextmanager
async def gateway_of(client: PieceworkClient) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's own client of a gateway that spends from this client."""
    async with (
        serving(client) as (_, url),
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as sdk,
    ):
        yield sdk


async def test_a_job_shows_its_drafts_and_each_canvas_is_paid(reached: ReachedMarket) -> None:
    async with reached.client("drafts") as client:
        events = await collect(client.run(ask(drafts=True, max_tokens=40, seed=SEED)))
        ended = last(events)
        assert text_of(events) and ended.acknowledged
        assert any(isinstance(event, DraftText) for event in events)
        assert ended.cost == await paid_by(client)
        offer = client.store.job(ended.job).offer.offer
        assert offer.endpoints == (reached.of(ended.operator).endpoint,)


async def test_a_job_whose_way_is_cut_goes_on(reached: ReachedMarket) -> None:
    async with reached.client("resume") as client:
        asked = ask(max_tokens=400, seed=LONG_SEED)
        running = asyncio.create_task(collect(client.run(asked)))
        await until(lambda: bool(client.store.receipts()), within_s=60)
        for one in reached.workers:
            one.wire.cut()
        events = await asyncio.wait_for(running, 180)
        assert any(isinstance(event, JobResuming) for event in events)
        canvases = [event for event in events if isinstance(event, CanvasText)]
        assert [canvas.canvas for canvas in canvases] == list(range(26))
        assert last(events).acknowledged
        assert last(events).cost == sum(c.amount for c in canvases) == await paid_by(client)
        for one in reached.workers:
            await one.back()


async def test_a_worker_that_is_away_is_replaced_by_the_next(reached: ReachedMarket) -> None:
    async with reached.client("failover") as client:
        assert len((await client.offers()).offers) == 2
        await reached.first.wire.down()
        try:
            events = await collect(client.run(ask(max_tokens=40, seed=SEED)))
            assert last(events).operator == reached.second.operator
            assert last(events).cost == await paid_by(client)
        finally:
            await reached.first.wire.up()
            await reached.first.back()


async def test_a_read_is_answered_and_paid(reached: ReachedMarket) -> None:
    async with reached.client("read") as client:
        result = await client.read("a story", QUESTIONS, draws=2)
        assert [sum(decision.probabilities) for decision in result.decisions] == [
            pytest.approx(1)
        ] * 2
        assert result.finished.output_tokens == 0
        assert result.cost.units == await paid_by(client)


async def test_a_canvas_is_opened_and_audited_by_the_other_worker(reached: ReachedMarket) -> None:
    async with reached.client("audit", keep_text=True, audit_by="market") as client:
        ended = last(await collect(client.run(ask(max_tokens=40, seed=SEED))))
        job = ended.job
        row = min(client.store.receipts(job=job), key=lambda found: found.receipt.canvas)
        bought = await buy_steps(client, job, row.receipt.canvas, soft=False)
        assert [leaf_of(step.fields) for step in bought.steps] == [*row.leaves[1:]]
        file, missing = await client.evidence(job)
        assert not missing
        report = await client.audits.audit(file, row.receipt.canvas)
        assert report.outcome is AuditOutcome.PASS
        assert report.by == (reached.other(ended.operator).operator,)
        assert bought.cost > 0 and report.cost > 0
        assert len(client.store.channels()) == 2, "one at each worker"
        await paid_by(client)


async def test_a_deposit_that_runs_low_is_topped_up_on_the_chain(reached: ReachedMarket) -> None:
    asked = ask(max_tokens=40, seed=SEED)
    async with reached.client("top-up") as client:
        ceiling = (await client.quote(asked)).ceiling
        deposit = client.payment_token.format(ceiling.units)
    async with reached.client("top-up", deposit=deposit) as client:
        await collect(client.run(asked))
        (before,) = client.store.channels()
        await collect(client.run(asked))
        (row,) = client.store.channels()
        assert row.deposit > before.deposit > 0

        async def is_topped_up() -> bool:
            return (await client.reader.channel(row.id)).funded == row.deposit

        await until(is_topped_up, within_s=60, poll_s=0.2)
        await paid_by(client)


async def test_a_channel_is_settled_to_the_unit(reached: ReachedMarket) -> None:
    async with reached.client("settlement") as client:
        await collect(client.run(ask(max_tokens=40, seed=SEED)))
        paid, (row,) = await paid_by(client), client.store.channels()
        (closing,) = await client.funds.close_all()
        assert closing.state is ClosingState.CLOSED
        assert "together with the worker" in closing.note
        assert (await client.reader.channel(row.id)).settled == paid
        payer, token = client.wallet.payer.address, reached.market.token
        pooled = await client.reader.pooled_balance(token, payer)
        bill = await client.funds.invoice(Timestamp(0), FAR)
        assert (bill.troubles, bill.after) == ((), (pooled, 0))
        assert bill.totals.paid == paid and pooled == POOL - paid - bill.totals.fees


async def test_the_gateway_streams_a_chat_with_its_bill(reached: ReachedMarket) -> None:
    async with reached.client("chat") as client, gateway_of(client) as sdk:
        chunks = await sdk.chat.completions.create(
            model="any", messages=STORY, max_tokens=40, seed=SEED, stream=True
        )
        text, ours = "", dict[str, Any]()
        async for chunk in chunks:
            ours = (chunk.model_extra or {}).get("piecework", ours)
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert text
        assert ours["cost"] == await paid_by(client)


async def test_the_gateway_makes_a_call_of_a_tool(reached: ReachedMarket) -> None:
    async with reached.client("tools") as client, gateway_of(client) as sdk:
        answer = await sdk.chat.completions.create(
            model="any", messages=STORY, tools=[WEATHER], tool_choice="required", seed=SEED
        )
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function" and call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city"}
        ours = (answer.model_extra or {})["piecework"]
        assert ours["cost"] == await paid_by(client)
