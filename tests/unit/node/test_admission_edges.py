"""Admission at its bounds: the last value that is let in, the first one that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from piecework_model import limits as model_limits
from piecework_node.jobs.admission import (
    MAX_UNVETTED_BYTES,
    MIN_FUNDING_LIFETIME_S,
    Served,
    admit,
    backing,
    check_identity,
    check_return,
    check_taking_jobs,
    check_terms,
    most_prompt,
    parameter_defect,
)
from piecework_protocol.credit import PayerCredit, PayerStanding, ceiling
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.limits import (
    MAX_CANVASES_PER_JOB,
    MAX_CLOCK_SKEW_S,
    MAX_DENOISING_STEPS,
    MAX_JOB_LIFETIME_S,
)
from piecework_protocol.objects import Kind, Service
from piecework_protocol.pricing import worst_case
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, Digest, JobId, PayerSignature, Seconds, Uint32
from piecework_protocol.worker_session import AcceptedJob
from tests.support.node.harness import DOMAIN, TERMS, parameters
from tests.unit.node.test_admission import (
    CHANNEL,
    NOW,
    OFFER,
    PROMPT_TOKENS,
    STRANGER,
    AdmissionCase,
    account,
    book,
    channel,
    content,
    funding,
    good,
    job,
    view,
)

WORST = worst_case(OFFER.models[0], Kind.TEXT, good().job.parameters, PROMPT_TOKENS)
LATEST = NOW + MAX_JOB_LIFETIME_S + MAX_CLOCK_SKEW_S
DELAY = TERMS.min_withdrawal_delay
FIRST = ceiling(OFFER.models[0], good().job, PROMPT_TOKENS, None, 1)
UNOPENED: dict[str, Any] = {"state": ChannelState.NONE, "deposit": Amount(0)}


def verdict(case: AdmissionCase) -> AcceptedJob | Reason:
    try:
        return admit(case.submission, case.view, case.book, content(case.prompt_tokens))
    except Refusal as refusal:
        return refusal.reason


def authorized(total: int, **changes: Any) -> Callable[[AdmissionCase], AdmissionCase]:
    lifetime = changes.pop("lifetime_s", 3600)
    return book(funding=funding(total, lifetime_s=lifetime), pooled=Amount(total), **changes)


def strangers(
    present: int, places: int, payer: PayerCredit | None = None
) -> Callable[[AdmissionCase], AdmissionCase]:
    """A stranger, or another payer, beside so many jobs of strangers."""
    who = payer or account(PayerStanding.SIMULATED)
    return lambda c: book(payer=who, stranger_jobs=present)(view(capacity=places)(c))


BOUNDS: list[
    tuple[
        str,
        Callable[[AdmissionCase], AdmissionCase],
        Callable[[AdmissionCase], AdmissionCase],
        Reason,
    ]
] = [
    (
        "the latest deadline",
        job(deadline=LATEST),
        job(deadline=LATEST + 1),
        Reason.BAD_PARAMETERS,
    ),
    (
        "the shortest withdrawal delay",
        channel(withdrawal_delay=DELAY),
        channel(withdrawal_delay=Seconds(DELAY - 1)),
        Reason.WITHDRAWAL_DELAY_TOO_SHORT,
    ),
    (
        "a ceiling of the worst case",
        job(max_amount=WORST),
        job(max_amount=Amount(WORST - 1)),
        Reason.PRICE_TOO_LOW,
    ),
    (
        "the smallest deposit",
        authorized(TERMS.min_deposit, **UNOPENED),
        authorized(TERMS.min_deposit - 1, **UNOPENED),
        Reason.UNDERFUNDED,
    ),
    (
        "a deposit that just covers the job",
        book(deposit=Amount(10_000), reserved=Amount(10_000 - WORST)),
        book(deposit=Amount(10_000), reserved=Amount(10_001 - WORST)),
        Reason.UNDERFUNDED,
    ),
    (
        "a pooled balance that just covers the raise",
        book(deposit=Amount(10_000), pooled=Amount(5_000), funding=funding(15_000)),
        book(deposit=Amount(10_000), pooled=Amount(4_999), funding=funding(15_000)),
        Reason.UNDERFUNDED,
    ),
    (
        "an authorization that lives just long enough",
        authorized(10**6, lifetime_s=MIN_FUNDING_LIFETIME_S, **UNOPENED),
        authorized(10**6, lifetime_s=MIN_FUNDING_LIFETIME_S - 1, **UNOPENED),
        Reason.EXPIRED,
    ),
    (
        "the last place of strangers",
        strangers(present=3, places=8),
        strangers(present=4, places=8),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "the only place of strangers, of an odd number",
        strangers(present=0, places=3),
        strangers(present=1, places=3),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "a stranger on the only place",
        strangers(present=0, places=1),
        strangers(present=1, places=1),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "payers with a deposit, who do not share the places of strangers",
        strangers(present=4, places=8, payer=account()),
        strangers(present=4, places=8),
        Reason.CREDIT_EXHAUSTED,
    ),
    (
        "the credit of a first canvas",
        book(payer=account(PayerStanding.MINED, limit=FIRST)),
        book(payer=account(PayerStanding.MINED, limit=FIRST - 1)),
        Reason.CREDIT_EXHAUSTED,
    ),
]


@pytest.mark.parametrize(("name", "within", "beyond", "reason"), BOUNDS, ids=[b[0] for b in BOUNDS])
def test_the_bound_itself_is_let_in_and_the_next_value_is_not(
    name: str,
    within: Callable[[AdmissionCase], AdmissionCase],
    beyond: Callable[[AdmissionCase], AdmissionCase],
    reason: Reason,
) -> None:
    assert isinstance(verdict(within(good())), AcceptedJob), name
    assert verdict(beyond(good())) is reason


def test_an_authorization_for_what_is_on_chain_already_is_not_looked_at() -> None:
    """It may be anybody's, expired, and without a balance behind it."""
    stale = funding(10**6, signer=STRANGER, lifetime_s=0)
    case = book(deposit=Amount(10**6), funding=stale, pooled=Amount(0))(good())
    assert isinstance(verdict(case), AcceptedJob)


