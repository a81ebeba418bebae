"""What audits of a job can cost, before the job is signed. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from piecework.client.jobs.requests import JobRequest, job_parameters
from piecework.client.jobs.selection import Choice
from piecework.client.limits import MAX_OPINIONS
from piecework_protocol.objects import Kind, Offer, Service
from piecework_protocol.pricing import Usage, price
from piecework_protocol.types import Amount


def audit_ceilings(
    request: JobRequest, choice: Choice, offers: Iterable[Offer], price_cap: float
) -> tuple[Amount, ...]:
    """Return the most that each report about a job may cost, in base units.

    That is one canvas at the prices of the dearest auditor, with the longest prompt in front, the
    most steps, and the fee for raising a channel. Auditors above `most_of_a_report` are left out,
    because nobody buys from them. There are as many reports as an audit wants opinions at most.
    Without an auditor there is none.
    """
    model = choice.model
    if request.kind not in (Kind.TEXT, Kind.READ) or model.service is not Service.REPLAYABLE:
        return ()
    parameters = job_parameters(model, choice.generation, seed=0)
    before = max(0, parameters.max_tokens - model.canvas_size)
    context = before if request.kind is Kind.TEXT else 0
    prompt = request.content.outline.prompt_tokens + context
    usage = Usage(prompt, 0, parameters.max_steps)
    most = most_of_a_report(choice.ceiling, price_cap)
    asked = [
        (price(entry, usage), max(offer.open_fee, offer.top_up_fee))
        for offer in offers
        for entry in offer.models
        if offer.operator != choice.operator
        and (entry.digest, entry.profile) == (model.digest, model.profile)
        and entry.kinds & Kind.AUDIT.bit
    ]
    prices = [Amount(report + fee) for report, fee in asked if report <= most]
    return (max(prices),) * MAX_OPINIONS if prices else ()


def most_of_a_report(ceiling: Amount, price_cap: float) -> Amount:
    """Return the most that is paid for one report, its fee apart.

    ceiling: what the whole job that is audited could cost. price_cap: how many times as much.
    """
    return Amount(int(ceiling * price_cap))
