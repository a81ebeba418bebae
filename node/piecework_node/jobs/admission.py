"""Decide which jobs are admitted (clauses 3.1 to 3.5). Pure: it takes values and does no IO.

Admission runs in four stages. A cheap check spares a job that it refuses an RPC call or a
tokenization. `IDENTITY` and `TERMS` need only memory. `CHANNEL` needs the chain's word. The last
stage needs the length of the prompt. Size, rate and parsing are checked earlier, at the edge
(`job_port.server`, `piecework_protocol.wire`). The only exception that leaves this module is
`Refusal`.

Two rules protect both sides. The price ceiling must cover the worst case: every token and every
step that the parameters allow. The deposit must cover the same, after everything that other jobs
of the channel may still cost. A deposit that is authorized and not yet on chain carries one job,
within the canvases that may run ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from piecework_model import limits as model_limits
from piecework_model.requests import EncodedContent
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.runtime.faults import Fault
from piecework_node.runtime.pause import Pause
from piecework_node.runtime.requests import context_tokens
from piecework_protocol.credit import PayerCredit, PayerStanding, ceiling, start_fault
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import FundingAuthorization, SubmitJob
from piecework_protocol.kinds import KINDS
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.limits import (
    MAX_CANVASES_PER_JOB,
    MAX_CLOCK_SKEW_S,
    MAX_DENOISING_STEPS,
    MAX_JOB_LIFETIME_S,
)
from piecework_protocol.objects import Kind, ModelOffer, Offer, Parameters, Service
from piecework_protocol.pricing import worst_case
from piecework_protocol.service import parameters_fault
from piecework_protocol.signing import signed_by
from piecework_protocol.states import ChannelState
from piecework_protocol.types import ZERO_ADDRESS, Address, Amount, JobId, Timestamp
from piecework_protocol.worker_session import AcceptedJob

MAX_UNVETTED_BYTES: Final = 32 * 2**20
"""Of prompts that wait for the chain's word on their channels, together. Anybody can send them."""
MIN_FUNDING_LIFETIME_S: Final = 60
"""An authorization to fund must outlive the time that a transaction takes to be mined."""
BUSY_RETRY_S: Final = 2.0
PENDING_RETRY_S: Final = 5.0
CHAIN_RETRY_S: Final = 10.0
BLOCK_RETRY_S: Final = 12.0
"""After which another block may have changed a payer's standing."""


@dataclass(frozen=True, slots=True)
class Served:
    """What an entry's cards run: in which class of service, and which kinds of jobs."""

    service: Service
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """What the worker knows, apart from the channel."""

    now: Timestamp
    domain: Domain
    operator: Address
    terms: OperatorTerms
    offer: Offer | None
    """The offer that the job names, if this worker signed it."""
    served: Served | None
    """What cards run of the entry that the job names. None: none of them runs it."""
    active: int
    """Other jobs with a place on the cards of that entry: they run, wait, or are being admitted
    and the chain has vouched for their channels.
    """
    capacity: int
    """Jobs that may run or wait on these cards at once."""
    engine_ready: bool
    """Whether a job can be started on one of them."""
    draining: bool
    fault: Fault | None = None
    """Why no new work is taken on (wrong clock, wrong chain). None: all is well."""
    pause: Pause | None = None
    """Set while the owner needs all of these cards."""
    unvetted_bytes: int = 0
    """Prompts that wait for the chain's word on channels which this worker does not know. 0 for
    the jobs of a channel that it knows.
    """


@dataclass(frozen=True, slots=True)
class ChannelView:
    """What the worker knows of the job's channel."""

    ledger: WorkerLedger
    state: ChannelState
    deposit: Amount
    """On chain."""
    fresh: bool
    """Whether the chain's word is recent enough to rely on."""
    funding: FundingAuthorization | None
    """The best authorization: the submission's own, or one from the journal."""
    pooled: Amount
    """The payer's pooled balance, out of which an authorized deposit is taken."""
    reserved: Amount
    """What the channel's jobs that have not ended may still cost."""
    attached: int
    """Jobs with an open stream."""
    stray_unpaid: bool
    """Whether canvases are unpaid of jobs that have no open stream."""
    closing: bool
    payer: PayerCredit
    """Where the payer stands over all of its channels."""
    strangers_owe: Amount
    """What all payers without a mined deposit owe."""
    stranger_jobs: int
    """Jobs of theirs that run, wait or are being admitted, on the cards of the job's entry."""
    withdrawn: Amount = Amount(0)
    """What the payer took back in part. The deposit is without it."""
    account_signed: bool = False
    """Whether the payer's smart account says that it has signed the authorization."""