def test_an_authorization_may_be_signed_by_a_smart_account_that_says_so() -> None:
    odd = replace(funding(10**6), signature=PayerSignature(bytes(200)))
    case = book(**UNOPENED, funding=odd, pooled=Amount(10**6))(good())
    assert verdict(case) is Reason.BAD_SIGNATURE
    assert isinstance(verdict(book(account_signed=True)(case)), AcceptedJob)
    other = funding(10**6, of=CHANNEL.replace(salt=bytes([1]) * 32))
    foreign = book(funding=other, account_signed=True)(case)
    assert verdict(foreign) is Reason.BAD_SIGNATURE


def test_what_the_payer_took_back_backs_nothing() -> None:
    """An authorization raises what was ever put in. Vouchers draw on what is left of it."""
    taken = {"deposit": Amount(4_000), "withdrawn": Amount(6_000)}
    assert backing(book(**taken)(good()).book) == 4_000
    old = book(**taken, funding=funding(10_000, signer=STRANGER))(good())
    assert backing(old.book) == 4_000
    more = book(**taken, funding=funding(30_000), pooled=Amount(20_000))(good())
    assert backing(more.book) == 24_000
    assert isinstance(verdict(more), AcceptedJob)
    assert verdict(book(pooled=Amount(19_999))(more)) is Reason.UNDERFUNDED


def test_the_fee_of_an_authorization_comes_out_of_the_same_pool() -> None:
    signed = funding(10**6)
    dear = signed.authorization.replace(fee=Amount(500))
    case = book(
        **UNOPENED,
        funding=replace(signed, authorization=dear),
        account_signed=True,
        pooled=Amount(10**6 + 499),
    )(good())
    assert verdict(case) is Reason.UNDERFUNDED
    assert isinstance(verdict(book(pooled=Amount(10**6 + 500))(case)), AcceptedJob)


