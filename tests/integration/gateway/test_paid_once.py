"""What a request may cost: no caller pays twice, and no limit is passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.text import TextContent
from tests.support.gateways import MODEL, ScriptedMarket, scripted_market
from tests.support.scripted_worker import final

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
