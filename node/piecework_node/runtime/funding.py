"""Which authorization of a payer to fund a channel counts, and who checks it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from piecework_node.journal.records import one_step
from piecework_node.runtime.live import LiveChannel
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


class OpeningCheck(Protocol):
    """Settlement's word on an authorization."""

    def __call__(
        self, live: LiveChannel, funding: FundingAuthorization, *, taken: bool
    ) -> Awaitable[None]:
        """Check that the worker would submit it.

        taken: it was checked and journaled before, and may be under way.

        Raises:
            Refusal: the worker would not submit it.
        """
        ...
