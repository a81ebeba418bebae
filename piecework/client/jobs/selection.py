"""Which worker gets a request, and what to do when it declines. Pure.

A worker's score is what the request should cost there in money and waiting, divided by how often it
has kept its word: the price that a client expects to pay for an answer that arrives. Lower is
better. Being busy costs a worker nothing in reputation.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from piecework.client.jobs.requests import (
    DEFAULT_MAX_STEPS,
    DEFAULT_MAX_TOKENS,
    Filters,
    Generation,
    TextRequest,
    job_parameters,
)
from piecework.client.journal.records import Experience
from piecework.client.limits import (
    BROKEN_WORKER_REST_S,
    BYTES_PER_TOKEN_ESTIMATE,
    EXPERIENCE_HALF_LIFE_S,
    MEAN_STEPS_ESTIMATE,
)
from piecework_protocol.client_session import TEMPLATE_TOKENS
from piecework_protocol.errors import Reason
from piecework_protocol.objects import ModelOffer, Service
from piecework_protocol.pricing import Usage, canvases_for, price, worst_case
from piecework_protocol.types import Address, Amount, Timestamp, address_hex
from piecework_protocol.wire import SignedOffer

# A worker that nobody knows is taken to keep its word three times out of four.
PRIOR_SUCCESSES = 3.0
PRIOR_FAILURES = 1.0


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run the request. Base units; `seconds` is the expected time to the last canvas."""

    signed: SignedOffer
    model: ModelOffer
    generation: Generation
    expected: Amount
    ceiling: Amount
    seconds: float
    reliability: float
    score: float
    full: bool

    @property
    def operator(self) -> Address:
        return self.signed.offer.operator


@dataclass(frozen=True, slots=True)
class Ranking:
    """Best first, and one line for each that does not fit. `model_known`: somebody serves the
    model."""

    choices: tuple[Choice, ...]
    unfit: tuple[str, ...]
    model_known: bool


def rank(
    request: TextRequest,
    offers: Iterable[SignedOffer],
    experience: Mapping[Address, Experience],
    filters: Filters,
) -> Ranking:
    """Order the offers that can take the request. Deterministic: ties go to the lower operator
    address."""
    choices: list[Choice] = []
    unfit: list[str] = []
    known = False
    for signed in offers:
        models = [m for m in signed.offer.models if _is_wanted(m, request.model)]
        known = known or bool(models)
        memory = experience.get(signed.offer.operator, Experience(signed.offer.operator))
        for model in models:
            fit = _fit(request, signed, model, memory, filters)
            if isinstance(fit, Choice):
                choices.append(fit)
            else:
                unfit.append(f"{address_hex(signed.offer.operator)} ({model.name}): {fit}")
    choices.sort(key=lambda c: (c.full, c.score, c.operator, c.model.digest))
    return Ranking(tuple(choices), tuple(unfit), known)


def resolve(generation: Generation, model: ModelOffer) -> Generation:
    """Fill what was left open with what this model offers."""
    tokens = generation.max_tokens or min(DEFAULT_MAX_TOKENS, model.max_output)
    steps = generation.max_steps or min(DEFAULT_MAX_STEPS, model.max_steps)
    return replace(generation, max_tokens=tokens, max_steps=steps)


