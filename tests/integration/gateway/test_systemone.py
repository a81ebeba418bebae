"""Decisions in TypeSafe's shape, over plain HTTP. `make agents` runs its SDK."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from piecework_protocol.conversation import Image, Text
from piecework_protocol.errors import Reason, Refusal
from tests.support.client.gateways import KEY, MODEL, ScriptedMarket, scripted_market

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.fixture
async def market(tmp_path: Path) -> AsyncIterator[ScriptedMarket]:
    async with scripted_market(tmp_path) as running:
        yield running


async def ask(market: ScriptedMarket, body: Any, key: str = KEY) -> tuple[int, Any, Any]:
    """Post a body, and return the status, the JSON and the headers."""
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(market.url + "/v1/systemone", json=body) as response,
    ):
        return response.status, await response.json(), response.headers


def body(**questions: Any) -> dict[str, Any]:
    """A request with a state."""
    return {"model": MODEL, "state": {"message": "I was charged twice."}, "questions": questions}


async def test_each_question_gets_an_answer_of_its_type(market: ScriptedMarket) -> None:
    status, answer, headers = await ask(
        market,
        body(
            billing={"type": "noul", "instructions": "Is it about billing?"},
            tone={
                "type": "choice",
                "instructions": "The tone?",
                "criteria": {"angry": "Upset", "calm": None, "sad": {"like": "tears"}},
            },
            urgency={"type": "score", "criteria": ["later", ["this", "week"]]},
        ),
    )
    assert status == 200
    assert answer["model"] == MODEL
    assert answer["answers"]["billing"] == {"type": "noul", "noul": 0.75}
    tone = answer["answers"]["tone"]
    assert (tone["type"], tone["choice"]) == ("choice", "angry")
    assert tone["probabilities"] == {"angry": 0.75, "calm": 0.125, "sad": 0.125}
    assert tone["confidence"] == pytest.approx((3 * 0.75 - 1) / 2)
    urgency = answer["answers"]["urgency"]
    assert urgency["score"] == 0.25
    assert urgency["legend"] == {"0": "later", "1": ["this", "week"]}
    assert urgency["probabilities"] == {"0": 0.75, "1": 0.25}
    assert answer["usage"]["output_tokens"] == 0
    assert headers["x-typesafe-request-id"] == answer["piecework"]["job"]
    content = market.mind.asked[0]
    assert content.conversation.messages[0].text == '{"message":"I was charged twice."}'
    assert [label.description for label in content.questions[1].labels] == [
        "Upset",
        "",
        '{"like":"tears"}',
    ]


async def test_images_stand_where_their_placeholders_stand(market: ScriptedMarket) -> None:
    asked = {
        **body(ok={"type": "noul", "instructions": "Is it broken?"}),
        "state": "Before <img> after",
        "assets": {"<img>": {"type": "image", "format": "png", "data_base64": PNG}},
    }
    assert (await ask(market, asked))[0] == 200
    parts = market.mind.asked[0].conversation.messages[0].content
    assert parts == (
        Text("Before "),
        Image("image/png", base64.b64decode(PNG)),
        Text(" after"),
    )


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ({"type": "box"}, ["body", "questions", "q", "type"]),
        ({"type": "choice", "criteria": {"one": None}}, ["body", "questions", "q", "criteria"]),
        ({"type": "score", "criteria": ["a"] * 11}, ["body", "questions", "q", "criteria"]),
        ({"type": "noul", "instructions": 5}, ["body", "questions", "q", "instructions"]),
        (7, ["body", "questions", "q"]),
    ],
)
async def test_what_cannot_be_asked_is_422_with_its_place(
    market: ScriptedMarket, question: Any, where: list[str]
) -> None:
    status, answer, _ = await ask(market, body(q=question))
    assert status == 422
    (detail,) = answer["detail"]
    assert detail["loc"] == where
    assert detail["msg"]
    assert market.worker.submissions == []


async def test_other_failures_have_typesafes_shape(market: ScriptedMarket) -> None:
    question = {"type": "noul", "instructions": "Is it late?"}
    status, answer, _ = await ask(market, body(q=question), key="wrong")
    assert (status, answer["detail"]["error_type"]) == (401, "invalid_api_key")
    status, answer, _ = await ask(market, {**body(q=question), "model": "epic-9"})
    assert (status, answer["detail"]["error_type"]) == (404, "model_not_found")
    market.worker.script.refusals = [Refusal(Reason.PROMPT_REFUSED, "no such image")]
    status, answer, _ = await ask(market, body(q=question))
    assert status == 422
    assert "no such image" in answer["detail"][0]["msg"]


async def test_the_list_of_models_is_also_typesafes(market: ScriptedMarket) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(market.url + "/v1/models") as response,
    ):
        (model,) = (await response.json())["models"]
    assert model["name"] == MODEL
    assert model["release_date"].count("-") == 2