# --- identity


def _channel_hashes_here(s: SubmitJob, v: AdmissionView) -> None:
    if s.channel.id(v.domain) != s.job.channel:
        raise Refusal(Reason.WRONG_CHAIN, "the channel does not belong to this chain and escrow")


def _for_this_worker(s: SubmitJob, v: AdmissionView) -> None:
    if s.channel.operator != v.operator or s.channel.receiver != v.terms.receiver:
        raise Refusal(Reason.WRONG_WORKER, "the channel pays another worker")


def _signed_by_authorizer(s: SubmitJob, v: AdmissionView) -> None:
    if not signed_by(v.domain, s.job, s.signature, s.channel.authorizer):
        raise Refusal(Reason.BAD_SIGNATURE, "the job is not signed by the channel's authorizer")


# --- terms


def _not_paused(_: SubmitJob, v: AdmissionView) -> None:
    if v.pause is not None:
        raise Refusal(
            Reason.PAUSED,
            "the owner of this machine needs it",
            retry_after_s=v.pause.retry_after_s(v.now),
            metadata={"gives_up_at": str(v.pause.gives_up_at)},
        )


def _taking_jobs(_: SubmitJob, v: AdmissionView) -> None:
    if v.draining:
        raise Refusal(Reason.DRAINING, "the worker is shutting down", retry_after_s=CHAIN_RETRY_S)
    if v.fault is not None:
        raise Refusal(
            Reason.CHAIN_UNAVAILABLE,
            v.fault.public,
            retry_after_s=CHAIN_RETRY_S,
            metadata={"fault": v.fault.code.value},
        )
    if not v.engine_ready:
        raise Refusal(
            Reason.ENGINE_UNAVAILABLE, "the engine is starting", retry_after_s=PENDING_RETRY_S
        )


def _starts_at_the_beginning(s: SubmitJob, _: AdmissionView) -> None:
    if s.received != 0:
        raise Refusal(Reason.JOB_ENDED, "this worker has no record of that job")


def _offer_holds(s: SubmitJob, v: AdmissionView) -> None:
    if v.now > _offer(v).expires_at + MAX_CLOCK_SKEW_S:
        raise Refusal(Reason.UNKNOWN_OFFER, "the offer has expired. Ask for the current one")


def _model_served(s: SubmitJob, v: AdmissionView) -> None:
    _model(s, v)
    _model_loaded(s, v)


def _model_loaded(s: SubmitJob, v: AdmissionView) -> None:
    if v.served is None:
        message = "this worker no longer serves that model with that profile"
        raise Refusal(Reason.UNKNOWN_MODEL, message)
    _same_service(s.job.parameters, v.served.service)
    if s.job.kind not in v.served.kinds:
        raise _wrong_kind(s.job.kind)


def _kind_offered(s: SubmitJob, v: AdmissionView) -> None:
    if not _model(s, v).kinds & s.job.kind.bit:
        raise _wrong_kind(s.job.kind)


def _wrong_kind(kind: Kind) -> Refusal:
    return Refusal(Reason.WRONG_KIND, f"this model takes no jobs of kind {kind.name.lower()} here")


def _service_offered(s: SubmitJob, v: AdmissionView) -> None:
    _same_service(s.job.parameters, _model(s, v).service)
    fault = parameters_fault(s.job.parameters)
    if fault is not None:
        raise Refusal(Reason.BAD_PARAMETERS, fault)


def _same_service(parameters: Parameters, service: Service) -> None:
    if parameters.service is service:
        return
    if service is Service.BEST_EFFORT:
        message = "this model is served at best effort: it honours no seed and makes no trace"
    else:
        message = (
            "this model is served replayably: the job must say so and give its denoising parameters"
        )
    raise Refusal(Reason.WRONG_SERVICE, message)


def _parameters_in_bounds(s: SubmitJob, v: AdmissionView) -> None:
    model = _model(s, v)
    defect = parameter_defect(s.job.kind, s.job.parameters, model)
    if defect is not None:
        raise Refusal(Reason.BAD_PARAMETERS, defect)


def _token_accepted(s: SubmitJob, v: AdmissionView) -> None:
    if s.channel.token not in v.terms.tokens:
        raise Refusal(Reason.TOKEN_NOT_ACCEPTED, "this worker does not accept that token")


