"""The gateway's list of models comes page by page, however many workers make up."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from piecework.client.gateway.formats.common import ApiError
from piecework.client.gateway.formats.models import (
    MAX_LISTED_MODELS,
    ModelPage,
    model_entry,
    model_list,
)
from piecework.client.jobs.output_rates import OutputRate
from piecework.client.journal.records import Memories
from piecework_protocol.objects import Offer
from piecework_protocol.types import Timestamp
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.market.offers import model, offer

RATES = partial(OutputRate.of, memories=Memories(), now=Timestamp(1_800_000_000))


def offers(count: int) -> list[Offer]:
    """Workers with so many models in all."""
    names = [f"model-{number:04}" for number in range(count)]
    return [
        offer(f"worker {start}", models=tuple(map(model, names[start : start + 64]))).offer
        for start in range(0, count, 64)
    ]


def page(listed: list[Offer], **query: str) -> dict[str, Any]:
    return model_list(listed, RATES, TOKEN_INFO, page=ModelPage.parse(query))


def test_every_model_is_reached_page_by_page_and_once() -> None:
    listed, seen, after = offers(150), list[str](), ""
    for expected in (64, 64, 22):
        found = page(listed, limit="64", after=after)
        assert len(found["data"]) == expected
        assert found["has_more"] is (expected == 64)
        seen += [entry["id"] for entry in found["data"]]
        assert (found["first_id"], found["last_id"]) == (seen[-expected], seen[-1])
        after = found["last_id"]
    assert seen == sorted({m.name for o in listed for m in o.models})
    assert page(listed, after=after) == {"object": "list", "data": [], "has_more": False}


def test_no_page_is_longer_than_the_bound() -> None:
    listed = offers(MAX_LISTED_MODELS + 1)
    for query in ({}, {"limit": "999999"}):
        found = page(listed, **query)
        assert len(found["data"]) == MAX_LISTED_MODELS and found["has_more"]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "9" * 10, "²"])
def test_a_limit_that_is_none_is_refused(limit: str) -> None:
    with pytest.raises(ApiError):
        ModelPage.parse({"limit": limit})


def test_one_model_is_found_wherever_it_stands() -> None:
    listed = offers(150)
    found = model_entry("model-0149", listed, RATES, TOKEN_INFO)
    assert found == page(listed)["data"][-1]
    assert model_entry("model-0150", listed, RATES, TOKEN_INFO) is None
