"""Which authorization of a payer to fund a channel counts. Pure."""

from __future__ import annotations

from piecework_protocol.frames import Funding


def usable_funding(funding: Funding | None, now: int) -> Funding | None:
    """Return the authorization if it can still be submitted."""
    return funding if funding is not None and funding.authorization.deadline > now else None


def better_funding(known: Funding | None, offered: Funding | None) -> Funding | None:
    """Return the one with the larger deposit. Of equal ones, return the later to expire."""
    if known is None or offered is None:
        return offered or known
    return max(known, offered, key=lambda f: (f.authorization.deposit, f.authorization.deadline))
