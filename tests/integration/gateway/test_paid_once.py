"""What a request may cost: no caller pays twice, and no limit is passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.text import TextContent
from tests.support.client.gateways import MODEL, ScriptedMarket, scripted_market
from tests.support.client.scripted_worker import final

USER: Any = [{"role": "user", "content": "Tell me a story."}]
NUMBER: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "number",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
        },
    },
}

CODE: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "code",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": "^[0-9]+$", "maxLength": 48}},
            "required": ["a"],
        },
    },
}
"""Nothing decides it for a model that never writes it."""


def busy(market: ScriptedMarket) -> None:
    """Let the worker decline everything from now on."""
    full = Refusal(Reason.BUSY, "full", retry_after_s=1.0)
    market.worker.script.refusals = [full] * 20


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sdk_does_not_repeat_what_failed_after_a_payment(
    tmp_path: Path, stream: bool
) -> None:
    async with scripted_market(tmp_path, wait_s=3.0) as market:

        def fills(before: str, job: int) -> str:
            busy(market)
            return "no number"

        market.mind.fills = fills
        async with market.sdk() as sdk:
            with pytest.raises(openai.APIError) as caught:
                answer: Any = await sdk.with_options(max_retries=2).chat.completions.create(
                    model=MODEL, messages=USER, response_format=NUMBER, stream=stream
                )
                if stream:
                    [chunk async for chunk in answer]
        assert len(market.mind.asked) == 1
        if isinstance(caught.value, openai.APIStatusError):
            assert caught.value.response.headers["x-should-retry"] == "false"


async def test_the_sdk_does_not_repeat_a_request_of_which_one_answer_was_paid(
    tmp_path: Path,
) -> None:
    async with scripted_market(tmp_path, wait_s=3.0, max_concurrent=1) as market:

        def says(content: TextContent) -> Any:
            busy(market)
            return (final("Once."),)

        market.mind.says = says
        async with market.sdk() as sdk:
            with pytest.raises(openai.InternalServerError) as caught:
                patient = sdk.with_options(max_retries=2)
                await patient.chat.completions.create(model=MODEL, messages=USER, n=2)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert len(market.mind.asked) == 1


@pytest.mark.parametrize("price", [2_400, 4_000, 5_000, 100_000])
async def test_all_jobs_of_a_request_stay_within_its_price(tmp_path: Path, price: int) -> None:
    async with scripted_market(tmp_path) as market:
        market.mind.fills = lambda before, job: "no number"
        ours: Any = {"piecework": {"max_price": price, "max_steps": 10}}
        async with market.sdk() as sdk:
            with pytest.raises(openai.InternalServerError) as caught:
                await sdk.chat.completions.create(
                    model=MODEL, messages=USER, n=2, response_format=CODE, extra_body=ours
                )
        assert caught.value.code == "structured_output_failed"
        assert caught.value.response.headers["x-should-retry"] == "false"
        most = at_once(market)
        assert len(most) >= 2 and max(most) <= price


def at_once(market: ScriptedMarket) -> list[int]:
    """At each submission: what was paid to that moment at most, and what all open jobs may cost.

    Every answer runs its jobs in turn, so the last two may be open together.
    """
    ceilings = [s.job.max_amount for s in market.worker.submissions]
    paid = {row.receipt.job: row.receipt.amount for row in market.client.store.receipts()}
    jobs = [job.id for job in market.client.store.jobs()]
    before = [sum(paid.get(job, 0) for job in jobs[: max(0, n - 1)]) for n in range(len(jobs))]
    return [spent + sum(ceilings[max(0, n - 1) : n + 1]) for n, spent in enumerate(before)]


async def test_a_price_for_no_job_at_all_is_the_callers_mistake(tmp_path: Path) -> None:
    async with scripted_market(tmp_path) as market:
        ours: Any = {"piecework": {"max_price": 100}}
        async with market.sdk() as sdk:
            with pytest.raises(openai.BadRequestError) as caught:
                await sdk.chat.completions.create(
                    model=MODEL, messages=USER, response_format=NUMBER, extra_body=ours
                )
        assert caught.value.code == "max_price_too_low"
        assert not market.worker.submissions