def test_what_is_accepted_is_what_was_signed() -> None:
    case = good()
    accepted = verdict(case)
    assert isinstance(accepted, AcceptedJob)
    assert accepted.job == case.job
    assert accepted.channel == case.channel
    assert accepted.id == JobId(DOMAIN.digest(case.job))
    assert accepted.prompt_tokens == PROMPT_TOKENS
    assert accepted.accepted_at == NOW


def test_a_channel_without_deposit_and_authorization_is_backed_by_nothing() -> None:
    assert backing(book(deposit=Amount(0))(good()).book) == 0


@pytest.mark.parametrize(
    "change",
    [job(channel=bytes(32)), channel(operator=bytes(20)), lambda c: replace(c, signer=STRANGER)],
    ids=["chain", "worker", "signer"],
)
def test_identity_alone_is_checked_without_any_terms(
    change: Callable[[AdmissionCase], AdmissionCase],
) -> None:
    case = replace(good(), view=replace(good().view, draining=True, offer=None))
    check_identity(case.submission, case.view)
    with pytest.raises(Refusal):
        check_identity(change(case).submission, case.view)


UINT32 = 2**32 - 1
MODEL = OFFER.models[0]
RANGES: list[tuple[str, int, int]] = [
    ("max_tokens", 1, MODEL.max_output),
    ("max_steps", 1, MODEL.max_steps),
    ("temperature_end", round(model_limits.MIN_TEMPERATURE * 10**6), 400_000),
    ("temperature_start", 400_000, round(model_limits.MAX_TEMPERATURE * 10**6)),
    ("entropy_bound", 0, min(UINT32, round(model_limits.MAX_ENTROPY_BOUND_NATS * 10**6))),
    (
        "confidence_threshold",
        0,
        round(model_limits.MAX_CONFIDENCE_THRESHOLD_NATS * 10**6),
    ),
    ("stability_steps", 0, model_limits.MAX_STABILITY_STEPS),
]


@pytest.mark.parametrize(("name", "low", "high"), RANGES, ids=[r[0] for r in RANGES])
def test_every_parameter_has_its_bounds_and_the_defect_names_it(
    name: str, low: int, high: int
) -> None:
    base = parameters(1, 40).replace(temperature_start=400_000, temperature_end=400_000)
    for value in (low, high):
        assert parameter_defect(Kind.TEXT, base.replace(**{name: value}), MODEL) is None, value
    for value in (low - 1, high + 1):
        if not 0 <= value <= UINT32:
            continue  # no signed job can say that
        defect = parameter_defect(Kind.TEXT, base.replace(**{name: value}), MODEL)
        assert defect is not None and defect.split()[0] in {name, "temperature_start"}, value
        assert f"{value}" in defect or name == "temperature_end"


def test_a_model_of_small_canvases_is_bounded_by_the_canvases_of_a_job() -> None:
    tiny = MODEL.replace(canvas_size=Uint32(1), max_output=Uint32(2 * MAX_CANVASES_PER_JOB))
    most = parameters(1, MAX_CANVASES_PER_JOB)
    assert parameter_defect(Kind.TEXT, most, tiny) is None
    assert parameter_defect(Kind.TEXT, most.replace(max_tokens=MAX_CANVASES_PER_JOB + 1), tiny)
    wide = MODEL.replace(canvas_size=Uint32(4), max_output=Uint32(2**31))
    assert parameter_defect(Kind.TEXT, parameters(1, 4 * MAX_CANVASES_PER_JOB), wide) is None
    assert parameter_defect(Kind.TEXT, parameters(1, 4 * MAX_CANVASES_PER_JOB + 1), wide)


def test_no_model_takes_more_steps_than_the_protocol_allows() -> None:
    eager = MODEL.replace(max_steps=Uint32(MAX_DENOISING_STEPS + 5))
    job_of = parameters(1, 40)
    assert parameter_defect(Kind.TEXT, job_of.replace(max_steps=MAX_DENOISING_STEPS), eager) is None
    assert parameter_defect(Kind.TEXT, job_of.replace(max_steps=MAX_DENOISING_STEPS + 1), eager)


