"""What is held for audits of a job, at the prices of whoever offers them."""

from __future__ import annotations

import pytest

from piecework.client.jobs.audit_ceilings import audit_ceilings
from piecework.client.jobs.requests import Filters
from piecework.client.jobs.selection import rank
from piecework.client.journal.records import Memories
from piecework.client.limits import MAX_OPINIONS
from piecework_protocol.objects import Kind
from piecework_protocol.types import Amount, Uint32
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.client.client_side import ask
from tests.support.market.offers import model, offer


@pytest.mark.parametrize(("scale", "held"), [(1, MAX_OPINIONS), (1_000_000, 0)])
def test_a_strangers_absurd_price_for_audits_takes_no_room_from_jobs(scale: int, held: int) -> None:
    """One bonded worker could otherwise let every job of a client with a budget fail."""
    request = ask(max_tokens=64)
    filters = Filters(now=1_800_000_000, token=TOKEN_INFO)
    (choice,) = rank(request, [offer("worker")], Memories({}), filters).choices
    sells = model(
        kinds=Uint32(Kind.TEXT.bit | Kind.AUDIT.bit),
        price_per_million_prompt_tokens=Amount(50_000 * scale),
        price_per_thousand_steps=Amount(1_000 * scale),
    )
    auditor = offer("eve", models=(sells,)).offer
    assert len(audit_ceilings(request, choice, [auditor], 3.0)) == held