def _parties_fit(s: SubmitJob, v: AdmissionView) -> None:
    """Hold a channel to what the escrow refuses to open (its other bounds are ranges)."""
    c, escrow = s.channel, v.domain.verifying_contract
    if not (any(c.authorizer) and any(c.operator) and any(c.payer)):
        raise Refusal(Reason.BAD_PARAMETERS, "the escrow opens no channel with a zero address")
    if c.receiver in (ZERO_ADDRESS, escrow, c.token):
        raise Refusal(Reason.BAD_PARAMETERS, "the escrow opens no channel with that receiver")


def _delay_long_enough(s: SubmitJob, v: AdmissionView) -> None:
    if s.channel.withdrawal_delay < v.terms.min_withdrawal_delay:
        raise Refusal(
            Reason.WITHDRAWAL_DELAY_TOO_SHORT,
            f"the channel's withdrawal delay must be {v.terms.min_withdrawal_delay} s or longer",
        )


def _deadline_ahead(s: SubmitJob, v: AdmissionView) -> None:
    if s.job.deadline <= v.now:
        raise Refusal(Reason.EXPIRED, "the job's deadline has passed")
    if s.job.deadline > v.now + MAX_JOB_LIFETIME_S + MAX_CLOCK_SKEW_S:
        raise Refusal(
            Reason.BAD_PARAMETERS, f"a deadline may lie at most {MAX_JOB_LIFETIME_S} s ahead"
        )


def _room(_: SubmitJob, v: AdmissionView) -> None:
    if v.active >= v.capacity:
        raise Refusal(Reason.BUSY, "every slot and the queue are taken", retry_after_s=BUSY_RETRY_S)


def _room_to_wait(s: SubmitJob, v: AdmissionView) -> None:
    if v.unvetted_bytes and v.unvetted_bytes + len(s.sealed_content) > MAX_UNVETTED_BYTES:
        raise Refusal(
            Reason.BUSY, "too many jobs wait for the chain's node", retry_after_s=BUSY_RETRY_S
        )


# --- channel


def _chain_known(_s: SubmitJob, _v: AdmissionView, c: ChannelView) -> None:
    if not c.fresh:
        raise Refusal(
            Reason.CHAIN_UNAVAILABLE, "the chain does not answer", retry_after_s=CHAIN_RETRY_S
        )


def _channel_open(_s: SubmitJob, _v: AdmissionView, c: ChannelView) -> None:
    if c.closing or c.state is ChannelState.CLOSED:
        raise Refusal(Reason.CHANNEL_CLOSED, "the channel is closed. Open a new one")
    if c.state is ChannelState.WITHDRAWING:
        raise Refusal(
            Reason.CHANNEL_WITHDRAWING, "the payer has asked to withdraw the channel's deposit"
        )
    if c.state is ChannelState.NONE and c.funding is None:
        raise Refusal(
            Reason.CHANNEL_UNKNOWN,
            "the channel is not open, and the job carries no authorization to open it",
        )


def _funding_good(s: SubmitJob, v: AdmissionView, c: ChannelView) -> None:
    if c.funding is None or c.funding.authorization.funded <= c.deposit + c.withdrawn:
        return
    authorization = c.funding.authorization
    signed = c.account_signed or signed_by(
        v.domain, authorization, c.funding.signature, s.channel.payer
    )
    if authorization.channel != s.channel or not signed:
        raise Refusal(Reason.BAD_SIGNATURE, "the payer has not signed the funding authorization")
    if authorization.deadline < v.now + MIN_FUNDING_LIFETIME_S:
        raise Refusal(
            Reason.EXPIRED,
            f"a funding authorization is valid for {MIN_FUNDING_LIFETIME_S} s or longer",
        )
    if c.pooled < authorization.funded - c.withdrawn - c.deposit + authorization.fee:
        raise Refusal(
            Reason.UNDERFUNDED, "the payer's pooled balance does not cover the authorized deposit"
        )


def _deposit_worth_it(_s: SubmitJob, v: AdmissionView, c: ChannelView) -> None:
    if backing(c) < v.terms.min_deposit:
        raise Refusal(
            Reason.UNDERFUNDED,
            f"a channel's deposit must be {v.terms.min_deposit} base units or more",
        )


def _earlier_receipts_paid(_s: SubmitJob, _v: AdmissionView, c: ChannelView) -> None:
    if c.stray_unpaid:
        raise Refusal(
            Reason.UNPAID_RECEIPTS,
            "canvases of an earlier job are unpaid. Return to that job and pay for them",
        )


