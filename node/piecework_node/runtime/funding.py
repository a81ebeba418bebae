"""Which authorization of a payer to fund a channel counts. Pure."""

from __future__ import annotations

from piecework_node.journal.records import one_step
from piecework_protocol.frames import FundingAuthorization, OpeningAuthorization, SubmitJob


def authorization_in(submission: SubmitJob) -> FundingAuthorization | None:
    """Return the authorization that a submission carries, out of the pool or in one step."""
    funding = submission.funding
    if isinstance(funding, OpeningAuthorization):
        return one_step(submission.channel, funding)
    return funding


def usable_funding(funding: FundingAuthorization | None, now: int) -> FundingAuthorization | None:
    """Return the authorization if it can still be submitted."""
    return funding if funding is not None and funding.authorization.deadline > now else None


def better_funding(
    known: FundingAuthorization | None, offered: FundingAuthorization | None
) -> FundingAuthorization | None:
    """Return the one with the larger deposit. Of equal ones, return the later to expire."""
    if known is None or offered is None:
        return offered or known
    return max(known, offered, key=lambda f: (f.authorization.funded, f.authorization.deadline))
