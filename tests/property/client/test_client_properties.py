"""What must hold for every input: parsing, cutting, ranking, sizing deposits, paying."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from piecework.client.errors import InsufficientFunds
from piecework.client.gateway.formats.chat import parse_chat
from piecework.client.gateway.formats.common import ApiError, StopCutter
from piecework.client.gateway.formats.completions import parse_completion
from piecework.client.gateway.formats.decisions import parse_decision, parse_systemone
from piecework.client.gateway.formats.responses import parse_response
from piecework.client.jobs.channels import deposit_total
from piecework.client.journal.store import Store
from piecework_protocol.errors import MalformedInput
from piecework_protocol.frames import LeafRef
from piecework_protocol.index_pages import parse_page
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.types import Amount
from tests.support.chain.fake_chain import DOMAIN, TOKEN_INFO
from tests.support.client.client_side import PAYER
from tests.unit.client.test_store import CHANNEL, UNTIL, canvas, exactly, job_row, terms

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "n",
        "stop",
        "seed",
        "temperature",
        "stream",
        "piecework",
        "tools",
        "max_tokens",
        "top_p",
        "response_format",
        "tool_choice",
        "prompt",
        "suffix",
        "input",
        "text",
        "reasoning",
        "state",
        "questions",
        "assets",
    ]
)
PARSERS = (parse_chat, parse_completion, parse_response, parse_decision, parse_systemone)


@given(st.dictionaries(FIELDS, JSON, max_size=8) | JSON)
def test_any_body_is_parsed_or_refused_in_openais_shape(body: Any) -> None:
    usual = {"messages": [{"role": "user", "content": "x"}], "model": "any"}
    for parse in PARSERS:
        try:
            parse({**usual, **body} if isinstance(body, dict) else body)
        except ApiError as error:
            assert error.status == 400
            assert error.body()["error"]["message"]


@given(st.binary(max_size=300))
def test_any_index_answer_is_a_list_of_offers_or_malformed(body: bytes) -> None:
    with contextlib.suppress(MalformedInput):
        assert parse_page(body, 500)[0] == []


@given(
    st.lists(st.text("ab.", max_size=6), min_size=1, max_size=8),
    st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
)
@example([".", "b", "a."], [".ba."])
def test_cutting_a_text_in_pieces_equals_cutting_it_whole(
    pieces: list[str], stops: list[str]
) -> None:
    cutter = StopCutter(tuple(stops))
    shown = "".join(cutter.feed(piece, last=i == len(pieces) - 1) for i, piece in enumerate(pieces))
    whole = "".join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    # A stop that begins earlier but is completed later than another is found only if both came at
    # once.
    assert whole.startswith(shown)
    assert cutter.stopped == bool(ends)
    assert not any(stop in shown for stop in stops)
    if not ends:
        assert shown == whole


@given(*(st.integers(0, 10**12) for _ in range(3)), st.integers(0, 10**9))
def test_a_deposit_covers_the_need_and_never_takes_more_than_is_free(
    needed: int, deposit: int, free: int, step: int
) -> None:
    needed = max(needed, deposit + 1)
    try:
        total = deposit_total(
            Amount(needed), Amount(deposit), Amount(free), Amount(step), TOKEN_INFO
        )
    except InsufficientFunds:
        assert needed - deposit > free
        return
    assert needed <= total <= deposit + free


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 20)), max_size=25))
def test_the_stored_book_equals_the_ledger_whatever_process_pays(
    steps: list[tuple[int, int, int]],
) -> None:
    """Three jobs, two processes, receipts in any interleaving, some of them twice."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [Store(Path(folder) / "c.db", DOMAIN, PAYER.address) for _ in range(2)]
        stores[0].open_channel(terms())
        jobs = [job_row(seed, 1000) for seed in range(3)]
        for job in jobs:
            stores[0].admit(job, None, exactly, UNTIL)
        book, paid = PayerLedger(CHANNEL), [0, 0, 0]
        for which, process, amount in steps:
            event = canvas(jobs[which], paid[which], amount)
            first = stores[process].pay(event, CHANNEL, None)
            again = stores[1 - process].pay(event, CHANNEL, None)
            book = book.pay(
                LeafRef(jobs[which].id, paid[which]), event.digest, Amount(amount), Amount(3000)
            )
            paid[which] += 1
            assert first.book == book
            assert again.again
        assert all(store.channel(CHANNEL).book == book for store in stores)
        for store in stores:
            store.close()