def _room_for_strangers(_s: SubmitJob, v: AdmissionView, c: ChannelView) -> None:
    if c.payer.is_stranger and c.stranger_jobs >= max(1, v.capacity // 2):
        raise Refusal(
            Reason.CREDIT_EXHAUSTED,
            "payers without a mined deposit have half of the places",
            retry_after_s=BLOCK_RETRY_S,
        )


def _room_on_channel(_s: SubmitJob, v: AdmissionView, c: ChannelView) -> None:
    if c.attached >= v.terms.jobs_per_channel:
        raise Refusal(
            Reason.BUSY, "the channel has too many jobs at once", retry_after_s=BUSY_RETRY_S
        )


IdentityCheck = Callable[[SubmitJob, AdmissionView], None]
ChannelCheck = Callable[[SubmitJob, AdmissionView, ChannelView], None]

IDENTITY: Final[tuple[IdentityCheck, ...]] = (
    _channel_hashes_here,
    _for_this_worker,
    _signed_by_authorizer,
)
TERMS: Final[tuple[IdentityCheck, ...]] = (
    _not_paused,
    _taking_jobs,
    _starts_at_the_beginning,
    _offer_holds,
    _model_served,
    _service_offered,
    _kind_offered,
    _parameters_in_bounds,
    _token_accepted,
    _parties_fit,
    _delay_long_enough,
    _deadline_ahead,
    _room,
    _room_to_wait,
)
CHANNEL: Final[tuple[ChannelCheck, ...]] = (
    _chain_known,
    _channel_open,
    _funding_good,
    _deposit_worth_it,
    _earlier_receipts_paid,
    _room_for_strangers,
    _room_on_channel,
)
RETURN: Final[tuple[IdentityCheck, ...]] = (_taking_jobs, _model_loaded, _deadline_ahead, _room)
"""What an admitted job must still meet to go on. Its terms stay those of its admission."""


def check_identity(s: SubmitJob, v: AdmissionView) -> None:
    """Check who asks, and whom."""
    for check in IDENTITY:
        check(s, v)


def check_terms(s: SubmitJob, v: AdmissionView) -> None:
    """Check whether the job could run here at all. It needs only memory."""
    for check in (*IDENTITY, *TERMS):
        check(s, v)


def check_channel(s: SubmitJob, v: AdmissionView, c: ChannelView) -> None:
    """Check whether the channel can carry another job, and that there still is a place."""
    for check in CHANNEL:
        check(s, v, c)
    _room(s, v)


def check_taking_jobs(s: SubmitJob, v: AdmissionView) -> None:
    """Check whether anything stops all jobs."""
    _taking_jobs(s, v)


def check_return(s: SubmitJob, v: AdmissionView) -> None:
    """Check whether an unfinished job can go on."""
    for check in RETURN:
        check(s, v)


def admit(s: SubmitJob, v: AdmissionView, c: ChannelView, content: EncodedContent) -> AcceptedJob:
    """Make every check in order, and return the job with the terms that it runs under.

    The caller makes the early checks first, to spare itself IO, and then calls this.

    content: the job's content as the engine takes it.

    Raises:
        Refusal: the job is not admitted.
    """
    check_terms(s, v)
    check_channel(s, v, c)
    model, prompt_tokens = _model(s, v), content.prompt_tokens
    if content.positions > s.job.parameters.max_tokens:
        raise Refusal(
            Reason.BAD_PARAMETERS,
            f"max_tokens is {s.job.parameters.max_tokens}, the template needs {content.positions}",
            metadata={"positions": str(content.positions)},
        )
    needed = prompt_tokens + context_tokens(s.job, model)
    if needed > model.max_context:
        raise Refusal(
            Reason.PROMPT_TOO_LONG,
            f"prompt and output need {needed} tokens, the context has {model.max_context}",
            metadata={"prompt_tokens": str(prompt_tokens)},
        )
    check_price(s, v, c, prompt_tokens)
    job_id = JobId(v.domain.digest(s.job))
    return AcceptedJob(job_id, s.job, s.channel, model, prompt_tokens, v.now)


def check_price(s: SubmitJob, v: AdmissionView, c: ChannelView, prompt_tokens: int) -> None:
    """Check that the job can be paid for with a prompt of so many tokens.

    A longer prompt never passes where a shorter one is refused.

    Raises:
        Refusal: The job's ceiling, the deposit or the credit is too small.
    """
    model = _model(s, v)
    worst = worst_case(model, s.job.kind, s.job.parameters, prompt_tokens)
    if worst > s.job.max_amount:
        raise Refusal(
            Reason.PRICE_TOO_LOW,
            f"the job may cost {worst} base units, its ceiling is {s.job.max_amount}",
            metadata={"worst_case": str(worst)},
        )
    _check_funds(c, worst)
    _check_credit(v, c, ceiling(model, s.job, prompt_tokens, None, 1))


def most_prompt(s: SubmitJob, v: AdmissionView, c: ChannelView, least: int, most: int) -> int:
    """Give the longest prompt that `check_price` lets pass, in tokens, from `least` to `most`.

    Whether prompt and output fit into the context together does not matter here: a client that
    hears how long its prompt is asks again for a shorter output.

    Raises:
        Refusal: Not even the shortest one passes.
    """
    check_price(s, v, c, least)
    while least < most:
        middle = (least + most + 1) // 2
        try:
            check_price(s, v, c, middle)
        except Refusal:
            most = middle - 1
        else:
            least = middle
    return least


def _check_funds(c: ChannelView, worst: Amount) -> None:
    """Check that the deposit, on chain or authorized, covers the job beside all others."""
    owed = sum(u.amount for u in c.ledger.unpaid.values())
    needed = c.ledger.cumulative + owed + c.reserved + worst
    if needed <= c.deposit:
        return
    if needed > backing(c):
        raise Refusal(
            Reason.UNDERFUNDED,
            f"the channel needs {needed} base units, its deposit is {backing(c)}",
            metadata={"deposit": str(backing(c)), "needed": str(needed)},
        )


def _check_credit(v: AdmissionView, c: ChannelView, first: Amount) -> None:
    """Check that the prompt and the first canvas may begin now (clause 3.7)."""
    payer = c.payer
    fault = start_fault(v.terms.credit, payer, c.strangers_owe, first)
    if fault is None:
        return
    if payer.standing is PayerStanding.FALLEN and c.state is ChannelState.NONE:
        raise Refusal(
            Reason.FUND_YOURSELF,
            f"the payer owes {payer.owed} base units without a deposit. Open the channel yourself",
        )
    raise Refusal(
        Reason.CREDIT_EXHAUSTED,
        f"{fault.value}. Prompt and first canvas may cost {first} base units, and there is credit "
        f"for {max(0, payer.room)}",
        retry_after_s=BLOCK_RETRY_S,
        metadata={
            "owed": str(payer.owed),
            "limit": str(payer.limit),
            "unpromised": str(payer.unpromised),
            "unpromised_limit": str(payer.unpromised_limit),
            "needed": str(first),
            "standing": payer.standing.name,
        },
    )


def backing(c: ChannelView) -> Amount:
    """The deposit on chain, or the larger one that is authorized."""
    authorized = c.funding.authorization.funded - c.withdrawn if c.funding else 0
    return Amount(max(c.deposit, authorized))


def parameter_defect(kind: Kind, p: Parameters, model: ModelOffer) -> str | None:
    """What is wrong with a job's parameters for a model, or None."""
    micro = 1_000_000
    most = MAX_CANVASES_PER_JOB * model.canvas_size
    if KINDS[kind].keeps_canvases:
        most = min(model.max_output, most)
    tokens = ("max_tokens", p.max_tokens, 1, most)
    # What denoising takes is replayable jobs' alone; `_service_offered` has held the others to
    # zero.
    denoising = (
        ("max_steps", p.max_steps, 1, min(model.max_steps, MAX_DENOISING_STEPS)),
        (
            "temperature_end",
            p.temperature_end,
            int(model_limits.MIN_TEMPERATURE * micro),
            int(model_limits.MAX_TEMPERATURE * micro),
        ),
        (
            "temperature_start",
            p.temperature_start,
            p.temperature_end,
            int(model_limits.MAX_TEMPERATURE * micro),
        ),
        ("entropy_bound", p.entropy_bound, 0, int(model_limits.MAX_ENTROPY_BOUND_NATS * micro)),
        (
            "confidence_threshold",
            p.confidence_threshold,
            0,
            int(model_limits.MAX_CONFIDENCE_THRESHOLD_NATS * micro),
        ),
        ("stability_steps", p.stability_steps, 0, model_limits.MAX_STABILITY_STEPS),
    )
    for name, value, low, high in (tokens, *(denoising if p.service is Service.REPLAYABLE else ())):
        if not low <= value <= high:
            return f"{name} is {value}, outside {low} to {high}"
    return None


def _model(s: SubmitJob, v: AdmissionView) -> ModelOffer:
    model = _offer(v).entry(s.job)
    if model is None:
        raise Refusal(Reason.UNKNOWN_MODEL, "the offer has no such entry with that model")
    return model


def _offer(v: AdmissionView) -> Offer:
    if v.offer is None:
        raise Refusal(
            Reason.UNKNOWN_OFFER, "this worker did not make that offer. Ask for the current one"
        )
    return v.offer