def expected_usage(generation: Generation, model: ModelOffer, prompt_bytes: int) -> Usage:
    """What a resolved request is likely to use: every token asked for, the mean number of steps."""
    tokens = generation.max_tokens or 0
    steps = canvases_for(model, tokens) * min(MEAN_STEPS_ESTIMATE, generation.max_steps or 0)
    return Usage(1 + prompt_bytes // BYTES_PER_TOKEN_ESTIMATE, tokens, steps)


def reliability(memory: Experience, now: Timestamp) -> float:
    """Share of jobs that a worker is expected to finish, from decayed counts and a prior; 0 < share
    < 1."""
    successes, failures = decayed(memory, now)
    return (successes + PRIOR_SUCCESSES) / (successes + failures + PRIOR_SUCCESSES + PRIOR_FAILURES)


def decayed(memory: Experience, now: Timestamp) -> tuple[float, float]:
    """The counts as of `now`: they halve every half-life. A clock that went back decays nothing."""
    factor = 0.5 ** (max(0, now - memory.updated_at) / EXPERIENCE_HALF_LIFE_S)
    return memory.successes * factor, memory.failures * factor


def learn(memory: Experience, now: Timestamp, *, success: bool) -> Experience:
    """The memory after one more job."""
    successes, failures = decayed(memory, now)
    return replace(
        memory,
        successes=successes + success,
        failures=failures + (not success),
        updated_at=Timestamp(now),
    )


def learn_broken(memory: Experience, now: Timestamp, clause: str) -> Experience:
    """The memory of a worker that was caught breaking a clause."""
    return replace(learn(memory, now, success=False), broken_clause=clause, broken_at=now)


def _is_wanted(model: ModelOffer, wanted: str | None) -> bool:
    if wanted is None:
        return True
    digest = wanted.removeprefix("0x").lower()
    return model.name == wanted or model.digest.hex() == digest


def _fit(
    request: TextRequest,
    signed: SignedOffer,
    model: ModelOffer,
    memory: Experience,
    filters: Filters,
) -> Choice | str:
    offer, now, prompt_bytes = signed.offer, Timestamp(filters.now), len(request.prompt)
    generation = resolve(request.generation, model)
    usage = expected_usage(generation, model, prompt_bytes)
    trouble = (
        _service_trouble(request, model)
        or _terms_trouble(signed, memory, filters)
        or _size_trouble(generation, model, usage)
    )
    if trouble:
        return trouble
    parameters = job_parameters(model, generation, seed=0)  # the seed costs nothing
    ceiling = worst_case(model, parameters, prompt_bytes + TEMPLATE_TOKENS)
    expected = min(price(model, usage), ceiling)
    limits = [x for x in (request.max_price, filters.max_job_price) if x is not None]
    if limits and ceiling > min(limits):
        token = filters.token
        return f"may cost up to {token.format(ceiling)}, the limit is {token.format(min(limits))}"
    most = filters.max_price_per_million_output
    if most is not None and model.price_per_million_output_tokens > most:
        asked = filters.token.format(model.price_per_million_output_tokens)
        limit = filters.token.format(most)
        return f"asks {asked} per million output tokens, the limit is {limit}"
    seconds = model.first_canvas_ms / 1000 + usage.output_tokens / max(1, model.tokens_per_second)
    share = reliability(memory, now)
    score = (expected + seconds * filters.second_is_worth) / share
    full = offer.slots_free == 0 and offer.queue_free == 0
    return Choice(signed, model, generation, Amount(expected), ceiling, seconds, share, score, full)


def _service_trouble(request: TextRequest, model: ModelOffer) -> str | None:
    if model.service is Service.REPLAYABLE:
        return None
    if not request.best_effort:
        return "serves at best effort, without seed and trace, and the request does not allow that"
    unmet = request.generation.replayable_only
    return f"serves at best effort and cannot honour {', '.join(unmet)}" if unmet else None


def _terms_trouble(signed: SignedOffer, memory: Experience, filters: Filters) -> str | None:
    offer = signed.offer
    if offer.expires_at <= filters.now:
        return "its offer has expired"
    if filters.token.address not in offer.tokens:
        return "does not take the client's token"
    if offer.min_withdrawal_delay > filters.max_withdrawal_delay:
        return f"wants a withdrawal delay of {offer.min_withdrawal_delay} s"
    if memory.broken_clause and filters.now < memory.broken_at + BROKEN_WORKER_REST_S:
        return f"broke clause {memory.broken_clause} before"
    return None


def _size_trouble(generation: Generation, model: ModelOffer, usage: Usage) -> str | None:
    if usage.output_tokens > model.max_output:
        return f"writes at most {model.max_output} tokens, {usage.output_tokens} are asked for"
    if model.service is Service.REPLAYABLE and (generation.max_steps or 0) > model.max_steps:
        return f"takes at most {model.max_steps} denoising steps"
    # An estimate may be off either way: only what cannot fit at all is left out, the worker counts
    # exactly.
    if usage.output_tokens >= model.max_context:
        return f"its context holds {model.max_context} tokens"
    return None


class Next(enum.Enum):
    """What a client does after a refusal, before anything was delivered."""

    TRY_OTHER = "try another worker; this one did nothing wrong"
    TRY_OTHER_AND_REMEMBER = "try another worker and remember the failure"
    REFRESH_OFFER = "the offer changed: fetch it again and ask once more"
    SETTLE_UP = "pay what is owed on the channel and ask once more"
    NEW_CHANNEL = "look at the chain, take another channel and ask once more"
    GIVE_UP = "no worker would take this request"


AFTER_REFUSAL: Mapping[Reason, Next] = {
    Reason.MALFORMED: Next.TRY_OTHER_AND_REMEMBER,
    Reason.OVERSIZED: Next.GIVE_UP,
    Reason.BAD_SIGNATURE: Next.TRY_OTHER_AND_REMEMBER,
    Reason.WRONG_CHAIN: Next.TRY_OTHER_AND_REMEMBER,
    Reason.WRONG_WORKER: Next.TRY_OTHER_AND_REMEMBER,
    Reason.UNKNOWN_OFFER: Next.REFRESH_OFFER,
    Reason.UNKNOWN_MODEL: Next.REFRESH_OFFER,
    Reason.EXPIRED: Next.TRY_OTHER,
    Reason.BAD_PARAMETERS: Next.TRY_OTHER,
    Reason.WRONG_SERVICE: Next.REFRESH_OFFER,
    Reason.PROMPT_TOO_LONG: Next.TRY_OTHER,
    Reason.PROMPT_MISMATCH: Next.TRY_OTHER_AND_REMEMBER,
    Reason.CANNOT_OPEN_PROMPT: Next.REFRESH_OFFER,
    Reason.PRICE_TOO_LOW: Next.REFRESH_OFFER,
    Reason.TOKEN_NOT_ACCEPTED: Next.TRY_OTHER,
    Reason.CHANNEL_UNKNOWN: Next.NEW_CHANNEL,
    Reason.CHANNEL_CLOSED: Next.NEW_CHANNEL,
    Reason.CHANNEL_WITHDRAWING: Next.NEW_CHANNEL,
    Reason.WITHDRAWAL_DELAY_TOO_SHORT: Next.REFRESH_OFFER,
    Reason.UNDERFUNDED: Next.NEW_CHANNEL,
    Reason.FUND_YOURSELF: Next.TRY_OTHER,
    Reason.CREDIT_EXHAUSTED: Next.TRY_OTHER,
    Reason.UNPAID_RECEIPTS: Next.SETTLE_UP,
    Reason.JOB_CONFLICT: Next.TRY_OTHER_AND_REMEMBER,
    Reason.JOB_BUSY: Next.TRY_OTHER,
    Reason.JOB_ENDED: Next.TRY_OTHER_AND_REMEMBER,
    Reason.BUSY: Next.TRY_OTHER,
    Reason.RATE_LIMITED: Next.TRY_OTHER,
    Reason.DRAINING: Next.TRY_OTHER,
    Reason.CHAIN_UNAVAILABLE: Next.TRY_OTHER,
    Reason.ENGINE_UNAVAILABLE: Next.TRY_OTHER_AND_REMEMBER,
    Reason.ENGINE_FAILED: Next.TRY_OTHER_AND_REMEMBER,
    Reason.BROKEN_CLAUSE: Next.TRY_OTHER_AND_REMEMBER,
    Reason.INTERNAL: Next.TRY_OTHER_AND_REMEMBER,
}
BUSY_REASONS = frozenset(
    {
        Reason.BUSY,
        Reason.CREDIT_EXHAUSTED,
        Reason.RATE_LIMITED,
        Reason.DRAINING,
        Reason.JOB_BUSY,
    }
)
"""Refusals that only mean "later": the caller may be told to wait."""