def test_a_wrong_class_of_service_says_which_one_is_served() -> None:
    case = replace(
        good(),
        view=replace(good().view, served=Served(Service.BEST_EFFORT, (Kind.TEXT,))),
    )
    with pytest.raises(Refusal, match="this model is served at best effort: it honours no seed"):
        admit(case.submission, case.view, case.book, content(PROMPT_TOKENS))


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (job(max_amount=WORST), Reason.PRICE_TOO_LOW),
        (book(deposit=Amount(5_000)), Reason.UNDERFUNDED),
    ],
)
def test_the_longest_prompt_that_can_be_paid_for_is_found(
    case: Callable[[AdmissionCase], AdmissionCase], fault: Reason
) -> None:
    held = case(good())
    most = most_prompt(held.submission, held.view, held.book, 0, 100_000)
    assert PROMPT_TOKENS <= most < 100_000
    assert isinstance(verdict(replace(held, prompt_tokens=most)), AcceptedJob)
    assert verdict(replace(held, prompt_tokens=most + 1)) is fault
    with pytest.raises(Refusal) as caught:
        most_prompt(held.submission, held.view, held.book, most + 1, 100_000)
    assert caught.value.reason is fault


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [(0, True), (1, True), (MAX_UNVETTED_BYTES - 1000, True), (MAX_UNVETTED_BYTES - 999, False)],
)
def test_contents_that_wait_for_the_chains_node_have_room_up_to_the_bound(
    waiting: int, taken: bool
) -> None:
    submission = replace(good().submission, sealed_content=bytes(1000))
    seen = replace(good().view, unvetted_bytes=waiting)
    if taken:
        check_terms(submission, seen)
        return
    with pytest.raises(Refusal) as caught:
        check_terms(submission, seen)
    assert caught.value.reason is Reason.BUSY


def test_the_first_content_is_taken_however_long_it_is() -> None:
    long = replace(good().submission, sealed_content=bytes(MAX_UNVETTED_BYTES + 1))
    check_terms(long, good().view)


def test_a_template_may_need_all_the_tokens_that_the_job_allows() -> None:
    case = good()
    most = int(case.job.parameters.max_tokens)
    fits = replace(content(PROMPT_TOKENS), positions=most)
    assert admit(case.submission, case.view, case.book, fits)
    with pytest.raises(Refusal, match=f"the template needs {most + 1}"):
        admit(case.submission, case.view, case.book, replace(fits, positions=most + 1))


def test_a_kind_that_is_not_offered_is_refused_by_name() -> None:
    """The offer and what is loaded are asked, each by itself."""
    text_alone = OFFER.models[0].replace(kinds=Kind.TEXT.bit)
    offer = OFFER.replace(models=(text_alone,))
    read = job(kind=Kind.READ, offer=Digest(DOMAIN.digest(offer)))(view(offer=offer)(good()))
    loads_text = view(served=Served(Service.REPLAYABLE, (Kind.TEXT,)))
    loaded = job(kind=Kind.READ)(loads_text(good()))
    for case, check in ((read, check_terms), (loaded, check_return)):
        with pytest.raises(Refusal, match="takes no jobs of kind read here") as caught:
            check(case.submission, case.view)
        assert caught.value.reason is Reason.WRONG_KIND


def test_what_stops_all_jobs_is_asked_by_itself() -> None:
    case = good()
    check_taking_jobs(case.submission, case.view)
    with pytest.raises(Refusal) as caught:
        check_taking_jobs(case.submission, replace(case.view, engine_ready=False))
    assert caught.value.reason is Reason.ENGINE_UNAVAILABLE


def test_what_was_taken_back_counts_as_put_in_when_an_authorization_is_old() -> None:
    """Of 10,000 put in, 4,000 were taken back. An authorization of 10,000 adds nothing."""
    old = funding(10_000, signer=STRANGER, lifetime_s=0)
    case = book(deposit=Amount(6_000), withdrawn=Amount(4_000), funding=old)(good())
    assert isinstance(verdict(case), AcceptedJob)
    raised = book(funding=funding(10_001, signer=STRANGER))(case)
    assert verdict(raised) is Reason.BAD_SIGNATURE
