"""Which worker gets a request, and what to do when it declines. Pure.

A worker's score is what the request should cost there in money and waiting, divided by how often it
has kept its word: the price that a client expects to pay for an answer that arrives. Lower is
better. Being busy costs a worker waiting time and nothing in reputation. What a worker claims of
its speed and steps fades out over the first jobs that the client ran there itself.

Nobody gets a job at any price: `within_cap` leaves out those that ask a multiple of what others ask
who answer.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from piecework.client.jobs.output_rates import OutputRate, answer_lengths, measured_at
from piecework.client.jobs.requests import (
    AuditRequest,
    Filters,
    Generation,
    JobRequest,
    OpenRequest,
    ReadRequest,
    TextRequest,
    job_parameters,
)
from piecework.client.journal.learning import (
    blended_steps,
    is_resting,
    reliability,
    slowness,
)
from piecework.client.journal.records import (
    Experience,
    Measured,
    Memories,
    PaidTariff,
)
from piecework.client.limits import BROKEN_WORKER_REST_S, FULL_WORKER_WAIT_S
from piecework.client.network.discovery import serves
from piecework_protocol.capacity import EntryCapacity, capacity_of
from piecework_protocol.errors import Reason
from piecework_protocol.objects import ModelOffer, Service
from piecework_protocol.offers import takes_images
from piecework_protocol.pricing import Usage, canvases_for, price, worst_case
from piecework_protocol.types import Address, Amount, Timestamp, address_hex
from piecework_protocol.usual import (
    MEAN_STEPS,
    UsualJobs,
)
from piecework_protocol.wire import SignedOffer

PRICE_TOO_LOW = "max_price_too_low"
"""The code of a request whose own limit no worker keeps."""
MAX_TOKENS_TOO_LARGE = "max_tokens_too_large"
"""The code of a request for more tokens than any worker writes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run the request.

    Attributes:
        expected: What the job should cost: prompt, output and steps. Base units.
        ceiling: The most that it can cost. Base units.
        fee: What the worker gets beside it for opening a channel, once. Base units.
        seconds: The expected time to the last canvas, without waiting for a slot.
        usage: What it should use.
        rate: What a million output tokens cost here, denoising steps included.
        full: Whether the worker has neither a slot nor a place in its queue.
        resting: Whether it was silent a while ago. Then it comes last.
    """

    signed: SignedOffer
    model: ModelOffer
    generation: Generation
    expected: Amount
    ceiling: Amount
    fee: Amount
    seconds: float
    usage: Usage
    rate: OutputRate
    reliability: float
    score: float
    full: bool
    resting: bool

    @property
    def operator(self) -> Address:
        return self.signed.offer.operator


@dataclass(frozen=True, slots=True)
class Mistake:
    """What the caller asks for and no worker that serves the model can give.

    `param` is the request's member as the gateway names it, `code` what a program looks at.
    """

    param: str
    code: str
    why: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Best first, and one line for each that does not fit.

    `model_known`: somebody serves the model. `mistake`: the request itself keeps everybody out.
    """

    choices: tuple[Choice, ...]
    unfit: tuple[str, ...]
    model_known: bool
    mistake: Mistake | None = None


def rank(
    request: JobRequest, offers: Iterable[SignedOffer], memories: Memories, filters: Filters
) -> Ranking:
    """Order the offers that can take the request. Deterministic: ties go to the lower operator
    address."""
    choices: list[Choice] = []
    unfit: list[str] = []
    mistakes: list[Mistake | None] = []
    served = [
        (o, model)
        for o in offers
        for model in o.offer.models
        if serves(model, request.model)
        and request.operator in (None, o.offer.operator)
        and request.profile in (None, model.profile)
    ]
    lengths = answer_lengths(served, memories, Timestamp(filters.now))
    for signed, model in served:
        candidate = _Candidate(signed, model, memories, filters, lengths[model.digest])
        choice = _choice(request, candidate)
        mistake = _mistake(request, choice, filters)
        mistakes.append(mistake)
        trouble: str | None = _terms_trouble(candidate) or (
            mistake.why if mistake else _price_trouble(choice, filters)
        )
        if trouble:
            unfit.append(f"{address_hex(signed.offer.operator)} ({model.name}): {trouble}")
        else:
            choices.append(choice)
    choices.sort(key=_order)
    mine = mistakes[0] if mistakes and all(mistakes) else None
    return Ranking(tuple(choices), tuple(unfit), bool(mistakes), mine)


