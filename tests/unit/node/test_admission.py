"""Every reason for which a job is turned away, one changed fact at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from piecework_model.requests import EncodedContent
from piecework_node.jobs.admission import (
    MAX_UNVETTED_BYTES,
    AdmissionView,
    ChannelView,
    Served,
    admit,
    check_return,
)
from piecework_node.jobs.offers import build_offer
from piecework_node.journal.records import StoredChannel
from piecework_node.runtime.faults import Code, Fault
from piecework_node.runtime.live import LiveChannel, LiveJob
from piecework_protocol.credit import PayerCredit, PayerStanding
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import FundingAuthorization, LeafRef, SubmitJob
from piecework_protocol.ledger import Unpaid, WorkerLedger
from piecework_protocol.objects import Channel, FundChannel, Job, Kind, Service
from piecework_protocol.pricing import Usage, price, worst_case
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    JobId,
    PayerSignature,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
    keccak256,
)
from piecework_protocol.worker_session import WorkerSession
from tests.support.node.fake_engine import CANVAS, FACTS
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    RECEIVER,
    TERMS,
    TOKEN,
    address_with,
    entry,
    parameters,
)

NOW = Timestamp(1_700_000_000)
PAYER = LocalSigner(bytes(keccak256(b"payer")))
OFFER = build_offer(
    TERMS,
    (entry(),),
    address_with(PublicKey(bytes(32))),
    operator=OPERATOR.address,
    sequence=1,
    now=NOW,
)
BEST_EFFORT_MODEL = OFFER.models[0].replace(
    service=Service.BEST_EFFORT, max_steps=Uint32(0), price_per_thousand_steps=Amount(0)
)
CHANNEL = Channel(
    payer=PAYER.address,
    authorizer=PAYER.address,
    receiver=RECEIVER,
    operator=OPERATOR.address,
    token=TOKEN,
    withdrawal_delay=Seconds(3600),
    salt=Bytes32(bytes(32)),
)
PROMPT_TOKENS = 10


@dataclass(frozen=True)
class AdmissionCase:
    """A submission with everything that admission looks at."""

    job: Job
    channel: Channel
    signer: LocalSigner
    view: AdmissionView
    book: ChannelView
    received: int = 0
    prompt_tokens: int = PROMPT_TOKENS

    @property
    def submission(self) -> SubmitJob:
        return SubmitJob(
            self.job, sign(DOMAIN, self.job, self.signer), self.channel, b"", received=self.received
        )


def account(standing: PayerStanding = PayerStanding.FINAL, **amounts: int) -> PayerCredit:
    """Where a payer stands that owes nothing and may owe much."""
    values = {"owed": 0, "limit": 10**9, "unpromised": 0, "unpromised_limit": 10**9}
    known = {name: Amount(value) for name, value in (values | amounts).items()}
    return PayerCredit(standing, **known, on_openings=Amount(0))


def good() -> AdmissionCase:
    job = Job(
        channel=CHANNEL.id(DOMAIN),
        salt=Bytes32(bytes(32)),
        offer=Digest(DOMAIN.digest(OFFER)),
        entry=Uint32(0),
        model=FACTS.digest,
        kind=Kind.TEXT,
        content=Digest(bytes(32)),
        parameters=parameters(1, 40),
        max_amount=Amount(10**6),
        deadline=Timestamp(NOW + 600),
        reply_key=PublicKey(bytes(32)),
    )
    view = AdmissionView(
        now=NOW,
        domain=DOMAIN,
        operator=OPERATOR.address,
        terms=TERMS,
        offer=OFFER,
        served=Served(FACTS.service, FACTS.kinds),
        active=0,
        capacity=TERMS.capacity,
        engine_ready=True,
        draining=False,
    )
    book = ChannelView(
        ledger=WorkerLedger(CHANNEL.id(DOMAIN)),
        state=ChannelState.OPEN,
        deposit=Amount(10**6),
        fresh=True,
        funding=None,
        pooled=Amount(0),
        reserved=Amount(0),
        attached=0,
        payer=account(),
        strangers_owe=Amount(0),
        stranger_jobs=0,
        stray_unpaid=False,
        closing=False,
    )
    return AdmissionCase(job, CHANNEL, PAYER, view, book)


def job(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    return lambda c: replace(c, job=c.job.replace(**changes))


def view(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    return lambda c: replace(c, view=replace(c.view, **changes))


def book(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    return lambda c: replace(c, book=replace(c.book, **changes))


def channel(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    def change(c: AdmissionCase) -> AdmissionCase:
        altered = c.channel.replace(**changes)
        return replace(c, channel=altered, job=c.job.replace(channel=altered.id(DOMAIN)))

    return change


def parameter(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    return lambda c: replace(c, job=c.job.replace(parameters=c.job.parameters.replace(**changes)))


def funding(
    deposit: int, *, signer: LocalSigner = PAYER, lifetime_s: int = 3600, of: Channel = CHANNEL
) -> FundingAuthorization:
    authorization = FundChannel(of, Amount(deposit), Amount(0), Timestamp(NOW + lifetime_s))
    signature = PayerSignature(sign(DOMAIN, authorization, signer))
    return FundingAuthorization(authorization, signature)


def content(prompt_tokens: int) -> EncodedContent:
    """What a prompt of so many tokens is for the engine."""
    return EncodedContent((1,) * prompt_tokens)


def best_effort(**changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    return lambda c: replace(
        c, job=c.job.replace(parameters=best_effort_parameters(Uint32(40)).replace(**changes))
    )


def served_at_best_effort(c: AdmissionCase) -> AdmissionCase:
    """The same worker over an engine that honours no seed."""
    offer = OFFER.replace(models=(BEST_EFFORT_MODEL,))
    seen = replace(c.view, offer=offer, served=Served(Service.BEST_EFFORT, FACTS.kinds))
    return replace(c, view=seen, job=c.job.replace(offer=Digest(DOMAIN.digest(offer))))


STRANGER = LocalSigner(bytes(keccak256(b"stranger")))
NONE = {"state": ChannelState.NONE, "deposit": Amount(0)}
REFUSALS: list[tuple[str, Callable[[AdmissionCase], AdmissionCase], Reason]] = [
    ("a job for another channel", job(channel=bytes(32)), Reason.WRONG_CHAIN),
    ("another operator", channel(operator=Address(bytes(20))), Reason.WRONG_WORKER),
    ("another receiver", channel(receiver=Address(bytes(20))), Reason.WRONG_WORKER),
    ("another signer", lambda c: replace(c, signer=STRANGER), Reason.BAD_SIGNATURE),
    ("draining", view(draining=True), Reason.DRAINING),
    ("a fault", view(fault=Fault(Code.CLOCK_AHEAD, "set it")), Reason.CHAIN_UNAVAILABLE),
    ("no engine", view(engine_ready=False), Reason.ENGINE_UNAVAILABLE),
    ("receipts nobody issued", lambda c: replace(c, received=1), Reason.JOB_ENDED),
    ("an offer nobody made", view(offer=None), Reason.UNKNOWN_OFFER),
    ("an expired offer", view(now=Timestamp(OFFER.expires_at + 6)), Reason.UNKNOWN_OFFER),
    ("a model that is not offered", job(model=Digest(bytes(32))), Reason.UNKNOWN_MODEL),
    ("a model that is not loaded", view(served=None), Reason.UNKNOWN_MODEL),
    ("a best-effort job", best_effort(), Reason.WRONG_SERVICE),
    (
        "a model that has come to be served at best effort",
        view(served=Served(Service.BEST_EFFORT, FACTS.kinds)),
        Reason.WRONG_SERVICE,
    ),
    ("no tokens", parameter(max_tokens=0), Reason.BAD_PARAMETERS),
    ("too many tokens", parameter(max_tokens=FACTS.max_context + 1), Reason.BAD_PARAMETERS),
    ("no steps", parameter(max_steps=0), Reason.BAD_PARAMETERS),
    ("too many steps", parameter(max_steps=FACTS.max_steps + 1), Reason.BAD_PARAMETERS),
    ("temperature zero", parameter(temperature_end=0), Reason.BAD_PARAMETERS),
    ("a rising temperature", parameter(temperature_start=300_000), Reason.BAD_PARAMETERS),
    ("endless stability", parameter(stability_steps=65), Reason.BAD_PARAMETERS),
    ("another token", channel(token=Address(bytes(20))), Reason.TOKEN_NOT_ACCEPTED),
    ("a short withdrawal delay", channel(withdrawal_delay=899), Reason.WITHDRAWAL_DELAY_TOO_SHORT),
    ("a deadline that passed", job(deadline=NOW), Reason.EXPIRED),
    ("a deadline days ahead", job(deadline=NOW + 2 * 86400), Reason.BAD_PARAMETERS),
    ("no free slot", view(active=TERMS.capacity), Reason.BUSY),
    ("no room to wait", view(unvetted_bytes=MAX_UNVETTED_BYTES + 1), Reason.BUSY),
    ("a silent chain", book(fresh=False), Reason.CHAIN_UNAVAILABLE),
    ("a closed channel", book(state=ChannelState.CLOSED), Reason.CHANNEL_CLOSED),
    ("an agreed closing", book(closing=True), Reason.CHANNEL_CLOSED),
    ("a withdrawal", book(state=ChannelState.WITHDRAWING), Reason.CHANNEL_WITHDRAWING),
    ("no such channel", book(**NONE), Reason.CHANNEL_UNKNOWN),
    (
        "an authorization by a stranger",
        book(**NONE, funding=funding(10**6, signer=STRANGER), pooled=10**6),
        Reason.BAD_SIGNATURE,
    ),
    (
        "an authorization for another channel",
        book(
            **NONE, funding=funding(10**6, of=CHANNEL.replace(salt=bytes([1]) * 32)), pooled=10**6
        ),
        Reason.BAD_SIGNATURE,
    ),
    (
        "an authorization that is about to expire",
        book(**NONE, funding=funding(10**6, lifetime_s=59), pooled=10**6),
        Reason.EXPIRED,
    ),
    (
        "an authorization without cover",
        book(**NONE, funding=funding(10**6), pooled=10**6 - 1),
        Reason.UNDERFUNDED,
    ),
    (
        "a payer that owes all that it may",
        book(payer=account(PayerStanding.MINED, owed=100, limit=100)),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "a payer that has promised to pay too little",
        book(payer=account(unpromised=100, unpromised_limit=100)),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "a payer that has fallen and opens a channel",
        book(
            **NONE,
            funding=funding(10**6),
            pooled=10**6,
            payer=account(PayerStanding.FALLEN, limit=0, unpromised_limit=0),
        ),
        Reason.FUND_YOURSELF,
    ),
    (
        "a payer that has fallen and has opened a channel",
        book(payer=account(PayerStanding.FALLEN, limit=0, unpromised_limit=0)),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "strangers that owe all that they may",
        book(
            payer=account(PayerStanding.SIMULATED),
            strangers_owe=TERMS.credit.strangers,
        ),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "strangers that have half of the places",
        book(
            payer=account(PayerStanding.SIMULATED),
            stranger_jobs=TERMS.capacity // 2,
        ),
        Reason.CREDIT_EXHAUSTED,
    ),
    ("a channel that pays the token", channel(receiver=TOKEN), Reason.WRONG_WORKER),
    ("a channel with no authorizer", channel(authorizer=Address(bytes(20))), Reason.BAD_SIGNATURE),
    ("a channel with no payer", channel(payer=Address(bytes(20))), Reason.BAD_PARAMETERS),
    ("a deposit below the least", book(deposit=Amount(TERMS.min_deposit - 1)), Reason.UNDERFUNDED),
    ("stray unpaid canvases", book(stray_unpaid=True), Reason.UNPAID_RECEIPTS),
    ("too many jobs on the channel", book(attached=TERMS.jobs_per_channel), Reason.BUSY),
    (
        "a prompt beyond the context",
        lambda c: replace(c, prompt_tokens=4090),
        Reason.PROMPT_TOO_LONG,
    ),
    ("a ceiling below the worst case", job(max_amount=Amount(1)), Reason.PRICE_TOO_LOW),
    ("a deposit that others have reserved", book(reserved=Amount(10**6)), Reason.UNDERFUNDED),
]


@pytest.mark.parametrize(
    ("change", "reason"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_a_job_is_refused_for(
    change: Callable[[AdmissionCase], AdmissionCase], reason: Reason
) -> None:
    case = change(good())
    with pytest.raises(Refusal) as caught:
        admit(case.submission, case.view, case.book, content(case.prompt_tokens))
    assert caught.value.reason is reason


def test_a_good_job_is_admitted_with_the_terms_of_its_offer() -> None:
    case = good()
    accepted = admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    assert accepted.id == case.job.id(DOMAIN)
    assert (accepted.model, accepted.prompt_tokens) == (OFFER.models[0], PROMPT_TOKENS)
    assert accepted.accepted_at == NOW


def test_a_live_job_reserves_its_worst_case() -> None:
    case = good()
    accepted = admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    live = LiveChannel(StoredChannel(CHANNEL.id(DOMAIN), CHANNEL, case.book.ledger))
    job = LiveJob(WorkerSession(accepted, DOMAIN), live)
    assert job.reserve == worst_case(OFFER.models[0], Kind.TEXT, case.job.parameters, PROMPT_TOKENS)
    live.jobs[job.id] = job
    assert live.committed == live.reserved == job.reserve
    assert live.is_overcommitted


def test_the_ceiling_and_the_deposit_may_be_exactly_the_worst_case() -> None:
    worst = worst_case(OFFER.models[0], Kind.TEXT, good().job.parameters, PROMPT_TOKENS)
    terms = replace(TERMS, min_deposit=Amount(0))
    exact = view(terms=terms)(book(deposit=worst)(job(max_amount=worst)(good())))
    assert admit(exact.submission, exact.view, exact.book, content(PROMPT_TOKENS))
    short = book(deposit=Amount(worst - 1))(exact)
    with pytest.raises(Refusal):
        admit(short.submission, short.view, short.book, content(PROMPT_TOKENS))


def test_unpaid_canvases_of_jobs_that_are_here_count_against_the_deposit() -> None:
    case = good()
    owed = {LeafRef(JobId(bytes(32)), 0): Unpaid(Digest(bytes(32)), Amount(10**6))}
    case = book(ledger=replace(case.book.ledger, unpaid=owed))(case)
    with pytest.raises(Refusal) as caught:
        admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    assert caught.value.reason is Reason.UNDERFUNDED


def test_an_offer_holds_for_the_clock_skew_that_honest_machines_have() -> None:
    case = view(now=Timestamp(OFFER.expires_at + 5))(job(deadline=OFFER.expires_at + 60)(good()))
    assert admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))


def test_a_returning_job_needs_no_offer_any_more() -> None:
    case = view(offer=None)(good())
    check_return(case.submission, case.view)
    with pytest.raises(Refusal):
        check_return(case.submission, replace(case.view, draining=True))


def test_output_fills_whole_canvases_when_the_context_is_measured() -> None:
    room = FACTS.max_context - 5 * CANVAS
    fits = replace(good(), prompt_tokens=room)
    assert admit(fits.submission, fits.view, fits.book, content(fits.prompt_tokens))
    with pytest.raises(Refusal) as caught:
        admit(fits.submission, fits.view, fits.book, content(room + 1))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG


def test_a_best_effort_job_is_let_in_and_reserves_its_tokens_alone() -> None:
    case = best_effort()(served_at_best_effort(good()))
    accepted = admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    worst = worst_case(accepted.model, Kind.TEXT, case.job.parameters, PROMPT_TOKENS)
    assert worst == price(BEST_EFFORT_MODEL, Usage(PROMPT_TOKENS, 40, 0))


def test_a_job_that_asks_for_a_seed_and_a_trace_is_refused_at_best_effort() -> None:
    case = served_at_best_effort(good())
    with pytest.raises(Refusal) as caught:
        admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    assert caught.value.reason is Reason.WRONG_SERVICE
    assert "it honours no seed and makes no trace" in caught.value.message


@pytest.mark.parametrize(
    "asked",
    [
        {"seed": 1},
        {"max_steps": 1},
        {"temperature_start": 1},
        {"temperature_end": 1},
        {"entropy_bound": 1},
        {"confidence_threshold": 1},
        {"stability_steps": 1},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_a_best_effort_job_cannot_set(asked: dict[str, int]) -> None:
    case = best_effort(**asked)(served_at_best_effort(good()))
    with pytest.raises(Refusal) as caught:
        admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))
    assert caught.value.reason is Reason.BAD_PARAMETERS


def test_a_returning_job_keeps_the_class_that_it_was_let_in_on() -> None:
    case = view(served=Served(Service.BEST_EFFORT, FACTS.kinds))(good())
    with pytest.raises(Refusal) as caught:
        check_return(case.submission, case.view)
    assert caught.value.reason is Reason.WRONG_SERVICE
