"""Admission over anything: it lets in or refuses, and never promises more than the deposit
holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_node.jobs.admission import admit, backing
from piecework_protocol.credit import PayerCredit, PayerStanding
from piecework_protocol.errors import Refusal
from piecework_protocol.objects import Kind
from piecework_protocol.pricing import worst_case
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount
from tests.unit.node.test_admission import AdmissionCase, content, funding, good

U32 = st.integers(0, 2**32 - 1)
AMOUNT = st.one_of(st.integers(0, 10**7), st.integers(0, 2**128 - 1))


@st.composite
def cases(draw: st.DrawFn) -> AdmissionCase:
    case = good()
    p = case.job.parameters.replace(
        max_tokens=draw(st.one_of(st.integers(0, 5000), U32)),
        max_steps=draw(st.one_of(st.integers(0, 60), U32)),
        temperature_start=draw(U32),
        temperature_end=draw(st.one_of(st.integers(0, 10**6), U32)),
        stability_steps=draw(st.one_of(st.just(1), U32)),
    )
    work = case.job.replace(
        parameters=p if draw(st.booleans()) else case.job.parameters,
        max_amount=draw(AMOUNT),
        deadline=draw(st.one_of(st.just(case.job.deadline), st.integers(0, 2**64 - 1))),
    )
    book = replace(
        case.book,
        state=draw(st.sampled_from(ChannelState)),
        deposit=Amount(draw(AMOUNT)),
        reserved=Amount(draw(AMOUNT)),
        pooled=Amount(draw(AMOUNT)),
        funding=draw(st.one_of(st.none(), st.builds(funding, st.integers(0, 10**7)))),
        attached=draw(st.integers(0, 5)),
        payer=PayerCredit(
            draw(st.sampled_from(PayerStanding)),
            owed=Amount(draw(AMOUNT)),
            limit=Amount(draw(AMOUNT)),
            unpromised=Amount(draw(AMOUNT)),
            unpromised_limit=Amount(draw(AMOUNT)),
            on_openings=Amount(0),
        ),
        strangers_owe=Amount(draw(AMOUNT)),
        stray_unpaid=draw(st.booleans()),
    )
    # The tokens are really made. The second range goes well past the context of the model.
    tokens = draw(st.one_of(st.integers(1, 100), st.integers(0, 2**18)))
    return replace(case, job=work, book=book, prompt_tokens=tokens)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(cases())
def test_admission_only_ever_lets_in_what_is_covered_or_refuses(case: AdmissionCase) -> None:
    try:
        accepted = admit(case.submission, case.view, case.book, content(case.prompt_tokens))
    except Refusal:
        return
    worst = worst_case(accepted.model, Kind.TEXT, accepted.job.parameters, accepted.prompt_tokens)
    assert worst <= case.job.max_amount
    assert case.book.reserved + worst <= backing(case.book)
    assert case.book.state in (ChannelState.OPEN, ChannelState.NONE)
    assert case.book.payer.owed < case.book.payer.limit
    assert case.book.payer.unpromised < case.book.payer.unpromised_limit
    if case.book.payer.is_stranger:
        assert case.book.strangers_owe < case.view.terms.credit.strangers