def within_cap(
    ranking: Ranking, answered: Collection[Address], memories: Memories, filters: Filters
) -> Ranking:
    """Leave out those that ask too much, compared with the workers in `answered`.

    The cap on a job's expected price is a multiple of the median of those that answered a dial and
    do not rest. One endpoint counts once, however many operators share it. Of an even number the
    lower middle one counts: of two, the cheaper. What was paid last for a model is never too much.
    """
    if filters.price_cap is None:
        return ranking
    asked: dict[str, Amount] = {}
    for choice in ranking.choices:
        if choice.operator in answered and not choice.resting:
            place = choice.signed.offer.place
            asked[place] = min(choice.expected, asked.get(place, choice.expected))
    if not asked:
        return ranking
    cap = filters.price_cap * statistics.median_low(asked.values())
    kept, unfit = [], list(ranking.unfit)
    for choice in ranking.choices:
        paid = memories.tariffs.get(choice.model.digest)
        most = max(cap, _at(paid, choice) if paid is not None else 0)
        if choice.expected <= most:
            kept.append(choice)
            continue
        token = filters.token
        unfit.append(
            f"{address_hex(choice.operator)} ({choice.model.name}): should cost "
            f"{token.format(choice.expected)}, more than {filters.price_cap:g} times what others "
            f"ask ({token.format(Amount(int(most)))})"
        )
    return replace(ranking, choices=tuple(kept), unfit=tuple(unfit))


def affordable(
    request: JobRequest, generation: Generation, model: ModelOffer, limit: Amount
) -> Generation:
    """Shorten a resolved generation until its ceiling is within a limit.

    One canvas is the least that is asked for. Its ceiling may still be over the limit.
    """
    longest, canvas = generation.max_tokens or 0, model.canvas_size

    def of(canvases: int) -> Generation:
        return replace(generation, max_tokens=min(longest, canvases * canvas))

    least, most = 1, canvases_for(model, longest)
    while least < most:
        middle = (least + most + 1) // 2
        if ceiling_of(request, of(middle), model) <= limit:
            least = middle
        else:
            most = middle - 1
    return of(least)


def ceiling_of(request: JobRequest, generation: Generation, model: ModelOffer) -> Amount:
    """Return the most that a request with a resolved generation can cost."""
    parameters = job_parameters(model, generation, seed=0)  # the seed costs nothing
    most = request.content.outline.prompt_tokens
    return worst_case(model, request.kind, parameters, most)


def least_of(*limits: Amount | None) -> Amount | None:
    """Return the least of the limits that there are."""
    given = [limit for limit in limits if limit is not None]
    return min(given) if given else None


def usual_steps(model: ModelOffer, tokens: int, max_steps: int) -> int:
    """Denoising steps that a usual worker takes for so many tokens."""
    return canvases_for(model, tokens) * min(MEAN_STEPS, max_steps)


def claimed_seconds(model: ModelOffer, tokens: int) -> float:
    """Seconds that a job takes by the worker's own word."""
    return model.first_canvas_ms / 1000 + tokens / max(1, model.tokens_per_second)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model at a worker, with what the client knows of both. `usual`: tokens of an answer."""

    signed: SignedOffer
    model: ModelOffer
    memories: Memories
    filters: Filters
    usual: float | None

    @property
    def now(self) -> Timestamp:
        return Timestamp(self.filters.now)

    @property
    def measured(self) -> Measured:
        return measured_at(self.memories, self.signed.offer.operator, self.model.digest)

    @property
    def memory(self) -> Experience:
        operator = self.signed.offer.operator
        return self.memories.experience.get(operator, Experience(operator))

    @property
    def opened(self) -> bool:
        """Whether a channel with the worker holds money."""
        return self.signed.offer.operator in self.memories.opened


def _choice(request: JobRequest, candidate: _Candidate) -> Choice:
    """What the request should take at one worker, whether it fits or not."""
    signed, model, filters = candidate.signed, candidate.model, candidate.filters
    offer, now = signed.offer, candidate.now
    fee = Amount(0) if candidate.opened else offer.open_fee
    generation = _resolved(request, candidate, fee)
    tokens = request.output_tokens(generation, candidate.usual)
    rate = OutputRate.of(offer, model, candidate.memories, now)
    steps = _steps(request, generation, candidate, tokens, rate.claim)
    usage = Usage(request.prompt_tokens, tokens, steps)
    ceiling = ceiling_of(request, generation, model)
    expected = Amount(min(price(model, usage), ceiling))
    seconds = claimed_seconds(model, tokens) * slowness(candidate.measured, now)
    places, share = capacity_of(offer, model), reliability(candidate.memory, now)
    money = expected + fee * _part_of_deposit(ceiling, filters)
    time = seconds + _waiting(places, seconds)
    return Choice(
        signed=signed,
        model=model,
        generation=generation,
        expected=expected,
        ceiling=ceiling,
        fee=fee,
        seconds=seconds,
        usage=usage,
        rate=rate,
        reliability=share,
        score=(money + time * filters.second_is_worth) / share,
        full=places.is_full,
        resting=is_resting(candidate.memory, now),
    )


def _resolved(request: JobRequest, candidate: _Candidate, fee: Amount) -> Generation:
    """The request's generation at this model, as long as limits and money can pay."""
    model, filters = candidate.model, candidate.filters
    generation = request.resolved(model, filters.default_max_tokens)
    left = filters.left if filters.left is None else Amount(max(0, filters.left - fee))
    limit = least_of(request.max_price, filters.max_job_price, left)
    if limit is None or not request.may_be_shortened:
        return generation
    return affordable(request, generation, model, limit)


