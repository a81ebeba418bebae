"""The two classes of service: what an offer, a job and a receipt of each can say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_protocol import merkle
from piecework_protocol.client_session import CanvasVerified, ClientSession, Openers
from piecework_protocol.content import output_digest
from piecework_protocol.errors import InvariantBroken, MalformedInput, ProtocolViolation
from piecework_protocol.frames import Accepted, CanvasDelivered
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import (
    Acceptance,
    Finish,
    Job,
    ModelOffer,
    Parameters,
    Receipt,
    Service,
)
from piecework_protocol.offers import OfferFault, OfferRejected, check_terms
from piecework_protocol.pricing import Usage, price
from piecework_protocol.service import (
    NO_TRACE,
    best_effort_parameters,
    offer_fault,
    parameters_fault,
    receipt_fault,
)
from piecework_protocol.signing import sign
from piecework_protocol.types import Amount, Digest, Micros, Uint32, Uint64, keccak256
from piecework_protocol.v2 import piecework_pb2 as pb
from piecework_protocol.wire import SignedOffer, decode_offer, encode_offer
from piecework_protocol.worker_session import AcceptedJob, CanvasResult, WorkerSession
from tests.support.market import offers
from tests.support.protocol.pair import CANVAS, DOMAIN, MODEL, NOW, OPERATOR, OUTLINE, channel, job
from tests.support.protocol.traces import made_up_leaves

PLAIN = Openers(canvas=lambda data, _: data, draft=lambda data, _, __: data)
PROMPT_TOKENS = 3
BEST_EFFORT = MODEL.replace(
    service=Service.BEST_EFFORT, max_steps=Uint32(0), price_per_thousand_steps=Amount(0)
)
TRACE = Digest(merkle.root([keccak256(b"a step")]))


def best_effort_job(tokens: int = 2 * CANVAS) -> Job:
    return job(1, tokens).replace(parameters=best_effort_parameters(Uint32(tokens)))


def session_at(work: Job, model: ModelOffer) -> ClientSession:
    """A client whose job the worker has accepted."""
    session = ClientSession(work, channel(), model, DOMAIN, PLAIN, outline=OUTLINE)
    promise = Acceptance(session.id, Uint32(PROMPT_TOKENS), NOW)
    signature = sign(DOMAIN, promise, OPERATOR)
    session.receive(Accepted(session.id, PROMPT_TOKENS, NOW, signature, 0, None))
    return session


def first_canvas(
    session: ClientSession, model: ModelOffer, steps: int, root: Digest
) -> CanvasDelivered:
    output = TextOutput.plain(tuple(range(CANVAS)), "text").encode()
    receipt = Receipt(
        job=session.id,
        canvas=Uint32(0),
        output_digest=output_digest(session.id, 0, output),
        trace_root=root,
        steps=Uint32(steps),
        units=Uint32(CANVAS),
        amount=price(model, Usage(PROMPT_TOKENS, CANVAS, steps)),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(PROMPT_TOKENS),
        total_units=Uint32(CANVAS),
        total_steps=Uint32(steps),
        total_amount=price(model, Usage(PROMPT_TOKENS, CANVAS, steps)),
        previous=Digest(session.id),
    )
    leaves = made_up_leaves(b"service", steps)
    return CanvasDelivered(receipt, sign(DOMAIN, receipt, OPERATOR), output, leaves)


def test_a_client_pays_for_a_best_effort_canvas_without_steps_and_trace() -> None:
    session = session_at(best_effort_job(), BEST_EFFORT)
    event = session.receive(first_canvas(session, BEST_EFFORT, 0, NO_TRACE))
    assert isinstance(event, CanvasVerified)
    assert event.receipt.amount == price(BEST_EFFORT, Usage(PROMPT_TOKENS, CANVAS, 0)) > 0


@pytest.mark.parametrize(
    ("work", "model", "steps", "root", "clause"),
    [
        (best_effort_job, BEST_EFFORT, 0, TRACE, "7.4"),
        (best_effort_job, BEST_EFFORT, 1, NO_TRACE, "4.4"),
        (lambda: job(1, 8), MODEL, 1, NO_TRACE, "7.4"),
        (lambda: job(1, 8), MODEL, 0, NO_TRACE, "4.4"),
        (lambda: job(1, 8), MODEL, 0, TRACE, "4.4"),
    ],
    ids=[
        "best effort with a trace",
        "best effort with steps",
        "replayable without a trace",
        "replayable as if best effort",
        "replayable without steps",
    ],
)
def test_a_client_stops_paying_for(
    work: Callable[[], Job], model: ModelOffer, steps: int, root: Digest, clause: str
) -> None:
    session = session_at(work(), model)
    with pytest.raises(ProtocolViolation) as caught:
        session.receive(first_canvas(session, model, steps, root))
    assert caught.value.clause == clause


@pytest.mark.parametrize(("steps", "traced"), [(0, 1), (1, 0), (1, 1)])
def test_a_worker_signs_no_best_effort_receipt_that_claims_more(steps: int, traced: int) -> None:
    work = best_effort_job()
    accepted = AcceptedJob(work.id(DOMAIN), work, channel(), BEST_EFFORT, PROMPT_TOKENS, NOW)
    session, book = WorkerSession(accepted, DOMAIN), WorkerLedger(work.channel)
    session.open(0, book)
    leaves = made_up_leaves(b"more than was promised", traced)
    result = CanvasResult(0, Digest(bytes(32)), leaves, steps, CANVAS, Finish.MORE, b"", b"")
    with pytest.raises(InvariantBroken):
        session.canvas_finished(result, book)


def test_the_root_that_means_no_trace_is_that_of_a_tree_without_leaves() -> None:
    assert merkle.root([]) == NO_TRACE
    assert bytes(NO_TRACE) == bytes(keccak256(b""))


@given(
    seed=st.integers(0, 2**64 - 1),
    others=st.tuples(*[st.integers(0, 2**32 - 1)] * 6),
    tokens=st.integers(0, 2**32 - 1),
)
def test_a_best_effort_job_sets_its_token_limit_and_nothing_else(
    seed: int, others: tuple[int, ...], tokens: int
) -> None:
    steps, start, end, bound, confidence, stability = others
    asked = Parameters(
        seed=Uint64(seed),
        max_tokens=Uint32(tokens),
        max_steps=Uint32(steps),
        temperature_start=Micros(start),
        temperature_end=Micros(end),
        entropy_bound=Micros(bound),
        confidence_threshold=Micros(confidence),
        stability_steps=Uint32(stability),
        service=Service.BEST_EFFORT,
    )
    assert (parameters_fault(asked) is None) == (seed == 0 and not any(others))
    assert parameters_fault(asked.replace(service=Service.REPLAYABLE)) is None


@given(steps=st.integers(0, 2**32 - 1), traced=st.booleans(), limit=st.integers(0, 2**32 - 1))
def test_no_receipt_is_in_order_for_both_classes(steps: int, traced: bool, limit: int) -> None:
    replayable = job(1, 8).parameters.replace(max_steps=Uint32(limit))
    receipt = Receipt(
        job=best_effort_job().id(DOMAIN),
        canvas=Uint32(0),
        output_digest=Digest(bytes(32)),
        trace_root=TRACE if traced else NO_TRACE,
        steps=Uint32(steps),
        units=Uint32(1),
        amount=Amount(1),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(1),
        total_units=Uint32(1),
        total_steps=Uint32(steps),
        total_amount=Amount(1),
        previous=Digest(bytes(32)),
    )
    good = [
        p
        for p in (replayable, best_effort_parameters(Uint32(8)))
        if receipt_fault(p, receipt) is None
    ]
    assert len(good) <= 1
    assert (replayable in good) == (traced and 1 <= steps <= limit)


@pytest.mark.parametrize(
    "changes",
    [{"max_steps": Uint32(1)}, {"price_per_thousand_steps": Amount(1)}],
    ids=["steps", "a price"],
)
def test_an_offer_of_best_effort_with_denoising_steps_is_not_believed(
    changes: dict[str, Any],
) -> None:
    model = BEST_EFFORT.replace(**changes)
    assert offer_fault(model)
    signed = offers.offer(models=(model,))
    with pytest.raises(OfferRejected) as caught:
        check_terms(signed.offer, signed.offer.issued_at)
    assert caught.value.fault is OfferFault.BAD_TERMS


def test_an_offer_may_hold_models_of_both_classes() -> None:
    other = BEST_EFFORT.replace(digest=Digest(keccak256(b"other")))
    signed = offers.offer(models=(MODEL, other))
    check_terms(signed.offer, signed.offer.issued_at)
    assert decode_offer(encode_offer(signed)) == signed


def test_a_class_that_nobody_has_defined_makes_an_offer_malformed() -> None:
    signed: SignedOffer = offers.offer()
    message = pb.SignedOffer.FromString(encode_offer(signed))
    message.offer.models[0].service = 2
    with pytest.raises(MalformedInput):
        decode_offer(message.SerializeToString())