def _steps(
    request: JobRequest,
    generation: Generation,
    candidate: _Candidate,
    tokens: int,
    claim: UsualJobs,
) -> int:
    """Denoising steps that the request should take. A read takes all of its steps."""
    model, most_steps = candidate.model, generation.max_steps or 0
    if isinstance(request, ReadRequest | AuditRequest | OpenRequest):
        return canvases_for(model, generation.max_tokens or 0) * most_steps
    most = canvases_for(model, tokens) * most_steps
    claimed = min(tokens * claim.steps_p50 / 1_000_000, most)
    usual = usual_steps(model, tokens, most_steps)
    return min(round(blended_steps(candidate.measured, candidate.now, claimed, usual)), most)


def _order(choice: Choice) -> tuple[bool, float, Address, bytes]:
    return choice.resting, choice.score, choice.operator, choice.model.digest


def _part_of_deposit(ceiling: Amount, filters: Filters) -> float:
    """What part of one deposit the job takes, at most all of it."""
    return min(1.0, ceiling / filters.deposit) if filters.deposit else 1.0


def _waiting(places: EntryCapacity, seconds: float) -> float:
    """Seconds until a job gets a slot: one job like this one ahead, or a queue full of them."""
    if places.slots_free:
        return 0.0
    return max(FULL_WORKER_WAIT_S, 2 * seconds) if places.is_full else seconds


def _at(paid: PaidTariff, choice: Choice) -> Amount:
    """What the choice's usage would cost at the prices that were paid last."""
    tariff = choice.model.replace(
        price_per_million_prompt_tokens=paid.prompt,
        price_per_million_output_tokens=paid.output,
        price_per_thousand_steps=paid.steps,
    )
    return price(tariff, choice.usage)


def _mistake(request: JobRequest, choice: Choice, filters: Filters) -> Mistake | None:
    """What the request itself asks for and this model cannot give."""
    model = choice.model
    if not model.kinds & request.kind.bit:
        missing = f"takes no jobs of kind {request.kind.name.lower()}"
        return Mistake("model", "kind_not_offered", missing)
    if request.content.has_images and takes_images(choice.signed.offer) is False:
        return Mistake("messages", "images_not_taken", "takes no images")
    if model.service is Service.BEST_EFFORT and (why := _best_effort_trouble(request, model)):
        return Mistake("piecework.best_effort", "best_effort_not_allowed", why)
    if isinstance(request, TextRequest):
        mistake = _length_mistake(request, model, choice.generation.max_tokens or 0)
        if mistake is not None:
            return mistake
    return _price_mistake(request, choice, filters)


def _length_mistake(request: TextRequest, model: ModelOffer, tokens: int) -> Mistake | None:
    """What is too long of an answer that may have so many tokens."""
    if tokens > model.max_output:
        why = f"writes at most {model.max_output} tokens, {tokens} are asked for"
        return Mistake("max_tokens", MAX_TOKENS_TOO_LARGE, why)
    if (
        model.service is Service.REPLAYABLE
        and (request.generation.max_steps or 0) > model.max_steps
    ):
        why = f"takes at most {model.max_steps} denoising steps"
        return Mistake("piecework.max_steps", "max_steps_too_large", why)
    # An estimate may be off either way: only what cannot fit at all is left out, the worker counts
    # exactly.
    if tokens >= model.max_context:
        why = f"its context holds {model.max_context} tokens"
        return Mistake("max_tokens", "context_length_exceeded", why)
    return None


def _price_mistake(request: JobRequest, choice: Choice, filters: Filters) -> Mistake | None:
    """A limit of one job's price that the request's ceiling passes."""
    if request.max_price is not None and choice.ceiling > request.max_price:
        why = _over_limit(choice, request.max_price, filters)
        return Mistake("piecework.max_price", PRICE_TOO_LOW, why)
    if filters.max_job_price is not None and choice.ceiling > filters.max_job_price:
        why = _over_limit(choice, filters.max_job_price, filters)
        return Mistake("max_tokens", "over_price_limit", why)
    return None


def _best_effort_trouble(request: JobRequest, model: ModelOffer) -> str | None:
    if not request.best_effort:
        return "serves at best effort, without seed and trace, and the request does not allow that"
    if unmet := request.generation.replayable_only:
        return f"serves at best effort and cannot honour {', '.join(unmet)}"
    if isinstance(request, ReadRequest):
        return request.content.best_effort_fault(model.canvas_size)
    return None


def _over_limit(choice: Choice, limit: Amount, filters: Filters) -> str:
    token = filters.token
    return f"may cost up to {token.format(choice.ceiling)}, the limit is {token.format(limit)}"


def _price_trouble(choice: Choice, filters: Filters) -> str | None:
    most, asked = filters.max_price_per_million_output, choice.rate.expected
    if most is not None and asked > most:
        return (
            f"a million output tokens should cost {filters.token.format(asked)} with their "
            f"denoising steps, the limit is {filters.token.format(most)}"
        )
    return None


def _terms_trouble(candidate: _Candidate) -> str | None:
    offer, memory, filters = candidate.signed.offer, candidate.memory, candidate.filters
    if offer.expires_at <= filters.now:
        return "its offer has expired"
    if filters.token.address not in offer.tokens:
        return "does not take the client's token"
    if offer.min_withdrawal_delay > filters.max_withdrawal_delay:
        return f"wants a withdrawal delay of {offer.min_withdrawal_delay} s"
    if memory.broken_clause and filters.now < memory.broken_at + BROKEN_WORKER_REST_S:
        return f"broke clause {memory.broken_clause} before"
    fee = offer.top_up_fee if candidate.opened else offer.open_fee
    if filters.max_fee is not None and fee > filters.max_fee:
        what = "topping up" if candidate.opened else "opening"
        asked, limit = filters.token.format(fee), filters.token.format(filters.max_fee)
        return f"asks {asked} for {what} a channel, the limit max_fee is {limit}"
    return None


class Next(enum.Enum):
    """What a client does after a refusal, before anything was delivered."""

    TRY_OTHER = "try another worker; this one did nothing wrong"
    TRY_OTHER_AND_REMEMBER = "try another worker and remember the failure"
    REFRESH_OFFER = "the offer changed: fetch it again and ask once more"
    SETTLE_UP = "pay what is owed on the channel and ask once more"
    NEW_CHANNEL = "look at the chain, take another channel and ask once more"
    OPEN_ITSELF = "send the opening or the top-up by a transaction of our own and ask once more"
    SHORTEN = "ask once more for as many tokens as there is room for, if none were asked for"
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
    Reason.WRONG_KIND: Next.REFRESH_OFFER,
    Reason.NO_IMAGES: Next.TRY_OTHER,
    Reason.PROMPT_TOO_LONG: Next.SHORTEN,
    Reason.PROMPT_REFUSED: Next.TRY_OTHER,
    Reason.PROMPT_MISMATCH: Next.TRY_OTHER_AND_REMEMBER,
    Reason.CANNOT_OPEN_PROMPT: Next.REFRESH_OFFER,
    Reason.NOT_OPENED: Next.GIVE_UP,
    Reason.WRONG_PROFILE: Next.TRY_OTHER,
    Reason.PRICE_TOO_LOW: Next.REFRESH_OFFER,
    Reason.TOKEN_NOT_ACCEPTED: Next.TRY_OTHER,
    Reason.CHANNEL_UNKNOWN: Next.NEW_CHANNEL,
    Reason.CHANNEL_CLOSED: Next.NEW_CHANNEL,
    Reason.CHANNEL_WITHDRAWING: Next.NEW_CHANNEL,
    Reason.WITHDRAWAL_DELAY_TOO_SHORT: Next.REFRESH_OFFER,
    Reason.UNDERFUNDED: Next.NEW_CHANNEL,
    Reason.FUND_YOURSELF: Next.OPEN_ITSELF,
    Reason.CREDIT_EXHAUSTED: Next.TRY_OTHER,
    Reason.UNPAID_RECEIPTS: Next.SETTLE_UP,
    Reason.JOB_CONFLICT: Next.TRY_OTHER_AND_REMEMBER,
    Reason.JOB_BUSY: Next.TRY_OTHER,
    Reason.JOB_ENDED: Next.TRY_OTHER_AND_REMEMBER,
    Reason.BUSY: Next.TRY_OTHER,
    Reason.RATE_LIMITED: Next.TRY_OTHER,
    Reason.DRAINING: Next.TRY_OTHER,
    Reason.PAUSED: Next.TRY_OTHER,
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
        Reason.PAUSED,
        Reason.JOB_BUSY,
    }
)
"""Refusals that only mean "later": the caller may be told to wait."""
CALLERS_FAULT = frozenset(
    {
        Reason.PROMPT_TOO_LONG,
        Reason.PROMPT_REFUSED,
        Reason.BAD_PARAMETERS,
        Reason.WRONG_KIND,
        Reason.NO_IMAGES,
    }
)
"""Refusals that a caller can mend, when every worker that answered gives one of them."""
